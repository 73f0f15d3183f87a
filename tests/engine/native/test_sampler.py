from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.native import sampler
from engine.native.sampler import SamplingRow, sample, uniform
from engine.native.sampling.native_backend import NativeSampling
from engine.native.sampling.numpy_backend import NumpySampling
from scheduler.sampling_params import SamplingParams

VOCAB = 12
LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -5.0])


@pytest.fixture(autouse=True, scope="module", params=[NativeSampling, NumpySampling])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test holds for both."""
    chosen = request.param()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "select_sampling_backend", lambda: chosen)
        yield


def row(
    prompt: Sequence[int] = (0,), output: Sequence[int] = (), index: int = 0, **params: Any
) -> SamplingRow:
    return SamplingRow(
        sequence_id=17,
        params=SamplingParams(**({"max_tokens": 100, "seed": 0} | params)),
        index=index,
        token_ids=np.array([*prompt, *output], dtype=np.int32),
        num_prompt_tokens=len(prompt),
    )


def draw(count: int, logits: Tensor = LOGITS, **params: Any) -> Counter[int]:
    """Tokens of so many independent rows, told apart by their index."""
    rows = [row(index=i, **params) for i in range(count)]
    return Counter(sample(logits.repeat(count, 1), rows))


def assert_follows(counts: Counter[int], probabilities: Tensor) -> None:
    """Pearson's test; 5 standard deviations above its mean, for a fixed seed."""
    total = counts.total()
    expected = probabilities.double() * total
    possible = expected > 0
    assert all(possible[token] for token in counts)
    observed = torch.tensor([counts[token] for token in range(len(probabilities))]).double()
    statistic = ((observed - expected)[possible] ** 2 / expected[possible]).sum().item()
    freedom = int(possible.sum()) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def best(logits: Tensor, **fields: Any) -> int:
    return sample(logits.clone()[None], [row(**({"temperature": 0.0} | fields))])[0]


def test_greedy_takes_the_likeliest() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 500, generator=generator)
    expected = logits.argmax(dim=-1).tolist()
    assert sample(logits, [row(temperature=0.0, index=i) for i in range(6)]) == expected


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_temperature(temperature: float) -> None:
    assert_follows(draw(5000, temperature=temperature), (LOGITS / temperature).softmax(-1))


def test_the_check_can_fail() -> None:
    with pytest.raises(AssertionError):
        assert_follows(draw(5000, temperature=1.0), (LOGITS / 1.15).softmax(-1))


def kept_only(keep: Tensor, temperature: float = 1.0) -> Tensor:
    return (LOGITS / temperature).masked_fill(~keep, -math.inf).softmax(-1)


def test_top_k() -> None:
    assert_follows(draw(4000, top_k=4), kept_only(torch.arange(VOCAB) < 4))
    assert_follows(draw(4000, top_k=VOCAB + 5), LOGITS.softmax(-1))


def test_top_p_keeps_the_token_that_reaches_the_mass() -> None:
    covered = LOGITS.softmax(-1).cumsum(-1)
    top_p = (covered[2] + covered[3]).item() / 2
    assert_follows(draw(4000, top_p=top_p), kept_only(torch.arange(VOCAB) < 4))


def test_top_p_counts_what_temperature_and_top_k_left() -> None:
    left = (LOGITS / 1.5).masked_fill(torch.arange(VOCAB) >= 5, -math.inf).softmax(-1)
    covered = left.cumsum(-1)
    top_p = (covered[1] + covered[2]).item() / 2
    counts = draw(4000, temperature=1.5, top_k=5, top_p=top_p)
    assert_follows(counts, kept_only(torch.arange(VOCAB) < 3, 1.5))


def test_min_p() -> None:
    # Relative to the likeliest: exp(-1.5) = 0.22 stays, exp(-2) = 0.14 goes.
    assert_follows(draw(4000, min_p=0.2), kept_only(torch.arange(VOCAB) < 4))


def test_the_tightest_of_all_limits_holds() -> None:
    assert_follows(draw(2000, min_p=0.2, top_k=2), kept_only(torch.arange(VOCAB) < 2))
    assert_follows(draw(2000, min_p=0.5, top_k=9, top_p=0.99), kept_only(torch.arange(VOCAB) < 2))


@pytest.mark.parametrize(
    "params", [{"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 1e-300}]
)
def test_limits_that_leave_one_token_are_greedy(params: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(50, 300, generator=generator)
    expected = logits.argmax(dim=-1).tolist()
    assert sample(logits, [row(index=i, **params) for i in range(50)]) == expected


def test_top_p_over_a_flat_vocabulary_needs_more_than_the_first_candidates() -> None:
    vocab_size = 6000
    logits = torch.linspace(0.0, -0.5, vocab_size)
    covered = logits.softmax(-1).cumsum(-1)
    num_kept = int((covered < 0.7).sum()) + 1
    assert num_kept > 1024
    tokens = draw(3000, logits, top_p=0.7)
    assert max(tokens) < num_kept
    assert max(tokens) > 0.98 * num_kept


def test_presence_and_frequency_count_generated_tokens_only() -> None:
    logits = torch.zeros(VOCAB)
    logits[3], logits[4] = 1.0, 0.6
    assert best(logits, prompt=[3, 3, 3], presence_penalty=2.0, frequency_penalty=2.0) == 3
    assert best(logits, output=[3], presence_penalty=0.3) == 3
    assert best(logits, output=[3], presence_penalty=0.5) == 4
    assert best(logits, output=[3, 3, 3], presence_penalty=0.3) == 3
    assert best(logits, output=[3], frequency_penalty=0.3) == 3
    assert best(logits, output=[3, 3], frequency_penalty=0.3) == 4
    assert best(logits, output=[4], presence_penalty=-0.5) == 4


def test_repetition_penalty_divides_what_is_likely_and_multiplies_what_is_not() -> None:
    logits = torch.full((VOCAB,), -9.0)
    logits[3], logits[4] = 1.0, 0.6
    assert best(logits, prompt=[3], repetition_penalty=1.5) == 3
    assert best(logits, prompt=[3], repetition_penalty=2.0) == 4
    assert best(logits, prompt=[0], output=[3, 3], repetition_penalty=1.5) == 3
    assert best(logits, prompt=[0], output=[3, 3], repetition_penalty=2.0) == 4
    negative = torch.full((VOCAB,), -9.0)
    negative[3], negative[4] = -1.0, -1.6
    assert best(negative, prompt=[3], repetition_penalty=1.5) == 3
    assert best(negative, prompt=[3], repetition_penalty=2.0) == 4


def test_logit_bias_forces_and_bans() -> None:
    assert best(LOGITS, logit_bias=((9, 100.0),)) == 9
    assert best(LOGITS, logit_bias=((0, -100.0), (1, -0.6))) == 2
    assert best(LOGITS, logit_bias=((VOCAB, 100.0),)) == 0
    assert draw(200, logit_bias=((9, 100.0),)) == {9: 200}


def test_min_tokens_masks_stop_tokens_after_the_bias() -> None:
    fields = {"min_tokens": 2, "stop_token_ids": (0, 5, VOCAB + 1), "logit_bias": ((5, 100.0),)}
    assert best(LOGITS, **fields) == 1
    assert best(LOGITS, output=[1], **fields) == 1
    assert best(LOGITS, output=[1, 1], **fields) == 5


def test_penalties_come_before_temperature() -> None:
    counts = draw(4000, output=[0], presence_penalty=1.0, temperature=0.5)
    assert_follows(counts, ((LOGITS - torch.eye(VOCAB)[0]) / 0.5).softmax(-1))


def test_uniform_is_a_pure_function_and_uniform() -> None:
    assert uniform(1, 2, 3) == uniform(1, 2, 3)
    assert uniform(-(2**63), 0, 0) != uniform(2**63 - 1, 0, 0)
    values = [uniform(s, j, i) for s in range(10) for j in range(10) for i in range(100)]
    assert len(set(values)) == len(values)
    assert 0 <= min(values) < 0.001
    assert 0.999 < max(values) < 1
    counts = Counter(int(10 * value) for value in values)
    assert_follows(counts, torch.full((10,), 0.1))


def test_each_position_draws_anew() -> None:
    rows = [row(output=[1] * i) for i in range(3000)]
    assert_follows(Counter(sample(LOGITS.repeat(3000, 1), rows)), LOGITS.softmax(-1))


params_strategy = st.fixed_dictionaries(
    {
        "seed": st.integers(-(2**63), 2**63 - 1),
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 5, 50, 10_000]),
        "top_p": st.sampled_from([0.1, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05]),
        "presence_penalty": st.sampled_from([0.0, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "min_tokens": st.sampled_from([0, 5]),
        "stop_token_ids": st.just((2,)),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(params_strategy, min_size=2, max_size=6), st.integers(0, 100), st.booleans())
def test_neighbours_do_not_matter(params: list[dict[str, Any]], seed: int, coarse: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(params), 2000, generator=generator)
    if coarse:
        logits = logits.round()  # many ties
    rows = [row(prompt=[5, 7], output=[9, 7], **p) for p in params]
    together = sample(logits.clone(), rows)
    alone = [sample(logits[i : i + 1].clone(), [rows[i]])[0] for i in range(len(rows))]
    assert together == alone
    backwards = sample(logits.flip(0).contiguous(), rows[::-1])
    assert backwards[::-1] == together


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_not_finite_stays_in_its_row(
    temperature: float, caplog: pytest.LogCaptureFixture
) -> None:
    logits = LOGITS.repeat(5, 1)
    logits[1, 3] = math.nan
    logits[2] = math.nan
    logits[3, 4] = math.inf
    logits[4] = -math.inf
    rows = [row(temperature=temperature, stop_token_ids=(6,), index=i) for i in range(5)]
    clean = sample(LOGITS.repeat(5, 1), rows)
    tokens = sample(logits, rows)
    assert tokens[0] == clean[0]
    assert tokens[1] != 3
    assert tokens[2] == 6
    assert tokens[3] == 4
    assert tokens[4] == 6
    assert len(caplog.records) == 4
    assert "sequence 17 are not finite" in caplog.text
    without_stop = torch.full((1, VOCAB), math.nan)
    assert sample(without_stop, [row(temperature=temperature)]) == [0]


def test_impossible_tokens_are_never_drawn() -> None:
    logits = LOGITS.clone()
    logits[::2] = -math.inf
    assert_follows(draw(3000, logits), logits.softmax(-1))
