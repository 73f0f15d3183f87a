"""What drafts cost: the time that their rows add to a step, in tokens that it would have brought.

The step-time model predicts the step with and without them. How much rows add differs from kernel
to kernel more than the rest of a step does, so measured steps correct the prediction: by the median
of what drafts added over what they were predicted to add. Without a model each draft is taken to
cost half a token.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler import request

_COST_WITHOUT_MODEL = 0.5
_ASKED_EVERY = 256
"""Steps after which the model is asked anew, since contexts have grown."""
_LEAST_CORRECTION, _MOST_CORRECTION = 0.25, 16.0
_LEAST_STEP = 0.03
_ENOUGH = 8
"""Steps without drafts that tell what steps with so many sequences usually take."""


class _Median:
    """Follows the median of factors, from 1: settles where as many are above as below, however
    far, so that steps which were interrupted count no more than others."""

    def __init__(self) -> None:
        self.value = 1.0
        self.count = 0

    def observe(self, *, is_above: bool) -> None:
        self.count += 1
        step = max(_LEAST_STEP, 0.5 / self.count)
        self.value *= math.exp(step if is_above else -step)


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
        self._plain: dict[int, _Median] = {}
        """Measured over predicted time of steps without drafts, by powers of two of their number of
        sequences."""
        self._correction = _Median()
        """Measured over predicted time that drafts add."""

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
            self._correction.value **= 0.5
        key = (len(chunks), sum(chunks.values()), len(due))
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = self._predict(chunks, due)
        self._kind = kind
        return kind.corrected(self._correction.value)

    def observe(self, num_drafts: int, duration_s: float) -> None:
        """Takes in that the step which was last asked for had so many drafts and took so long."""
        kind = self._kind
        if kind is None or not kind.is_decode or kind.seconds == 0 or duration_s <= 0:
            return
        plain = self._plain.setdefault(kind.num_due.bit_length(), _Median())
        measured = duration_s / kind.seconds
        if num_drafts == 0:
            plain.observe(is_above=measured > plain.value)
        elif plain.count >= _ENOUGH:
            predicted = self._correction.value * kind.added_by(num_drafts)
            self._correction.observe(is_above=measured / plain.value - 1 > predicted)
            value = max(_LEAST_CORRECTION, min(self._correction.value, _MOST_CORRECTION))
            self._correction.value = value

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
