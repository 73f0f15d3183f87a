"""Drafts by prompt lookup: what followed the last tokens when they occurred before.

Text that repeats itself or its prompt (code that is edited, passages that are quoted, tables, JSON)
is foretold well by the place where its last few tokens stood before, at no cost of a draft model
(Saxena, "Prompt Lookup Decoding", 2023; ``ngram`` in vLLM). The index is that of deflate (RFC 1951,
section 4): for each pair of tokens a chain of the positions where it ends, newest first.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

LONGEST_MATCH = 4
"""Tokens that are compared; a longer match foretells hardly better."""
SHORTEST_MATCH = 2
MOST_CANDIDATES = 16
"""Earlier occurrences that are looked at, so that a pair which is everywhere costs no more."""
MOST_INDEXED = 1024
"""Tokens taken in by one call (0.4 ms), so that no long prompt holds up a step."""

NOWHERE = -1

_MULTIPLIER = 40503
"""Of multiplicative hashing: the golden ratio of 2^16, to the nearest odd number (Knuth)."""


class PromptLookup:
    """Index over the tokens of one sequence, which only grows.

    Takes 4 bytes a token and at most 8 for each of ``max_tokens``.
    """

    def __init__(self, max_tokens: int) -> None:
        num_buckets = 1 << max_tokens.bit_length()
        self._mask = num_buckets - 1
        self._newest = array("i", [NOWHERE]) * num_buckets
        """Of each hash, where a pair with it ends."""
        self._before = array("i", [NOWHERE])
        """Of each position, the one before it in its chain. No pair ends at the first."""

    def find(self, token_ids: Sequence[int]) -> int:
        """Where the most recent of the longest earlier occurrences of the last tokens, four down
        to two, ends; ``NOWHERE`` if there is none, or if there are tokens left to be taken in."""
        newest, before, mask = self._newest, self._before, self._mask
        known, first = len(token_ids), len(before)
        for position in range(first, min(known, first + MOST_INDEXED)):
            bucket = token_ids[position - 1] * _MULTIPLIER + token_ids[position] & mask
            before.append(newest[bucket])
            newest[bucket] = position
        if before[-1] == NOWHERE or len(before) < known:
            return NOWHERE
        return self._longest(token_ids, before[-1])

    def _longest(self, token_ids: Sequence[int], position: int) -> int:
        """Where the longest match ends, from ``position`` on along its chain."""
        best, best_length = NOWHERE, SHORTEST_MATCH - 1
        for _ in range(MOST_CANDIDATES):
            length = _match_length(token_ids, position)
            if length > best_length:
                best, best_length = position, length
                if length == LONGEST_MATCH:
                    break
            position = self._before[position]
            if position == NOWHERE:
                break
        return best


def continuation(token_ids: Sequence[int], end: int, count: int) -> list[int]:
    """The ``count`` tokens after an earlier occurrence of the last tokens that ends at ``end``.

    Where they reach the last token themselves, the text goes round in circles.
    """
    tokens = list(token_ids[end + 1 : end + 1 + count])
    while len(tokens) < count:
        tokens += tokens
    return tokens[:count]


def _match_length(token_ids: Sequence[int], end: int) -> int:
    """How many tokens up to ``end`` equal the last ones, at most ``LONGEST_MATCH``."""
    longest = min(LONGEST_MATCH, end + 1)
    for length in range(longest):
        if token_ids[end - length] != token_ids[-1 - length]:
            return length
    return longest
