"""Which class runs which architecture."""

from __future__ import annotations

import torch

from engine.native.linear.select import LinearKernels
from engine.native.models.decoder import DecoderForCausalLM
from engine.native.parallel.communicator import SINGLE_RANK, Communicator
from engine.native.parallel.partition import Stage
from engine.native.support import ARCHITECTURES
from profiles.model_spec import ModelSpec

# One decoder covers all families so far; ModelSpec carries how they differ.
_MODELS: dict[str, type[DecoderForCausalLM]] = dict.fromkeys(ARCHITECTURES, DecoderForCausalLM)


def build_model(
    spec: ModelSpec,
    max_model_len: int,
    kernels: LinearKernels,
    dtype: torch.dtype,
    ranks: Communicator = SINGLE_RANK,
    stage: Stage | None = None,
    *,
    expert_parallel: bool = False,
) -> DecoderForCausalLM:
    """A model with uninitialized weights, for sequences of up to ``max_model_len`` tokens.

    Of it, what a rank and a ``stage`` (the whole when None) hold.

    Raises:
        ValueError: its weights cannot be split in the form that the kernels hold them in.
    """
    model = _MODELS[spec.architecture]
    return model(spec, max_model_len, kernels, dtype, ranks, stage, expert_parallel=expert_parallel)
