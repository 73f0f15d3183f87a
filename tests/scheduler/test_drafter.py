from __future__ import annotations

import random

import pytest

from scheduler.drafter import (
    ALLOWANCE,
    INITIAL_BALANCE,
    MOST_BALANCE,
    AcceptanceRate,
    Drafter,
    num_worthwhile,
)
from scheduler.prompt_lookup import NOWHERE

MOST = 7


def costs(per_draft: float) -> list[float]:
    return [per_draft * count for count in range(MOST + 1)]


@pytest.mark.parametrize(
    ("rate", "per_draft", "count"),
    [
        (0.9, 0.01, 7),
        (0.9, 0.6, 4),  # 0.9 + 0.81 + 0.73 + 0.66, and 0.59 is less than it costs
        (0.5, 0.2, 2),
        (0.5, 0.6, 1),  # not worth it, but tried
    ],
)
def test_the_number_that_brings_most_beyond_its_cost(
    rate: float, per_draft: float, count: int
) -> None:
    assert num_worthwhile(rate, 100.0, costs(per_draft)) == count


def test_more_than_can_be_paid_is_not_drafted() -> None:
    assert num_worthwhile(0.9, 0.35, costs(0.1)) == 3
    assert num_worthwhile(0.9, 0.05, costs(0.1)) == 0
    assert num_worthwhile(0.9, 2.0, costs(0.1)[:1]) == 0


def test_a_second_row_may_be_dear_and_the_others_cheap() -> None:
    dear_at_first = [0.0, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1]
    assert num_worthwhile(0.7, 2.0, dear_at_first) == 7
    assert num_worthwhile(0.2, 2.0, dear_at_first) == 1


def test_a_rate_follows_what_happens() -> None:
    rate = AcceptanceRate(memory=0.75)
    assert rate.estimate(prior=0.4) == 0.4
    for _ in range(10):
        rate.observe(num_drafts=4, num_accepted=0)
    assert rate.estimate(prior=0.4) < 0.1
    for _ in range(6):
        rate.observe(num_drafts=4, num_accepted=4)
    assert rate.estimate(prior=0.4) > 0.9
    for _ in range(30):
        rate.observe(num_drafts=4, num_accepted=1)
    assert rate.estimate(prior=0.4) == pytest.approx(0.5, abs=0.03)


def play(drafter: Drafter, text: list[int], num_known: int, per_draft: float) -> tuple[int, float]:
    """Generates the rest of ``text``; returns the steps it took and what the drafts cost."""
    spent, num_steps = 0.0, 0
    while num_known < len(text):
        limit = min(MOST, len(text) - num_known - 1)
        known = text[:num_known]
        drafts: list[int] = []
        if (end := drafter.find(known, per_draft)) != NOWHERE:
            drafts = drafter.draft(known, end, costs(per_draft)[: limit + 1], prior=0.5)
        num_accepted = 0
        while num_accepted < len(drafts) and drafts[num_accepted] == text[num_known + num_accepted]:
            num_accepted += 1
        if drafts:
            drafter.observe(len(drafts), num_accepted)
        spent += costs(per_draft)[len(drafts)]
        num_known += 1 + num_accepted
        num_steps += 1
    return num_steps, spent


@pytest.mark.parametrize("per_draft", [0.02, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("vocab_size", [2, 5, 30, 1000])
def test_random_text_costs_next_to_nothing(vocab_size: int, per_draft: float) -> None:
    """In time, drafts and all: a step of one token takes 1."""
    for seed in range(10):
        chooser = random.Random(seed)
        text = [chooser.randrange(vocab_size) for _ in range(700)]
        num_steps, spent = play(Drafter(100, 1000), text, 100, per_draft)
        assert num_steps + spent <= 600 + INITIAL_BALANCE + 600 * ALLOWANCE


@pytest.mark.parametrize(("per_draft", "steps_per_token"), [(0.05, 0.2), (0.3, 0.4)])
def test_a_copy_is_found_soon(per_draft: float, steps_per_token: float) -> None:
    chooser = random.Random(1)
    passage = [chooser.randrange(1000) for _ in range(200)]
    num_steps, _ = play(Drafter(202, 1000), passage + passage, 202, per_draft)
    assert num_steps < steps_per_token * 198


def test_a_copy_is_found_after_much_that_was_none() -> None:
    """Random words of few letters fail all the time; then the text begins to repeat itself."""
    chooser = random.Random(1)
    random_text = [chooser.randrange(5) for _ in range(600)]
    passage = [chooser.randrange(1000) for _ in range(150)]
    drafter = Drafter(10, 2000)
    _, spent = play(drafter, random_text, 10, 0.2)
    assert spent > 5
    play(drafter, random_text + passage, 600, 0.2)
    num_steps, _ = play(drafter, random_text + passage * 3, 750, 0.2)
    assert num_steps < 300 / 3


def test_a_copy_that_ends_costs_no_more_than_was_saved_for_it() -> None:
    chooser = random.Random(1)
    passage = [chooser.randrange(1000) for _ in range(100)]
    drafter = Drafter(102, 2000)
    play(drafter, passage * 2, 102, 0.1)
    text = passage * 2 + [chooser.randrange(3) for _ in range(400)]
    num_steps, spent = play(drafter, text, 200, 0.1)
    assert num_steps + spent <= 400 + MOST_BALANCE + 400 * ALLOWANCE
