"""The sampling kernel against the reference: on the GPU if there is one, else interpreted."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from engine.native.sampler import SamplingRow, sample
from engine.native.sampling.backend import GREEDY, NOT_FINITE, Draw
from engine.native.sampling.triton_backend import TritonSampling
from scheduler.sampling_params import SamplingParams
from tests.engine.native.sampling.test_backends import assert_right, logits_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def backend() -> TritonSampling:
    return TritonSampling(DEVICE)


def pick(backend: TritonSampling, logits: Tensor, *draws: Draw) -> list[int]:
    return backend.pick(logits.to(DEVICE, copy=True), draws).tolist()


@pytest.mark.parametrize("vocab_size", [1, 17, 5003])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_agrees_with_the_reference(backend: TritonSampling, vocab_size: int, spread: float) -> None:
    chooser = random.Random(vocab_size)
    limits = itertools.product((0, 7, 10**9), (0.9, 1 - 1e-12, 1.0), (0.0, 0.01))
    draws = [
        Draw(chooser.choice([1e-300, 0.3, 1.0]), k, p, min_p, chooser.random())
        for k, p, min_p in limits
    ]
    logits = logits_of(vocab_size, (len(draws), vocab_size), spread, 64)
    tokens = pick(backend, logits, *draws)
    for i, (token, draw) in enumerate(zip(tokens, draws, strict=True)):
        assert_right(token, logits[i : i + 1], draw)


def test_every_limit_keeps_what_it_says(backend: TritonSampling) -> None:
    """Weights 1, 1/2, 1/4, 1/4, 1/8 and nothing else: the borders are exact."""
    weights = torch.zeros(40)
    weights[[3, 31, 5, 17, 8]] = torch.tensor([1, 0.5, 0.25, 0.25, 0.125])
    fractions = [0.0, 0.55, 0.62, 0.7, 0.85, 0.999]

    def kept(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[float]:
        rows = weights.log().repeat(len(fractions), 1)
        tokens = pick(backend, rows, *(Draw(1.0, top_k, top_p, min_p, f) for f in fractions))
        return sorted((weights[token].item() for token in set(tokens)), reverse=True)

    everything = [1, 0.5, 0.25, 0.25, 0.125]
    for k, number in ((1, 1), (2, 2), (3, 4), (4, 4), (5, 5), (6, 5)):
        assert kept(top_k=k) == everything[:number]
    for p, number in ((1e-9, 1), (0.47, 1), (0.48, 2), (0.70, 2), (0.71, 4), (0.95, 5)):
        assert kept(top_p=p) == everything[:number]
    assert kept(top_k=2, top_p=0.66) == [1]
    for p, number in ((1.0, 1), (0.51, 1), (0.49, 2), (0.24, 4), (0.1, 5)):
        assert kept(min_p=p) == everything[:number]


@pytest.mark.parametrize("draw", [GREEDY, Draw(0.7, 5, 0.9, 0.01, 0.4)])
def test_rows_that_are_not_finite_are_reported(backend: TritonSampling, draw: Draw) -> None:
    logits = logits_of(1, (6, 200), 1.0, 64)
    logits[0, 150] = math.nan
    logits[1, 7] = -math.nan
    logits[2, 199] = math.inf
    logits[3] = -math.inf
    logits[4] = -math.inf
    logits[4, 42] = -3e38
    tokens = pick(backend, logits, *[draw] * 6)
    assert tokens[:4] == [NOT_FINITE] * 4
    assert tokens[4] == 42
    assert tokens[5] != NOT_FINITE


def test_greedy_takes_the_first_of_the_likeliest(backend: TritonSampling) -> None:
    logits = logits_of(2, (3, 5003), 1.0, 0.3)
    expected = logits.numpy().argmax(axis=1).tolist()
    assert pick(backend, logits, GREEDY, GREEDY, GREEDY) == expected


def test_neighbours_do_not_matter_and_rows_may_lie_apart(backend: TritonSampling) -> None:
    logits = logits_of(3, (6, 600), 1.0, 1e6).to(DEVICE)
    draws = [Draw(1.0, i, 0.9, 0.0, i / 6) for i in range(6)]
    together = backend.pick(logits[:, :500], draws).tolist()
    alone = [backend.pick(logits[i : i + 1, :500].clone(), [draws[i]]).item() for i in range(6)]
    assert alone == together


def test_no_rows(backend: TritonSampling) -> None:
    assert backend.pick(torch.empty(0, 10, device=DEVICE), []).tolist() == []


def test_the_sampler_adjusts_and_repairs_rows_where_they_lie(backend: TritonSampling) -> None:
    def row(sequence_id: int, **fields: object) -> SamplingRow:
        params = SamplingParams(max_tokens=9, seed=0, temperature=0.0, **fields)  # type: ignore[arg-type]
        tokens = torch.tensor([1, 2, 3], dtype=torch.int32).numpy()
        return SamplingRow(sequence_id, params, 0, tokens, 2)

    logits = logits_of(4, (3, 50), 1.0, 64).to(DEVICE)
    logits[1] = math.nan
    logits[2, 30] = math.inf
    rows = [row(0, logit_bias=((7, 100.0),)), row(1, stop_token_ids=(9,)), row(2)]
    assert sample(logits, rows, backend) == [7, 9, 30]
