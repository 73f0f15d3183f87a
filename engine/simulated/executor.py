"""An executor without a model: it says how long a step takes, and placeholder tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler.step_plan import StartedSequence, StepPlan, StepResult


@dataclass(slots=True)
class _Answer:
    """How far a sequence's answer has come."""

    num_output: int
    ends_after: int | None
    """Tokens of text after which ``end_token`` follows; None leaves the end to ``max_tokens``."""
    end_token: int


class SimulatedExecutor:
    """Carries out steps by predicting them; whoever calls it lets the time pass.

    Every answer is ``placeholder`` over and over, as many tokens as the request asks for. One
    whose length nobody asked for (it may fill the context) says the text once and then ends with
    one of ``end_token_ids``, if that stops the request. Nobody drafts it: what would be accepted of
    a real answer is not known here.
    """

    def __init__(
        self,
        model: StepTimeModel,
        placeholder: Sequence[int],
        *,
        end_token_ids: Sequence[int] = (),
        max_model_len: int,
    ) -> None:
        self._model = model
        self._placeholder = placeholder
        self._end_token_ids = end_token_ids
        self._max_model_len = max_model_len
        self._answers: dict[int, _Answer] = {}

    @property
    def num_sequences(self) -> int:
        """Sequences that have started and have not been dropped."""
        return len(self._answers)

    def execute(self, plan: StepPlan) -> StepResult:
        """The tokens of a step; ``duration_s`` is what the step-time model predicts for it."""
        for sequence_id in plan.dropped:
            del self._answers[sequence_id]
        for started in plan.started:
            self._answers[started.sequence_id] = self._start(started)
        if not plan.scheduled:
            return StepResult()
        sampled = {
            s.sequence_id: (self._sample(s.sequence_id),) for s in plan.scheduled if s.samples
        }
        shape = StepShape.of(
            ((s.num_computed_tokens, s.num_tokens) for s in plan.scheduled),
            self._model.cost.windows,
            len(sampled),
        )
        return StepResult(sampled, self._model.predict(shape).seconds)

    def check(self) -> None:
        """Nothing of it can break."""

    def _start(self, started: StartedSequence) -> _Answer:
        sampling = started.sampling
        fills_context = started.num_prompt_tokens + sampling.max_tokens >= self._max_model_len
        ends = [token for token in self._end_token_ids if token in sampling.stop_token_ids]
        return _Answer(
            num_output=len(started.token_ids) - started.num_prompt_tokens,
            ends_after=max(len(self._placeholder), sampling.min_tokens)
            if fills_context and ends
            else None,
            end_token=ends[0] if ends else 0,
        )

    def _sample(self, sequence_id: int) -> int:
        answer = self._answers[sequence_id]
        position = answer.num_output
        answer.num_output += 1
        if answer.ends_after is not None and position >= answer.ends_after:
            return answer.end_token
        return self._placeholder[position % len(self._placeholder)]
