from __future__ import annotations

import torch

from engine.native.staging import Staging

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_tensors_arrive_whole_and_aligned() -> None:
    staging = Staging(DEVICE, 1024)
    tensors = [
        torch.arange(5),
        torch.tensor([1, 2, 3], dtype=torch.int32),
        torch.empty(0, dtype=torch.int64),
        torch.arange(12, dtype=torch.int32).view(4, 3)[:, :2],  # not dense
        torch.tensor([0.5], dtype=torch.float64),
    ]
    arrived = staging.upload(tensors)
    for tensor, copy in zip(tensors, arrived, strict=True):
        assert copy.device.type == DEVICE.type
        assert copy.dtype is tensor.dtype
        assert torch.equal(copy.cpu(), tensor)
        assert copy.is_contiguous()
        assert copy.data_ptr() % 16 == 0


def test_the_same_shapes_get_the_same_addresses() -> None:
    staging = Staging(DEVICE, 1024)
    first = [x.data_ptr() for x in staging.upload([torch.arange(5), torch.arange(9)])]
    second = staging.upload([torch.arange(5) + 1, torch.arange(9) + 1])
    assert [x.data_ptr() for x in second] == first
    assert second[1].tolist() == list(range(1, 10))


def test_more_room_is_taken_when_it_is_needed() -> None:
    staging = Staging(DEVICE, 16)
    (many,) = staging.upload([torch.arange(1000)])
    assert torch.equal(many.cpu(), torch.arange(1000))
