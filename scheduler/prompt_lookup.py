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

_MULTIPLIER = 0x9E3779B1
"""Knuth's multiplicative hashing, by the golden ratio of 2^32."""
_NOWHERE = -1


class PromptLookup:
    """Index over the tokens of one sequence, which only grows.

    Takes 4 bytes a token and at most 8 for each of ``max_tokens``.
    """

    def __init__(self, max_tokens: int) -> None:
        self._shift = 32 - max_tokens.bit_length()
        self._newest = array("i", [_NOWHERE]) * (1 << max_tokens.bit_length())
        """Of each hash, where a pair with it ends."""
        self._before = array("i", [_NOWHERE])
        """Of each position, the one before it in its chain. No pair ends at the first."""

    def propose(self, token_ids: Sequence[int], num_drafts: int) -> list[int]:
        """``num_drafts`` tokens that may follow ``token_ids``, or none.

        They followed the most recent of the longest earlier occurrences of the last tokens, four
        down to two. An occurrence that overlaps the end goes round in circles.
        """
        self._take_in(token_ids)
        if len(self._before) < len(token_ids):
            return []
        end = self._find(token_ids)
        if end == _NOWHERE:
            return []
        drafts = list(token_ids[end + 1 : end + 1 + num_drafts])
        return (drafts * -(-num_drafts // len(drafts)))[:num_drafts]

    def _take_in(self, token_ids: Sequence[int]) -> None:
        newest, before, shift = self._newest, self._before, self._shift
        first = len(before)
        last = min(len(token_ids), first + MOST_INDEXED)
        for position in range(first, last):
            pair = token_ids[position - 1] * _MULTIPLIER + token_ids[position]
            bucket = (pair * _MULTIPLIER & 0xFFFFFFFF) >> shift
            before.append(newest[bucket])
            newest[bucket] = position

    def _find(self, token_ids: Sequence[int]) -> int:
        """Where the best earlier occurrence of the last tokens ends."""
        best, best_length = _NOWHERE, SHORTEST_MATCH - 1
        position = self._before[-1]
        for _ in range(MOST_CANDIDATES):
            if position == _NOWHERE:
                break
            length = _match_length(token_ids, position)
            if length > best_length:
                best, best_length = position, length
                if length == LONGEST_MATCH:
                    break
            position = self._before[position]
        return best


def _match_length(token_ids: Sequence[int], end: int) -> int:
    """How many tokens up to ``end`` equal the last ones, at most ``LONGEST_MATCH``."""
    for length in range(min(LONGEST_MATCH, end + 1)):
        if token_ids[end - length] != token_ids[-1 - length]:
            return length
    return min(LONGEST_MATCH, end + 1)
