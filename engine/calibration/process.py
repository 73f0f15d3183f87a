"""The measuring process: an ``Order`` on its standard input, ``Message`` lines on its output.

Started like the engine process (``engine.environment``), so that it measures what the engine
will meet.
"""

from __future__ import annotations

import gc
import sys
import time

from engine.calibration.readings import (
    Failed,
    Finished,
    Message,
    Order,
    Progressed,
    Readings,
    decode_order,
    encode,
)
from engine.environment import bind_compute_threads
from engine.native.support import check_supported
from profiles.model_spec import ModelSpec

_DEVICE_SECONDS = 22.0
_HOST_SECONDS = 4.0
_LEAST_MODEL_SECONDS = 5.0


def main() -> int:
    order = decode_order(sys.stdin.buffer.read())
    try:
        _send(Finished(measure_all(order)))
    except Exception as error:
        _send(Failed(" ".join(str(error).split()) or type(error).__name__))
        return 1
    return 0


def measure_all(order: Order) -> Readings:
    """Measures everything that is asked for.

    Raises:
        ValueError: a model cannot be loaded; one line.
    """
    started = time.perf_counter()
    bind_compute_threads(order.cpus)
    for model in order.models:  # before minutes are spent on the device
        check_supported(ModelSpec.from_directory(model.directory))
    import torch

    from engine.calibration.device import measure_device
    from engine.calibration.model import measure_host, measure_model
    from engine.native.attention.select import select_attention_backend

    torch.set_num_threads(order.num_threads)
    on_cpu = order.device == "cpu"
    backends = {
        name: select_attention_backend(
            order.attention_backend, getattr(torch, order.dtype), getattr(torch, name)
        )
        for name in order.kv_cache_dtypes
        if on_cpu
    }
    _send(Progressed("the host's work in a step"))
    scale = min(1.0, order.seconds / 80.0)
    host = measure_host(order, _HOST_SECONDS * scale) if on_cpu else ()
    _send(Progressed("memory, matrix products, attention"))
    device = measure_device(order, backends, host, _DEVICE_SECONDS * scale)
    models = []
    for index, model in enumerate(order.models):
        left = order.seconds - (time.perf_counter() - started)
        share = max(_LEAST_MODEL_SECONDS * scale, left / (len(order.models) - index))
        models.append(measure_model(model, order, share, lambda text: _send(Progressed(text))))
        gc.collect()  # parameters know their layers and layers their parameters
    return Readings(
        device=device,
        models=tuple(models),
        attention_backend=", ".join({backend.name: 0 for backend in backends.values()}) or "torch",
        seconds=time.perf_counter() - started,
    )


def _send(message: Message) -> None:
    sys.stdout.buffer.write(encode(message) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
