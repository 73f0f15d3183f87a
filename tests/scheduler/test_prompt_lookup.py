from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.prompt_lookup import (
    LONGEST_MATCH,
    MOST_CANDIDATES,
    MOST_INDEXED,
    NOWHERE,
    SHORTEST_MATCH,
    PromptLookup,
    continuation,
)


def naive(token_ids: list[int], num_drafts: int) -> list[int]:
    """The definition: longest match first, most recent first."""
    for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        for end in range(len(token_ids) - 1, length - 1, -1):
            if token_ids[end - length : end] == token_ids[-length:]:
                grown = token_ids.copy()
                for i in range(num_drafts):
                    grown.append(grown[end + i])
                return grown[len(token_ids) :]
    return []


def propose(lookup: PromptLookup, token_ids: list[int], num_drafts: int) -> list[int]:
    end = lookup.find(token_ids)
    return [] if end == NOWHERE else continuation(token_ids, end, num_drafts)


@pytest.mark.parametrize(
    ("text", "drafts"),
    [
        ("abcdefg", ""),
        ("", ""),
        ("a", ""),
        ("aa", ""),
        ("abxxab", "xxa"),
        ("abxabyab", "yab"),
        ("zabxabyzab", "xab"),  # three tokens agree there, only two at the more recent place
        ("qzabuzabvqzab", "uza"),  # four before three
        ("aaa", "aaa"),  # the match overlaps the end, and goes round in circles
        ("ababa", "bab"),
    ],
)
def test_what_followed_the_longest_and_most_recent_match(text: str, drafts: str) -> None:
    token_ids = [ord(c) for c in text]
    found = propose(PromptLookup(100), token_ids, 3) if token_ids else []
    assert "".join(map(chr, found)) == drafts


@given(
    token_ids=st.lists(st.integers(0, 3), min_size=1, max_size=MOST_CANDIDATES),
    num_drafts=st.integers(1, 5),
    known_at_first=st.integers(1, MOST_CANDIDATES),
)
def test_equals_the_definition_however_the_text_grows(
    token_ids: list[int], num_drafts: int, known_at_first: int
) -> None:
    lookup = PromptLookup(len(token_ids))
    for length in range(min(known_at_first, len(token_ids)), len(token_ids) + 1):
        known = token_ids[:length]
        assert propose(lookup, known, num_drafts) == naive(known, num_drafts)


def test_large_ids_and_long_texts_are_found() -> None:
    chooser = random.Random(0)
    text = [chooser.randrange(200_000) for _ in range(900)]
    lookup = PromptLookup(2000)
    for start in (0, 300, 700):
        known = text + text[start : start + 3]
        assert propose(lookup, known, 8) == (text + text[start : start + 3])[start + 3 : start + 11]
        lookup = PromptLookup(2000)


def test_a_long_prompt_is_taken_in_over_several_steps() -> None:
    text = [*range(3 * MOST_INDEXED - 2), 0, 1]
    lookup = PromptLookup(len(text))
    assert [propose(lookup, text, 2) for _ in range(3)] == [[], [], [2, 3]]


def test_the_search_is_bounded() -> None:
    """A pair that is everywhere hides what is further back than the bound, and nothing fails."""
    text = [1, 2, 3, 4, 9] + [3, 4, 7] * (MOST_CANDIDATES + 3) + [1, 2, 3, 4]
    assert propose(PromptLookup(len(text)), text, 1) == [7]
