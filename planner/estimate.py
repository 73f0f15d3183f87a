"""A candidate's steady state by formula: good enough to tell which are worth simulating."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.candidates import Question
from planner.sizing import Sized
from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig

_OVERLOADED = 0.97
"""Share of the arrivals' rate below which a server does not keep up with them."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A steady state by formula; times in seconds."""

    num_running: float
    requests_per_s: float
    """Of all lanes."""
    tpot_s: float
    ttft_s: float
    keeps_up: bool

    def e2e_s(self, num_output: float) -> float:
        return self.ttft_s + self.tpot_s * max(0.0, num_output - 1)


def estimate(question: Question, sized: Sized) -> Estimate:
    """The steady state in which ``n`` sequences decode beside the prefills that replace them.

    A request takes part in ``output`` decode steps and holds everyone up for its own prefill, so
    n of them take turns in ``output·decode(n) + n·prefill`` seconds.
    """
    workload = question.workload.share(sized.num_lanes)
    config = sized.lane_config(enable_prefix_caching=False)
    num_input, num_output = workload.mean_input, workload.mean_output
    held = num_input + num_output / 2
    most = max(1.0, min(config.max_num_seqs, config.num_blocks * config.block_size / held))

    def cycle_s(n: float) -> tuple[float, float]:
        decode_s = _decode_s(sized.model, n, held)
        return decode_s, _prefill_s(sized.model, n, held, num_input, config, decode_s)

    rate = workload.mean_rate
    if rate is None:
        n = most if workload.is_offline else min(most, float(workload.concurrency or most))
    else:
        n = _running_at(rate, num_output, most, cycle_s)
    decode_s, prefill_s = cycle_s(n)
    turn_s = num_output * decode_s + n * prefill_s
    capacity = n / turn_s
    keeps_up = rate is None or capacity >= rate * _OVERLOADED
    served = capacity if rate is None else min(capacity, rate)
    return Estimate(
        num_running=n,
        requests_per_s=served * question.workload.shares(sized.num_lanes),
        tpot_s=turn_s / num_output,
        ttft_s=prefill_s + decode_s,
        keeps_up=keeps_up,
    )


def _running_at(
    rate: float, num_output: float, most: float, cycle_s: Callable[[float], tuple[float, float]]
) -> float:
    """Sequences that run at once when ``rate`` arrive per second (Little's law), by bisection."""
    low, high = 1e-3, most
    for _ in range(30):
        middle = (low + high) / 2
        decode_s, prefill_s = cycle_s(max(1.0, middle))
        turn_s = num_output * decode_s + middle * prefill_s
        if middle < rate * turn_s:
            low = middle
        else:
            high = middle
    return max(1.0, high)


def _decode_s(model: StepTimeModel, n: float, held: float) -> float:
    return model.predict(_mixed_shape(model, n, held, 0, 0)).seconds


def _prefill_s(
    model: StepTimeModel,
    n: float,
    held: float,
    num_input: float,
    config: SchedulerConfig,
    decode_s: float,
) -> float:
    """What one prompt adds to the steps that it is computed in."""
    chunk = max(1.0, min(num_input, config.max_num_batched_tokens - n))
    num_chunks = max(1.0, num_input / chunk)
    shape = _mixed_shape(model, n, held, chunk, num_input)
    return max(1e-9, model.predict(shape).seconds - decode_s) * num_chunks


def _mixed_shape(
    model: StepTimeModel, n: float, held: float, chunk: float, num_input: float
) -> StepShape:
    sequences = [(int(held), 1)] * max(1, round(n))
    if chunk:
        sequences.append((int((num_input - chunk) / 2), max(1, int(chunk))))
    return StepShape.of(sequences, model.cost.windows, len(sequences))
