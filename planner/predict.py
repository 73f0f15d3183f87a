"""What a candidate promises, by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.candidates import Question
from planner.estimate import Estimate, estimate
from planner.host import host_overheads
from planner.plan import Interval, Percentiles, Prediction
from planner.simulate import (
    SimulatedRequest,
    Simulation,
    SimulationTooLongError,
    simulate,
)
from planner.sizing import Sized
from planner.workload import Ask, Workload
from profiles.latency import percentile
from scheduler.config import SchedulerConfig

LEVEL = 0.9
_LEVEL_SIGMAS = 1.645
"""Standard deviations on either side that hold 90 % of a normal distribution."""
_SKETCH_REQUESTS = 96
"""Enough to tell candidates apart ..."""
_THOROUGH_REQUESTS = 240
"""... and for the percentiles of the plan."""
_FEWEST_REQUESTS = 24
_MOST_REQUESTS = 1024
_SIMULATED_TURNS = 60_000


@dataclass(frozen=True, slots=True)
class Simulated:
    """A candidate with what it promises."""

    sized: Sized
    estimate: Estimate
    simulation: Simulation
    prediction: Prediction
    overloaded: bool


def run(question: Question, sized: Sized, *, thorough: bool = False) -> Simulated:
    """Simulates a candidate and sums up what came of it.

    A thorough run has more requests and, for open workloads, error bars from runs with slower
    and faster steps: waiting times do not just scale with them.
    """
    guess = estimate(question, sized)
    most = _num_requests(question, sized, guess, thorough)
    try:
        simulation = predict(question, sized, most)
    except SimulationTooLongError:
        # So far behind that its percentiles would mean nothing: the formula's word must do.
        simulation = predict(_lightened(question), sized, most)
        prediction = summarize(question, sized, simulation)
        return Simulated(sized, guess, simulation, prediction, overloaded=True)
    bounds = None
    if thorough and question.workload.mean_rate is not None:
        spread = sized.model.relative_spread
        bounds = (
            predict(question, sized, most, scale=_shrink(spread)),
            predict(question, sized, most, scale=_grow(spread)),
        )
    return Simulated(
        sized,
        guess,
        simulation,
        summarize(question, sized, simulation, bounds),
        is_overloaded(question, sized, simulation),
    )


def _num_requests(question: Question, sized: Sized, guess: Estimate, thorough: bool) -> int:
    """Requests of one lane that show the steady state; as many as the user counted."""
    workload = question.workload.share(sized.num_lanes)
    if workload.num_requests is not None:
        return min(workload.num_requests, _MOST_REQUESTS)
    least = _THOROUGH_REQUESTS if thorough else _SKETCH_REQUESTS
    if workload.concurrency is not None:
        # The first wave is left out, see ``_steady_requests``.
        waves = 4 if thorough else 2
        more = min((waves - 1) * workload.concurrency, least)
        return max(_FEWEST_REQUESTS, workload.concurrency + more)
    if workload.is_offline:
        batches = 3 if thorough else 2
        return min(_MOST_REQUESTS, max(least, int(batches * guess.num_running)))
    return least


def _lightened(question: Question) -> Question:
    return replace(question, workload=replace(question.workload, num_requests=8, trace=()))


def predict(question: Question, sized: Sized, most: int, *, scale: float = 1.0) -> Simulation:
    """Simulates one lane under its share of the workload, ``most`` requests of it; ``scale``
    slows every step.

    Raises:
        SimulationTooLongError: the workload overwhelms the candidate.
    """
    workload = question.workload.share(sized.num_lanes)
    asks = workload.draw(most)
    caching = bool(workload.prefix_tokens) and question.pins.enable_prefix_caching is not False
    config = sized.lane_config(caching)
    if not caching:
        config = _without_idle_blocks(config, asks)
    return simulate(
        asks,
        config,
        sized.model.scaled(scale),
        concurrency=workload.concurrency,
        prefix_tokens=workload.prefix_tokens,
        host=host_overheads(sized.candidate.profile, sized.candidate.engine),
        max_steps=_SIMULATED_TURNS,
    )


def _without_idle_blocks(config: SchedulerConfig, asks: Sequence[Ask]) -> SchedulerConfig:
    """The same limits with only so many blocks as these requests can fill: a large pool takes
    longer to set up than the simulation to run."""
    longest = max(ask.input_tokens + ask.output_tokens for ask in asks)
    per_sequence = -(-longest // config.block_size) + 1
    useful = per_sequence * (min(config.max_num_seqs, len(asks)) + 1)
    if useful >= config.num_blocks:
        return config
    length = min(config.max_model_len, useful * config.block_size)
    return replace(config, num_blocks=useful, max_model_len=length)


def summarize(
    question: Question,
    sized: Sized,
    simulation: Simulation,
    bounds: tuple[Simulation, Simulation] | None = None,
) -> Prediction:
    """The simulation's percentiles with error bars, for all lanes together.

    ``bounds`` are runs with faster and with slower steps; without them every time scales with
    the steps' spread.
    """
    workload = question.workload.share(sized.num_lanes)
    requests = _steady_requests(workload, simulation)
    times = [request.times for request in requests]
    spread = sized.model.relative_spread
    faster, slower = bounds or (None, None)
    rate = _rate_per_s(workload, simulation, requests)
    rate *= question.workload.shares(sized.num_lanes)
    tokens = rate * sum(r.output_tokens for r in requests) / len(requests)
    met = sum(question.slo.is_met(t) for t in times) / len(times)

    def percentiles(name: str) -> Percentiles:
        low = _quantiles(faster or simulation, workload, name, 1 if faster else _shrink(spread))
        high = _quantiles(slower or simulation, workload, name, 1 if slower else _grow(spread))
        p50, p90, p99 = _quantiles(simulation, workload, name, 1.0)
        pairs = [
            (round(min(a, value), 3), round(max(b, value), 3))
            for a, b, value in zip(low, high, (p50, p90, p99), strict=True)
        ]
        return Percentiles(round(p50, 3), round(p90, 3), round(p99, 3), Interval(LEVEL, *pairs))

    open_loop = workload.mean_rate is not None
    low_share = 1.0 if open_loop else 1 / _grow(spread)
    high_share = 1.0 if open_loop else 1 / _shrink(spread)
    return Prediction(
        ttft_ms=percentiles("ttft"),
        tpot_ms=percentiles("tpot"),
        e2e_ms=percentiles("e2e"),
        output_tokens_per_s=round(tokens, 3),
        output_tokens_per_s_interval=(round(tokens * low_share, 3), round(tokens * high_share, 3)),
        requests_per_s=round(rate, 4),
        requests_per_s_interval=(round(rate * low_share, 4), round(rate * high_share, 4)),
        goodput_per_s=round(rate * met, 4),
        slo_attainment=round(met, 4),
        utilization=round(min(1.0, simulation.busy_s / max(simulation.duration_s, 1e-9)), 4),
        extrapolated=simulation.extrapolated_s > 0.01 * simulation.busy_s,
    )


def _grow(spread: float) -> float:
    return 1 + _LEVEL_SIGMAS * spread


def _shrink(spread: float) -> float:
    return 1 / _grow(spread)


def _steady_requests(workload: Workload, simulation: Simulation) -> Sequence[SimulatedRequest]:
    """Without the first wave of a closed workload, unless the user counted the requests."""
    requests = simulation.requests
    if workload.concurrency is None or workload.num_requests is not None:
        return requests
    steady = requests[workload.concurrency :]
    return steady or requests


def _rate_per_s(
    workload: Workload, simulation: Simulation, requests: Sequence[SimulatedRequest]
) -> float:
    """Requests per second of one lane in the steady state."""
    if workload.num_requests is None and workload.concurrency is not None:
        # Little's law: the clients are always waiting for an answer, each for the mean time.
        mean_s = sum(r.last_token_s - r.arrival_s for r in requests) / len(requests)
        return workload.concurrency / max(mean_s, 1e-9)
    served = len(requests) / max(simulation.duration_s, 1e-9)
    if workload.mean_rate is None or _falls_behind(simulation):
        return served
    return workload.mean_rate


def _quantiles(
    simulation: Simulation, workload: Workload, name: str, scale: float
) -> tuple[float, float, float]:
    times = [request.times for request in _steady_requests(workload, simulation)]
    values = [getattr(t, name) for t in times]
    known = [1e3 * scale * value for value in values if value is not None] or [0.0]
    return percentile(known, 50), percentile(known, 90), percentile(known, 99)


def is_overloaded(question: Question, sized: Sized, simulation: Simulation) -> bool:
    """Whether requests of an open workload arrive faster than they are served."""
    rate = question.workload.share(sized.num_lanes).mean_rate
    return rate is not None and _falls_behind(simulation)


def _falls_behind(simulation: Simulation) -> bool:
    """Whether the last requests waited as only a growing queue makes them wait."""
    if len(simulation.requests) < _FEWEST_REQUESTS:
        return False
    arrivals_s = simulation.requests[-1].arrival_s
    lag_s = simulation.duration_s - arrivals_s
    longest = max(r.last_token_s - r.first_token_s for r in simulation.requests)
    return lag_s > 0.25 * arrivals_s + 2 * longest
