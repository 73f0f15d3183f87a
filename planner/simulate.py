"""The server in virtual time: the real scheduler, with the step-time model for an executor.

Nothing is executed and nobody waits, so a minute of serving takes milliseconds. HTTP and
tokenizing are what ``planner.host`` says of them; stop tokens are not modelled (every output has
the length that the workload says), nor is speculation (nobody knows what would be accepted).
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.host import HostOverheads
from planner.workload import Ask
from profiles.latency import RequestTimes
from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig
from scheduler.request import FinishReason, Request
from scheduler.sampling_params import SamplingParams
from scheduler.scheduler import Scheduler
from scheduler.step_plan import SequenceOutput, StepPlan, StepResult

PLACEHOLDER_TOKEN = 0
NO_OVERHEADS = HostOverheads()


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """What became of a request, in seconds of virtual time."""

    arrival_s: float
    first_token_s: float
    last_token_s: float
    input_tokens: int
    output_tokens: int

    @property
    def times(self) -> RequestTimes:
        """For the words of latency: the tokens between the first and the last are not kept."""
        between = [self.last_token_s] * (self.output_tokens - 1)
        return RequestTimes(self.arrival_s, [self.first_token_s, *between])


@dataclass(frozen=True, slots=True)
class Simulation:
    """A run: finished requests in the order of their arrival, and totals."""

    requests: tuple[SimulatedRequest, ...]
    duration_s: float
    busy_s: float
    num_steps: int
    num_preemptions: int
    extrapolated_s: float
    """Time in steps that the step-time model had to extrapolate for."""
    most_sequences: int
    """Largest number of sequences in one step."""

    @property
    def output_tokens_per_s(self) -> float:
        return sum(r.output_tokens for r in self.requests) / max(self.duration_s, 1e-12)

    @property
    def requests_per_s(self) -> float:
        return len(self.requests) / max(self.duration_s, 1e-12)


class SimulationTooLongError(RuntimeError):
    """The simulation used up its steps: the workload overwhelms the configuration."""


@dataclass(slots=True)
class _InFlight:
    ask: Ask
    arrival_s: float
    first_token_s: float = math.nan


class _Clients:
    """Who asks next: arrivals in time order, or the next request of a client that was answered.

    A request reaches the engine ``request_s`` after the front end took it up, give or take a
    half: without that jitter requests that end in one step would stay together for ever. The
    front end takes up the next one ``request_work_s`` later.
    """

    def __init__(self, asks: Sequence[Ask], concurrency: int | None, host: HostOverheads) -> None:
        self._rng = random.Random(len(asks))
        self._host = host
        self._front_end_free_s = 0.0
        self._rest: Iterator[Ask] = iter(asks)
        self._arrivals: list[tuple[float, int, float, Ask]] = []
        self._number = 0
        self._closed = concurrency is not None
        if concurrency is None:
            for ask in self._rest:
                self._push(ask.arrival_s, ask)
        else:
            for _ in range(concurrency):
                self.answered(0.0)

    def answered(self, now_s: float) -> None:
        """A client of a closed workload has its answer and asks again at once."""
        if self._closed and (ask := next(self._rest, None)) is not None:
            self._push(now_s, ask)

    @property
    def next_arrival_s(self) -> float:
        return self._arrivals[0][0] if self._arrivals else math.inf

    def take_until(self, now_s: float) -> Iterator[tuple[int, float, Ask]]:
        while self._arrivals and self._arrivals[0][0] <= now_s:
            _, number, sent_s, ask = heapq.heappop(self._arrivals)
            yield number, sent_s, ask

    def _push(self, sent_s: float, ask: Ask) -> None:
        taken_up_s = max(sent_s, self._front_end_free_s)
        self._front_end_free_s = taken_up_s + self._host.request_work_s
        reached_s = taken_up_s + self._host.request_s * self._rng.uniform(0.5, 1.5)
        heapq.heappush(self._arrivals, (reached_s, self._number, sent_s, ask))
        self._number += 1


def simulate(
    asks: Sequence[Ask],
    config: SchedulerConfig,
    model: StepTimeModel,
    *,
    concurrency: int | None = None,
    prefix_tokens: int = 0,
    host: HostOverheads = NO_OVERHEADS,
    max_steps: int = 200_000,
) -> Simulation:
    """Serves ``asks`` in virtual time; with ``concurrency`` so many clients take turns at them.

    ``host`` is what the server spends beside the engine's steps.

    Raises:
        InvalidParameterError: a request that could never run, being too long.
        SimulationTooLongError: more than ``max_steps`` leaps and steps were needed.
    """
    return _Host(asks, config, model, concurrency, prefix_tokens, host).run(max_steps)


class _Host:
    def __init__(
        self,
        asks: Sequence[Ask],
        config: SchedulerConfig,
        model: StepTimeModel,
        concurrency: int | None,
        prefix_tokens: int,
        host: HostOverheads,
    ) -> None:
        self._scheduler = Scheduler(config)
        self._model = model
        self._clients = _Clients(asks, concurrency, host)
        self._host = host
        self._lost_s = 0.0
        """What the front end took from the step that runs when requests arrive."""
        self._prefix_tokens = prefix_tokens
        self._in_flight: dict[str, _InFlight] = {}
        self._finished: list[SimulatedRequest] = []
        self._now_s = self._busy_s = self._extrapolated_s = 0.0
        self._num_steps = self._most_sequences = 0

    def run(self, max_steps: int) -> Simulation:
        turns = 0
        while True:
            self._admit()
            if not self._in_flight:
                if math.isinf(self._clients.next_arrival_s):
                    break
                self._now_s = self._clients.next_arrival_s
                continue
            num_steady = self._scheduler.num_steady_steps()
            if num_steady > 1:
                self._leap(num_steady)
            else:
                self._step()
            turns += 1
            if turns >= max_steps:
                raise SimulationTooLongError(f"not done after {max_steps} turns")
        self._finished.sort(key=lambda request: request.arrival_s)
        return Simulation(
            requests=tuple(self._finished),
            duration_s=self._now_s,
            busy_s=self._busy_s,
            num_steps=self._num_steps,
            num_preemptions=self._scheduler.stats().num_preemptions,
            extrapolated_s=self._extrapolated_s,
            most_sequences=self._most_sequences,
        )

    def _admit(self) -> None:
        for number, sent_s, ask in self._clients.take_until(self._now_s):
            if self._in_flight:
                self._lost_s += self._host.request_work_s
            request_id = str(number)
            self._in_flight[request_id] = _InFlight(ask, sent_s)
            sampling = SamplingParams(max_tokens=ask.output_tokens, seed=0, temperature=0.0)
            self._scheduler.add(
                Request(request_id, self._prompt(number, ask), sampling, arrival_time=sent_s)
            )

    def _prompt(self, number: int, ask: Ask) -> tuple[int, ...]:
        """Token ids that are equal exactly where the workload says that prompts are."""
        shared = 0 if ask.prefix is None else min(self._prefix_tokens, ask.input_tokens)
        # Block hashes chain, so a prompt whose first token is its own shares no block.
        own = (-2 - number,) * (ask.input_tokens - shared)
        return (1 + (ask.prefix or 0),) * shared + own

    def _step(self) -> None:
        plan = self._scheduler.schedule()
        if plan.scheduled:
            self._spend(self._shape(plan), 1)
        sampled = {s.sequence_id: (PLACEHOLDER_TOKEN,) for s in plan.scheduled if s.samples}
        for output in self._scheduler.update(plan, StepResult(sampled)):
            self._take_in(output)

    def _leap(self, num_steady: int) -> None:
        """Takes steady steps up to the next arrival; contexts grow by one token a step."""
        contexts = self._scheduler.running_contexts()
        shape = StepShape.of(
            ((context, 1) for context in contexts), self._model.cost.windows, len(contexts)
        )
        first_s = self._model.predict(shape).seconds + self._beside_s(shape)
        num_steps = num_steady
        if self._now_s + num_steady * first_s > self._clients.next_arrival_s:
            gap_s = self._clients.next_arrival_s - self._now_s
            num_steps = min(num_steady, max(1, math.ceil(gap_s / first_s)))
        # Every window's tokens grow linearly or not at all, so the middle step is the mean step.
        middle = StepShape.of(
            ((context + num_steps // 2, 1) for context in contexts),
            self._model.cost.windows,
            len(contexts),
        )
        self._scheduler.advance(num_steps, PLACEHOLDER_TOKEN)
        self._spend(middle, num_steps)

    def _shape(self, plan: StepPlan) -> StepShape:
        return StepShape.of(
            ((s.num_computed_tokens, s.num_tokens) for s in plan.scheduled),
            self._model.cost.windows,
            sum(s.samples for s in plan.scheduled),
        )

    def _spend(self, shape: StepShape, num_steps: int) -> None:
        step = self._model.predict(shape)
        self._now_s += num_steps * (step.seconds + self._beside_s(shape)) + self._lost_s
        self._lost_s = 0.0
        self._busy_s += num_steps * step.seconds
        self._extrapolated_s += num_steps * step.seconds * step.extrapolated
        self._num_steps += num_steps
        self._most_sequences = max(self._most_sequences, shape.num_sequences)

    def _beside_s(self, shape: StepShape) -> float:
        return self._host.step_s + self._host.token_s * shape.num_sampled

    def _take_in(self, output: SequenceOutput) -> None:
        request = self._in_flight[output.request_id]
        if math.isnan(request.first_token_s):
            request.first_token_s = self._now_s
        if output.finish_reason is None:
            return
        assert output.finish_reason is FinishReason.LENGTH
        del self._in_flight[output.request_id]
        self._finished.append(
            SimulatedRequest(
                arrival_s=request.arrival_s,
                first_token_s=request.first_token_s,
                last_token_s=self._now_s,
                input_tokens=request.ask.input_tokens,
                output_tokens=request.ask.output_tokens,
            )
        )
        self._clients.answered(self._now_s)
