"""Which steps of a model are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_CONTEXT_TOKENS = 16_384
"""Most tokens of context in one step: 64 sequences of 256, or 8 of 2048."""


@dataclass(frozen=True, slots=True)
class StepCase:
    """A step: sequences that take one token after ``context`` ones, and parts of prompts."""

    num_decodes: int
    context: int = 0
    chunks: tuple[tuple[int, int], ...] = ()
    """``(num_computed_tokens, num_tokens)`` of each prompt; all end and sample."""

    @property
    def num_sequences(self) -> int:
        return self.num_decodes + len(self.chunks)

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + sum(new for _, new in self.chunks)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache must hold for it, with room for a few more steps."""
        prompts = sum(computed + new for computed, new in self.chunks)
        return self.num_decodes * (self.context + 2) + prompts

    @property
    def longest(self) -> int:
        prompts = [computed + new for computed, new in self.chunks]
        return max([self.context + 2 if self.num_decodes else 0, *prompts])


_DECODES: Final = ((1, 4, 16, 64, 2, 8, 32, 48, 24, 12), (256, 32, 1024))
_PROMPTS: Final = (128, 512, 32, 256, 64, 384, 16, 192)
_SEVERAL: Final = ((8, 64), (4, 64), (16, 16), (4, 128), (32, 16))
_CONTINUED: Final = ((512, 256), (1024, 256), (256, 64), (1024, 512), (1536, 64))
_MIXED: Final = ((4, 64), (16, 256), (1, 128), (31, 480), (8, 128), (8, 504), (48, 128), (16, 32))


def step_cases(max_model_len: int, max_num_seqs: int, max_num_tokens: int) -> list[StepCase]:
    """The cases within these limits, in turns of every kind, so that any beginning is a sample."""
    counts, contexts = _DECODES
    kinds = [
        [StepCase(count, context) for context in contexts for count in counts],
        [StepCase(0, chunks=((0, new),)) for new in _PROMPTS],
        [StepCase(0, chunks=((0, new),) * count) for count, new in _SEVERAL],
        [StepCase(0, chunks=(chunk,)) for chunk in _CONTINUED],
        [StepCase(count, 256, ((0, new),)) for count, new in _MIXED],
    ]
    # A case stands where its share of its kind has passed: kinds of any length spread evenly.
    placed = [
        ((i + 0.5) / len(kind), number, case)
        for number, kind in enumerate(kinds)
        for i, case in enumerate(kind)
    ]
    ordered = [case for _, _, case in sorted(placed, key=lambda place: place[:2])]
    return [
        case
        for case in ordered
        if case.longest <= max_model_len
        and case.num_sequences <= max_num_seqs
        and case.num_tokens <= max_num_tokens
        and case.kv_tokens <= _CONTEXT_TOKENS
    ]
