"""Speculative decoding by prompt lookup: which drafts a step computes beside what it must.

A sequence that is due its next token may get drafts of those after it. The step then computes and
samples them all, and those count that come out as they were drafted, with the one after. As the
number that picks a token depends on its position alone (``engine.native.sampler.uniform``), the
output is the same token by token, greedy or not; drafts can only change how fast it comes.

Whether they pay is the step-time model's to say: where a step waits for memory, more rows are
nearly free; where it computes, they cost what they are. Without a model each draft is taken to
cost half a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig
from scheduler.drafter import AcceptanceRate, Drafter
from scheduler.request import Sequence

_COST_WITHOUT_MODEL = 0.5
_MEMORY_OF_ALL = 0.98
_PRIOR_OF_ALL = 0.5
_MOST_REMEMBERED = 256


class Speculation:
    """Decides on the drafts of each step, and counts them."""

    def __init__(self, config: SchedulerConfig, step_time: StepTimeModel | None) -> None:
        self._config = config
        self._step_time = step_time
        self._rate = AcceptanceRate(_MEMORY_OF_ALL)
        self._drafters: dict[Sequence, Drafter] = {}
        self._costs: dict[tuple[int, int, int, int], list[float]] = {}
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

    def propose(
        self,
        chunks: Mapping[Sequence, int],
        due: list[Sequence],
        left: int,
        room_of: Callable[[Sequence], int],
    ) -> Iterator[tuple[Sequence, list[int]]]:
        """Sequences and their drafts, at most ``left`` in all and ``room_of`` each.

        ``chunks`` is the step without drafts. ``due`` are those of it that compute their last known
        token alone, in order.
        """
        config = self._config
        costs = self._costs_of(chunks, due)
        if costs[1] >= 1.0:
            return  # not even those that are right would pay
        prior = self._rate.estimate(_PRIOR_OF_ALL)
        # Logits take memory, which the planner set aside for a row of each sequence.
        most_rows = max(config.max_num_seqs - len(chunks), config.num_speculative_tokens)
        left = min(left, most_rows)
        for sequence in due:
            drafter = self._drafters.get(sequence)
            if drafter is None:
                drafter = self._drafters[sequence] = Drafter(config.max_model_len)
            limit = min(config.num_speculative_tokens, left, room_of(sequence))
            drafts = drafter.propose(sequence.token_ids, costs, limit, prior)
            if drafts:
                left -= len(drafts)
                yield sequence, drafts

    def observe(self, sequence: Sequence, num_drafts: int, num_accepted: int) -> None:
        """Takes in how the drafts of a step fared."""
        self.num_draft_tokens += num_drafts
        self.num_accepted_tokens += num_accepted
        self._rate.observe(num_drafts, num_accepted)
        self._drafters[sequence].observe(num_drafts, num_accepted)

    def forget(self, sequence: Sequence) -> None:
        self._drafters.pop(sequence, None)

    def _costs_of(self, chunks: Mapping[Sequence, int], due: list[Sequence]) -> list[float]:
        """What 0, 1, 2, … drafts for each sequence that is due cost it, in tokens.

        Contexts grow slowly and steps resemble each other, so what the step-time model said is
        remembered, by powers of two of the context.
        """
        context = sum(sequence.num_computed_tokens for sequence in chunks)
        key = (len(chunks), sum(chunks.values()), len(due), context.bit_length())
        costs = self._costs.get(key)
        if costs is None:
            if len(self._costs) >= _MOST_REMEMBERED:
                self._costs.clear()
            costs = self._costs[key] = self._predicted_costs(chunks, due)
        return costs

    def _predicted_costs(self, chunks: Mapping[Sequence, int], due: list[Sequence]) -> list[float]:
        counts = range(self._config.num_speculative_tokens + 1)
        model = self._step_time
        if model is None:
            return [_COST_WITHOUT_MODEL * count for count in counts]
        windows = model.cost.windows
        sampled = [s for s, num_tokens in chunks.items() if num_tokens == s.num_uncomputed_tokens]
        step = StepShape.of(
            ((s.num_computed_tokens, num_tokens) for s, num_tokens in chunks.items()),
            windows,
            len(sampled),
        )
        rows = StepShape.of(((s.num_computed_tokens, 1) for s in due), windows, len(due))
        seconds = [model.predict(with_more_rows(step, rows, count)).seconds for count in counts]
        return [(s / seconds[0] - 1) * len(sampled) / len(due) for s in seconds]


def with_more_rows(step: StepShape, rows: StepShape, count: int) -> StepShape:
    """The step with ``rows`` computed and sampled ``count`` times more; their contexts are read
    once, and that each is a token longer than the one before is not worth counting."""
    pairs = zip(step.attention_pairs, rows.attention_pairs, strict=True)
    return StepShape(
        num_tokens=step.num_tokens + count * rows.num_tokens,
        num_sequences=step.num_sequences,
        num_sampled=step.num_sampled + count * rows.num_sampled,
        kv_tokens=step.kv_tokens,
        attention_pairs=tuple(have + count * more for have, more in pairs),
    )
