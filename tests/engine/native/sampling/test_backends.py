from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.native.sampling.backend import GREEDY, NOT_FINITE, Draw, SamplingBackend
from engine.native.sampling.native_backend import NativeSampling
from engine.native.sampling.numpy_backend import NumpySampling, kept_weights
from engine.native.sampling.select import select_sampling_backend

LARGE = 151_936
ROUNDING = 1e-6
"""What the backends' sums may differ by, relatively."""

native = cache(NativeSampling)


@pytest.fixture(scope="module", params=[native, NumpySampling])
def backend(request: pytest.FixtureRequest) -> SamplingBackend:
    chosen: SamplingBackend = request.param()
    return chosen


def pick(backend: SamplingBackend, logits: Tensor, *draws: Draw) -> list[int]:
    return backend.pick(logits.clone(), draws).tolist()


def logits_of(seed: int, shape: tuple[int, int], spread: float, steps: float) -> Tensor:
    """Logits on a grid, so that weights are either equal or clearly different."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(shape, generator=generator)
    # Some tokens stand out, as they do in language.
    likely = torch.rand(shape, generator=generator) < 20 / shape[1]
    logits += likely * spread * 3 * torch.rand(shape, generator=generator)
    return (logits * steps).round() / steps


def assert_agrees(logits: Tensor, draw: Draw) -> None:
    """The native token is one that the reference would pick."""
    (token,) = pick(native(), logits, draw)
    assert_right(token, logits, draw)


def assert_right(token: int, logits: Tensor, draw: Draw) -> None:
    """The reference keeps the token of logits [1, vocab_size], whose share holds the fraction.

    Or so it is for parameters a rounding away.
    """
    row = logits[0].numpy()

    def holds(top_p: float, min_p: float) -> bool:
        limits = draw._replace(top_p=min(1.0, top_p), min_p=min(1.0, min_p))
        weights = kept_weights(row.copy(), row.max(), limits).astype(np.float64)
        begin = weights[:token].sum() / weights.sum()
        end = weights[: token + 1].sum() / weights.sum()
        return bool(weights[token] > 0 and begin - ROUNDING <= draw.fraction <= end + ROUNDING)

    factors = (1, 1 - ROUNDING, 1 + ROUNDING)
    assert any(
        holds(draw.top_p * by_p, draw.min_p * by_min_p)
        for by_p, by_min_p in itertools.product(factors, repeat=2)
    )


draws = st.builds(
    Draw,
    temperature=st.sampled_from([1e-300, 1e-5, 0.01, 0.3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 3, 7, 40, 300, 10**9]),
    top_p=st.sampled_from([1e-12, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 1e-12, 1.0]),
    min_p=st.sampled_from([0.0, 1e-300, 1e-9, 0.01, 0.3, 1.0]),
    fraction=st.floats(0, 1 - 2.0**-53) | st.sampled_from([0.0, 0.5, 1 - 2.0**-53]),
)
sizes = st.sampled_from([1, 2, 15, 16, 17, 127, 128, 129, 500, 1024, 5003])


@settings(max_examples=500, deadline=None)
@given(
    draw=draws,
    vocab_size=sizes,
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 0.3, 1.0, 3.0, 30.0]),
    steps=st.sampled_from([1, 64]),
    masked=st.sampled_from([0.0, 0.0, 0.5, 0.99]),
)
def test_agrees_with_the_reference(
    draw: Draw, vocab_size: int, seed: int, spread: float, steps: float, masked: float
) -> None:
    logits = logits_of(seed, (1, vocab_size), spread, steps)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(logits.shape, generator=generator) < masked
    hidden[0, seed % vocab_size] = False
    assert_agrees(logits.masked_fill(hidden, -math.inf), draw)


@pytest.mark.parametrize("spread", [0.5, 2.0, 5.0])
@pytest.mark.parametrize(
    "draw",
    [
        Draw(0.7, 0, 1.0, 0.0, 0.0),
        Draw(0.7, 0, 0.95, 0.0, 0.0),
        Draw(1.0, 0, 0.9999, 0.0, 0.0),
        Draw(1.0, 0, 0.9, 0.02, 0.0),
        Draw(1.0, 40, 1.0, 0.0, 0.0),
        Draw(1.0, 40, 0.9, 0.01, 0.0),
        Draw(1.0, 5000, 1.0, 0.0, 0.0),  # more than there are groups
        Draw(2.0, 1100, 0.99, 0.0, 0.0),
        Draw(1.0, 0, 1.0, 0.05, 0.0),
    ],
)
def test_agrees_on_a_large_vocabulary(draw: Draw, spread: float) -> None:
    for i in range(5):
        logits = logits_of(i, (1, LARGE), spread, 64)
        assert_agrees(logits, draw._replace(fraction=(i + 0.5) / 5))


@pytest.mark.parametrize("vocab_size", [1, 40, 128, 1000, 4096])
def test_every_limit_keeps_what_it_says(backend: SamplingBackend, vocab_size: int) -> None:
    """Weights 1, 1/2, 1/4, 1/4, 1/8 and nothing else: the borders are exact."""
    weights = torch.zeros(vocab_size)
    weights[torch.randperm(vocab_size, generator=torch.Generator().manual_seed(3))[:5]] = (
        torch.tensor([1, 0.5, 0.25, 0.25, 0.125])[:vocab_size]
    )
    fractions = np.linspace(0, 0.999, 300)

    def kept(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
        """The weights of the tokens that were drawn, in falling order."""
        rows = weights.log().repeat(len(fractions), 1)
        draws = [Draw(1.0, top_k, top_p, min_p, float(f)) for f in fractions]
        tokens = sorted(set(pick(backend, rows, *draws)))
        return weights[tokens].sort(descending=True).values

    possible = weights[weights > 0].sort(descending=True).values
    assert kept().equal(possible)
    for k, number in ((1, 1), (2, 2), (3, 4), (4, 4), (5, 5), (6, 5)):
        assert kept(top_k=k).equal(possible[:number])
    if vocab_size >= 5:  # the total is 17/8
        for p, number in ((1e-9, 1), (0.47, 1), (0.48, 2), (0.70, 2), (0.71, 4), (0.95, 5)):
            assert kept(top_p=p).equal(possible[:number])
        assert kept(top_k=2, top_p=0.66).equal(possible[:1])
    for p, number in ((1.0, 1), (0.51, 1), (0.49, 2), (0.24, 4), (0.1, 5)):
        assert kept(min_p=p).equal(possible[:number])


@settings(max_examples=100, deadline=None)
@given(vocab_size=sizes, seed=st.integers(0, 1000), steps=st.sampled_from([0.3, 1, 64]))
def test_greedy_takes_the_first_of_the_likeliest(
    backend: SamplingBackend, vocab_size: int, seed: int, steps: float
) -> None:
    logits = logits_of(seed, (3, vocab_size), 1.0, steps)
    expected = logits.numpy().argmax(axis=1).tolist()
    assert pick(backend, logits, GREEDY, GREEDY, GREEDY) == expected


@settings(max_examples=100, deadline=None)
@given(vocab_size=sizes, place=st.floats(0, 1, exclude_max=True), draw=draws | st.just(GREEDY))
@example(vocab_size=1, place=0.0, draw=GREEDY)
def test_rows_that_are_not_finite_are_reported(
    backend: SamplingBackend, vocab_size: int, place: float, draw: Draw
) -> None:
    logits = logits_of(1, (6, vocab_size), 1.0, 64)
    token = int(place * vocab_size)
    logits[0, token] = math.nan
    logits[1, token] = -math.nan
    logits[2, token] = math.inf
    logits[3] = -math.inf
    logits[4] = -math.inf
    logits[4, token] = -3e38
    tokens = pick(backend, logits, *[draw] * 6)
    assert tokens[:4] == [NOT_FINITE] * 4
    assert tokens[4] == token
    assert tokens[5] != NOT_FINITE


def test_the_largest_fraction_is_not_left_to_the_last_token(backend: SamplingBackend) -> None:
    # It would get what rounding leaves over if sums did not match.
    logits = logits_of(5, (200, 3001), 1.0, 1e6)
    logits[:, -1] = -30.0
    logits[:, 127:3000:128] = -30.0
    fractions = [1 - 2.0**-30] * 100 + [i / 100 for i in range(100)]
    tokens = np.array(pick(backend, logits, *[Draw(1.0, 0, 1.0, 0.0, f) for f in fractions]))
    assert (tokens != 3000).all()
    assert (tokens % 128 != 127).all()


def test_no_rows(backend: SamplingBackend) -> None:
    assert backend.pick(torch.empty(0, 10), []).tolist() == []


def test_rows_may_lie_apart() -> None:
    logits = logits_of(0, (4, 3000), 1.0, 64)
    draws = [GREEDY, Draw(1.0, 0, 1.0, 0.0, 0.3), Draw(1.0, 9, 1.0, 0.0, 0.3), GREEDY]
    alone = pick(native(), logits[:, :2000].contiguous(), *draws)
    assert native().pick(logits[:, :2000], draws).tolist() == alone


@pytest.fixture(scope="module")
def mixture() -> tuple[Tensor, list[Draw]]:
    """Rows of all kinds, more than one thread's share."""
    logits = torch.cat([logits_of(i, (1, LARGE), 0.5 + i / 8, 1e6) for i in range(24)])
    kinds = [
        GREEDY,
        Draw(0.7, 0, 1.0, 0.0, 0.0),
        Draw(1.0, 0, 0.95, 0.0, 0.0),
        Draw(1.0, 40, 0.9, 0.0, 0.0),
        Draw(1.5, 3000, 1.0, 0.0, 0.0),
        Draw(1.0, 0, 1.0, 0.1, 0.0),
    ]
    return logits, [kinds[i % 6]._replace(fraction=(7 * i % 24) / 24) for i in range(24)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_neighbours_and_threads_do_not_matter(
    mixture: tuple[Tensor, list[Draw]], two_threads: None
) -> None:
    logits, draws = mixture
    together = native().pick(logits, draws).tolist()
    assert native().pick(logits.flip(0).contiguous(), draws[::-1]).tolist() == together[::-1]
    alone = [native().pick(logits[i : i + 1], draws[i : i + 1]).item() for i in range(len(draws))]
    assert alone == together


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="no AVX2"
)
def test_narrower_vectors_pick_the_same_tokens(mixture: tuple[Tensor, list[Draw]]) -> None:
    logits, draws = mixture
    narrow = NativeSampling("x86-64-v3")
    assert torch.equal(narrow.pick(logits, draws), native().pick(logits, draws))
    # Whatever the fraction: sums have the same bits.
    rows = logits[:4].repeat(50, 1)
    generator = np.random.default_rng(0)
    many = [
        Draw(1.0, 0, [0.9, 1.0][i % 2], 0.0, float(f)) for i, f in enumerate(generator.random(200))
    ]
    assert torch.equal(narrow.pick(rows, many), native().pick(rows, many))


def test_the_backend_is_chosen_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    select_sampling_backend.cache_clear()
    assert select_sampling_backend().name == "native"
    assert not caplog.records
    select_sampling_backend.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    try:
        chosen = select_sampling_backend()
        assert chosen.name == "numpy"
        assert select_sampling_backend() is chosen
        (record,) = caplog.records
        assert "sampling runs in numpy, which is slower: no C++ compiler" in record.getMessage()
    finally:
        select_sampling_backend.cache_clear()
