"""Which sampling backend runs."""

from __future__ import annotations

import logging
from functools import cache

import torch

from engine.native.kernels.build import KernelBuildError
from engine.native.sampling.backend import SamplingBackend
from engine.native.sampling.native_backend import NativeSampling
from engine.native.sampling.numpy_backend import NumpySampling

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")


@cache
def select_sampling_backend(device: torch.device = _CPU) -> SamplingBackend:
    """The compiled kernel where it builds, otherwise numpy; Triton's on a CUDA device.

    Decided once a process and device.
    """
    if device.type == "cuda":
        from engine.native.sampling.triton_backend import TritonSampling  # brings Triton in

        return TritonSampling(device)
    try:
        return NativeSampling()
    except KernelBuildError as error:
        logger.warning("sampling runs in numpy, which is slower: %s", error)
        return NumpySampling()
