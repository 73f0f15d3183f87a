"""Which sampling backend runs."""

from __future__ import annotations

import logging
from functools import cache

from engine.native.kernels.build import KernelBuildError
from engine.native.sampling.backend import SamplingBackend
from engine.native.sampling.native_backend import NativeSampling
from engine.native.sampling.numpy_backend import NumpySampling

logger = logging.getLogger(__name__)


@cache
def select_sampling_backend() -> SamplingBackend:
    """The compiled kernel where it builds, otherwise numpy; decided once a process."""
    try:
        return NativeSampling()
    except KernelBuildError as error:
        logger.warning("sampling runs in numpy, which is slower: %s", error)
        return NumpySampling()
