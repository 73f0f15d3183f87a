"""Speculative decoding by prompt lookup: which drafts a step computes beside what it must.

A sequence that is due its next token may get drafts of those after it. The step then computes and
samples them all, and those count that come out as they were drafted, with the one after. As the
number that picks a token depends on its position alone (``engine.native.sampler.uniform``), the
output is the same token by token, greedy or not; drafts can only change how fast it comes.

Whether they pay is the step-time model's to say (``scheduler.draft_costs``): where a step waits for
memory, more rows are nearly free; where it computes, they cost what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig
from scheduler.draft_costs import DraftCosts
from scheduler.drafter import AcceptanceRate, Drafter
from scheduler.prompt_lookup import NOWHERE
from scheduler.request import Sequence

LOOK_EVERY = 4
"""Every so many steps sequences are looked at that repeated nothing when they last were."""
_HIGHEST_COST = 0.9
"""Of one draft, in tokens: beyond it hardly even drafts that are always right would pay."""
_MEMORY = 0.98
_FIRST_RATE = 0.5
"""Share of drafts that is expected to be accepted before anything is known."""


class Speculation:
    """Decides on the drafts of each step, and counts them."""

    def __init__(self, config: SchedulerConfig, step_time: StepTimeModel | None) -> None:
        self._config = config
        self._costs = DraftCosts(step_time, config.num_speculative_tokens)
        self._rate = AcceptanceRate(_MEMORY)
        self._drafters: dict[Sequence, Drafter] = {}
        self._repeating_until: dict[Sequence, int] = {}
        """Steps up to which sequences that were drafted are looked at in each."""
        self._num_steps = 0
        self._num_drafts_on_way: int | None = None
        """Drafts in the step that is on its way, if it was considered at all."""
        self.num_drafts = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.num_accepted_at: list[int] = []
        """Accepted tokens by their place in the draft."""

    @property
    def looks_next(self) -> bool:
        """Whether the next step may hold drafts."""
        if not self._config.num_speculative_tokens:
            return False
        coming = self._num_steps + 1
        repeating = self._repeating_until.values()
        return coming % LOOK_EVERY == 0 or any(until >= coming for until in repeating)

    def skip(self) -> None:
        """To be called for a step without drafts, in place of ``propose``."""
        self._num_steps += 1

    def propose(
        self,
        chunks: Mapping[Sequence, int],
        due: list[Sequence],
        left: int,
        room_of: Callable[[Sequence], int],
    ) -> Iterator[tuple[Sequence, list[int]]]:
        """Sequences and their drafts, at most ``left`` in all and ``room_of`` each.

        Looking is quick, but so are the steps of small models, and a step after which nobody looks
        can be planned ahead: texts that repeat nothing are looked at now and then, all in the same
        step, those that do in every step.

        ``chunks`` is the step without drafts. ``due`` are those of it that compute their last known
        token alone, in order.
        """
        self._num_steps = now = self._num_steps + 1
        until = self._repeating_until
        looks_at_all = now % LOOK_EVERY == 0
        looked_at = [s for s in due if looks_at_all or until.get(s, 0) >= now]
        if not looked_at:
            return
        config = self._config
        self._num_drafts_on_way = 0
        costs = self._costs.of(chunks, due)
        if costs[1] > _HIGHEST_COST:
            return
        prior = self._rate.estimate(_FIRST_RATE)
        # Logits take memory, which the planner set aside for a row of each sequence.
        most_rows = max(config.max_num_seqs - len(chunks), config.num_speculative_tokens)
        left = min(left, most_rows)
        for sequence in looked_at:
            drafter = self._drafters.get(sequence)
            if drafter is None:
                drafter = Drafter(sequence.num_tokens, config.max_model_len)
                self._drafters[sequence] = drafter
            end = drafter.find(sequence.token_ids, costs[1])
            if end == NOWHERE:
                continue
            limit = max(0, min(left, room_of(sequence)))
            drafts = drafter.draft(sequence.token_ids, end, costs[: limit + 1], prior)
            if drafts:
                left -= len(drafts)
                self._num_drafts_on_way += len(drafts)
                until[sequence] = now + LOOK_EVERY
                yield sequence, drafts

    def observe(self, sequence: Sequence, num_drafts: int, num_accepted: int) -> None:
        """Takes in how a sequence's drafts fared."""
        self.num_drafts += 1
        self.num_draft_tokens += num_drafts
        self.num_accepted_tokens += num_accepted
        self.num_accepted_at += [0] * (num_accepted - len(self.num_accepted_at))
        for place in range(num_accepted):
            self.num_accepted_at[place] += 1
        self._rate.observe(num_drafts, num_accepted)
        self._drafters[sequence].observe(num_drafts, num_accepted)

    def observe_step(self, duration_s: float) -> None:
        """Takes in how long a step took; to be called after each."""
        if self._num_drafts_on_way is not None:
            self._costs.observe(self._num_drafts_on_way, duration_s)
            self._num_drafts_on_way = None

    def forget(self, sequence: Sequence) -> None:
        self._drafters.pop(sequence, None)
        self._repeating_until.pop(sequence, None)
