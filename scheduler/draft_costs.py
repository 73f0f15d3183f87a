"""What drafts cost: the time that their rows add to a step, in tokens that it would have brought.

The step-time model predicts the step with and without them. How much rows add differs from kernel
to kernel more than the rest of a step does, so what was measured corrects the prediction: the time
that drafts added so far over what they were predicted to add. Without a model each draft is taken
to cost half a token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler import request

_COST_WITHOUT_MODEL = 0.5
_ASKED_EVERY = 256
"""Steps after which the model is asked anew, since contexts have grown."""
_PRIOR_WEIGHT = 1.0
"""Steps' worth of added time that the prediction counts for against what was measured."""
_MEMORY = 0.98
"""Weight of the past after each step with drafts."""
_PLAIN_MEMORY = 0.9
_OUTLIER = 2.0
"""A step that takes longer than so many times what is usual was interrupted."""


@dataclass(slots=True)
class _Kind:
    """Predictions for steps that are alike."""

    seconds: float
    added: tuple[float, ...]
    """By 0, 1, 2, … drafts for each sequence that is due, relative to ``seconds``."""
    num_due: int
    tokens_per_due: float
    """Tokens that the step brings without drafts, for each sequence that is due."""
    is_decode: bool
    """Whether it does nothing else."""
    correction: float = 0.0
    costs: tuple[float, ...] = ()
    """With that correction."""

    def corrected(self, correction: float) -> tuple[float, ...]:
        if correction != self.correction:
            factor = correction * self.tokens_per_due
            self.correction = correction
            self.costs = tuple(factor * added for added in self.added)
        return self.costs

    def added_by(self, num_drafts: int) -> float:
        """By so many drafts in all, however they are distributed."""
        each, rest = divmod(num_drafts, self.num_due)
        low, high = self.added[each], self.added[min(each + 1, len(self.added) - 1)]
        return low + (high - low) * rest / self.num_due


class DraftCosts:
    """Asked before each step that could hold drafts, and told afterwards how long it took."""

    def __init__(self, step_time: StepTimeModel | None, most_drafts: int) -> None:
        self._step_time = step_time
        self._most_drafts = most_drafts
        self._kinds: dict[tuple[int, int, int], _Kind] = {}
        self._kind: _Kind | None = None
        """Of the step that was last asked for."""
        self._num_steps = 0
        self._plain: dict[int, float] = {}
        """Measured over predicted time of steps without drafts, by their number of sequences."""
        self._added = self._predicted = 0.0
        self._correction = 1.0

    def of(
        self, chunks: Mapping[request.Sequence, int], due: Collection[request.Sequence]
    ) -> Sequence[float]:
        """The cost of 0, 1, 2, … drafts for a sequence, in tokens, if all that are due get them.

        ``chunks`` is the step without drafts: tokens of each sequence. ``due`` are those of it that
        compute their last known token alone.
        """
        self._num_steps += 1
        if self._num_steps % _ASKED_EVERY == 0:
            self._kinds.clear()
            # What is too dear is never measured again unless it is forgotten.
            self._learn(0.0, 0.0, 0.5)
        key = (len(chunks), sum(chunks.values()), len(due))
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = self._predict(chunks, due)
        self._kind = kind
        return kind.corrected(self._correction)

    def observe(self, num_drafts: int, duration_s: float) -> None:
        """Takes in that the step which was last asked for had so many drafts and took so long."""
        kind = self._kind
        if kind is None or not kind.is_decode or kind.seconds == 0 or duration_s <= 0:
            return
        plain = self._plain.get(kind.num_due)
        measured = duration_s / kind.seconds
        if num_drafts == 0:
            plain = measured if plain is None else plain
            usual = min(measured, _OUTLIER * plain)
            self._plain[kind.num_due] = _PLAIN_MEMORY * plain + (1 - _PLAIN_MEMORY) * usual
        elif plain is not None:
            predicted = kind.added_by(num_drafts)
            added = min(measured / plain, _OUTLIER * (1 + predicted)) - 1
            self._learn(added, predicted, _MEMORY)

    def _learn(self, added: float, predicted: float, memory: float) -> None:
        self._added = memory * self._added + added
        self._predicted = memory * self._predicted + predicted
        added = max(0.0, self._added)
        self._correction = (added + _PRIOR_WEIGHT) / (self._predicted + _PRIOR_WEIGHT)

    def _predict(
        self, chunks: Mapping[request.Sequence, int], due: Collection[request.Sequence]
    ) -> _Kind:
        counts = range(self._most_drafts + 1)
        sampled = [s for s, num_tokens in chunks.items() if num_tokens == s.num_uncomputed_tokens]
        seconds, added = 0.0, tuple(_COST_WITHOUT_MODEL * count for count in counts)
        model = self._step_time
        if model is not None:
            windows = model.cost.windows
            step = StepShape.of(
                ((s.num_computed_tokens, num_tokens) for s, num_tokens in chunks.items()),
                windows,
                len(sampled),
            )
            rows = StepShape.of(((s.num_computed_tokens, 1) for s in due), windows, len(due))
            predictions = [model.predict(with_more_rows(step, rows, n)).seconds for n in counts]
            seconds = predictions[0]
            added = tuple(prediction / seconds - 1 for prediction in predictions)
        tokens_per_due = len(sampled) / len(due) if model is not None else 1.0
        return _Kind(seconds, added, len(due), tokens_per_due, len(chunks) == len(due))


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
