"""What fewer bits cost: a model in several forms beside itself in full precision."""

from __future__ import annotations

import datetime
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.native.linear.select import FP32_ACTIVATIONS
from engine.native.runner import ModelRunner
from profiles.model_spec import ModelSpec
from profiles.quality import Quality
from scheduler.config import SchedulerConfig
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import ScheduledSequence, StartedSequence, StepPlan

_BLOCK_SIZE = 16
_MOST_REFERENCE_BYTES = 2**30
"""Memory for the distributions of the reference, which bounds the positions."""
_LEAST_TOKENS = 2

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelForm:
    """A way to hold a model."""

    quantization: str
    kv_cache_dtype: str
    linear_kernel: str = "auto"


def full_precision(spec: ModelSpec) -> ModelForm:
    """Weights as stored (in a quantized checkpoint's scheme, if it is one), all else in float32."""
    scheme = "none" if spec.quantization is None else spec.quantization.scheme.value
    return ModelForm(scheme, "float32", FP32_ACTIVATIONS)


def windows(texts: Sequence[Tokens], length: int, num_tokens: int, vocab_size: int) -> list[Tokens]:
    """The texts cut into pieces of at most ``length`` tokens, ``num_tokens`` in all at most.

    Fewer where the distributions of so many would take too much memory.
    """
    left = min(num_tokens, _MOST_REFERENCE_BYTES // (4 * vocab_size))
    found = []
    for text in texts:
        for first in range(0, len(text), length):
            piece = text[first : first + min(length, left)]
            if len(piece) >= _LEAST_TOKENS:
                found.append(piece)
                left -= len(piece)
    return found


def measure(
    model_dir: Path, forms: Sequence[ModelForm], sequences: Sequence[Tokens]
) -> Iterator[Quality]:
    """The quality of each form, in their order.

    Raises:
        ValueError: a form is not there.
        ModelSpecError, WeightLoadingError: the model cannot be run.
    """
    reference = full_precision(ModelSpec.from_directory(model_dir))
    expected = list(_log_probabilities(model_dir, reference, sequences))
    for form in forms:
        yield _compare(expected, _log_probabilities(model_dir, form, sequences), sequences)


def _compare(
    expected: Sequence[Tensor], found: Iterator[Tensor], sequences: Sequence[Tokens]
) -> Quality:
    divergences, agreements, surprises = [], [], []
    for p, q, tokens in zip(expected, found, sequences, strict=True):
        divergences.append((p.exp() * (p - q)).sum(dim=1))
        agreements.append(p.argmax(dim=1) == q.argmax(dim=1))
        surprises.append(-q[:-1].gather(1, torch.tensor(tokens[1:]).unsqueeze(1)))
    divergence = torch.cat(divergences)
    return Quality(
        mean_kl=max(0.0, float(divergence.mean())),
        max_kl=max(0.0, float(divergence.max())),
        same_token=float(torch.cat(agreements).float().mean()),
        perplexity=math.exp(float(torch.cat(surprises).mean())),
        num_positions=len(divergence),
        date=datetime.date.today().isoformat(),
    )


def _log_probabilities(
    model_dir: Path, form: ModelForm, sequences: Sequence[Tokens]
) -> Iterator[Tensor]:
    """Of the token after every token of each sequence: float32 [length, vocab_size]."""
    length = max(map(len, sequences))
    blocks = -(-length // _BLOCK_SIZE)
    limits = SchedulerConfig(
        num_blocks=blocks,
        block_size=_BLOCK_SIZE,
        max_num_seqs=1,
        max_num_batched_tokens=length,
        max_model_len=length,
    )
    runner = ModelRunner(
        EngineConfig(
            model_dir,
            limits,
            quantization=form.quantization,
            kv_cache_dtype=form.kv_cache_dtype,
            linear_kernel=form.linear_kernel,
            show_progress=False,
        )
    )
    sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
    for i, tokens in enumerate(sequences):
        started = StartedSequence(i, tokens, len(tokens), sampling, 0)
        everything = ScheduledSequence(i, 0, len(tokens), tuple(range(blocks)), samples=True)
        dropped = (i - 1,) if i else ()
        # In one step: a row's result never depends on how the rows were divided.
        logits = runner.forward(StepPlan(-1, dropped, (started,), (everything,)))
        yield logits.log_softmax(dim=1)
    del runner  # its parameters and modules hold each other
    gc.collect()
