"""The figures of all steps, added up as they come: counters and histograms."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from engine.step_figures import StepFigures, StepPhase

STEP_SECONDS = (
    *(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
ERROR_RATIOS = (-1.0, -0.5, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
ROOF_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
HOST_SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.05, 0.1)
POWERS_OF_TWO = tuple(2.0**exponent for exponent in range(15))
ITERATION_TOKENS = (1.0, *(2.0**exponent for exponent in range(3, 15)))
"""vLLM's boundaries: 1, 8, 16, … 16384."""


class Tally:
    """A histogram: how many values lie up to each boundary, and their sum."""

    __slots__ = ("boundaries", "counts", "total")

    def __init__(self, boundaries: Sequence[float]) -> None:
        self.boundaries = boundaries
        self.counts = [0] * (len(boundaries) + 1)
        """Of values above the boundary before and up to this one; the last is above them all."""
        self.total = 0.0

    @property
    def num_values(self) -> int:
        return sum(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.boundaries, value)] += 1
        self.total += value


class PhaseTotals:
    """The steps of one phase."""

    def __init__(self) -> None:
        self.duration = Tally(STEP_SECONDS)
        self.predicted = Tally(STEP_SECONDS)
        self.error = Tally(ERROR_RATIOS)
        """Measured over predicted, less one."""
        self.bandwidth_share = Tally(ROOF_SHARES)
        """Of the peak of the memory's bandwidth."""
        self.flops_share = Tally(ROOF_SHARES)
        self.num_sequences = Tally(POWERS_OF_TWO)
        self.num_tokens = Tally(POWERS_OF_TWO)

    def observe(self, step: StepFigures) -> None:
        self.duration.observe(step.duration_s)
        self.num_sequences.observe(step.num_sequences)
        self.num_tokens.observe(step.num_tokens)
        predicted = step.prediction
        if predicted is None or step.duration_s <= 0 or predicted.seconds <= 0:
            return
        self.predicted.observe(predicted.seconds)
        self.error.observe(step.duration_s / predicted.seconds - 1)
        self.bandwidth_share.observe(predicted.memory_floor_s / step.duration_s)
        self.flops_share.observe(predicted.compute_floor_s / step.duration_s)


class StepTotals:
    """All steps since it was made, whichever engine process took them."""

    def __init__(self) -> None:
        self.by_phase = {phase: PhaseTotals() for phase in StepPhase}
        self.iteration_tokens = Tally(ITERATION_TOKENS)
        self.host_seconds = Tally(HOST_SECONDS)
        self.flops = 0.0
        self.bytes_read = 0.0
        self.bytes_written = 0.0

    def observe(self, step: StepFigures) -> None:
        self.by_phase[step.phase].observe(step)
        self.iteration_tokens.observe(step.num_iteration_tokens)
        self.host_seconds.observe(step.host_s)
        if step.prediction is not None:
            self.flops += step.prediction.flops
            self.bytes_read += step.prediction.bytes_read
            self.bytes_written += step.prediction.bytes_written
