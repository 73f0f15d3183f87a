"""The device that a rank computes on."""

from __future__ import annotations

import torch


def open_device(name: str, rank: int = 0) -> torch.device:
    """The device of that name, made the current one; ``cuda`` is another for each rank.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown (known: cpu, cuda, cuda:0, …)") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"device {name!r} is not supported (supported: cpu, cuda)")
    count = torch.cuda.device_count()
    device = torch.device("cuda", rank if device.index is None else device.index)
    if not 0 <= device.index < count:
        raise ValueError(f"device {name!r} is not here: torch finds {count} CUDA devices")
    torch.cuda.set_device(device)
    return device
