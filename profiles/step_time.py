"""How long a step takes: analytic terms, coefficients from the profile, honest error bars.

A step's duration is a sum of eight terms, each in seconds as the device's profile promises them:

    overhead        launching the step and its layers
    linear          the matrix products of the layers: a roofline of weight bytes and operations
    head            the product with the vocabulary, for the rows that are sampled
    kv              keys, values and recurrent state read and written
    attention       operations on query-key pairs
    tokens          what every token costs outside the products
    sequences       what every sequence costs on the host, and sampling
    communication   all-reduces between devices, hops between pipeline stages

``StepTimeModel`` is a value: the terms times coefficients (all 1 until fitted). ``StepTimeFit``
learns the coefficients from measured steps, see there.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from profiles.step_cost import StepCost, StepShape

TERMS = (
    "overhead",
    "linear",
    "head",
    "kv",
    "attention",
    "tokens",
    "sequences",
    "communication",
)
Terms = tuple[float, ...]
"""One value for each of ``TERMS``."""

_ROOFLINE_SHARPNESS = 4.0
"""Exponent of the norm that joins memory and compute time near the ridge, where neither hides the
other completely: 19 % above the larger one when both are equal."""
_EXTRAPOLATION_SPREAD = 2.0
"""How much wider the error bar is outside what was seen."""
_DOMAIN_MARGIN = 1.5


@dataclass(frozen=True, slots=True)
class Priors:
    """How near an engine comes to a device's datasheet before anything is measured.

    Shares are of the peak, overheads in seconds. See ``profiles/priors.yaml`` for where the
    values come from.
    """

    bandwidth: float
    """Share of the memory bandwidth that reading weights reaches."""
    kv_bandwidth: float
    matmul: float
    """Share of the dense peak that a product with many rows reaches."""
    attention: float
    step_overhead_s: float
    layer_overhead_s: float
    sequence_overhead_s: float
    token_overhead_s: float
    link: float = 0.7
    """Share of the link's bandwidth that an all-reduce reaches."""
    collective_latency_s: float = 0.0
    """Of one all-reduce between two devices; grows with the number of devices."""
    collective_growth: float = 0.0
    """Exponent of that growth: latency times (devices / 2) to this power."""
    matmul_half_rows: float = 0.0
    """Rows at which products reach half of ``matmul``."""
    activation_passes: float = 8.0
    """Times that a hidden vector passes through memory in a layer: in and out of the norms, the
    residual and each product's output."""
    spread: float = 0.2
    """Relative standard deviation of measured over predicted."""


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Operations per second that products reach, by their number of rows (ascending)."""

    rows: tuple[float, ...]
    flops: tuple[float, ...]

    def __post_init__(self) -> None:
        paired = 0 < len(self.rows) == len(self.flops)
        ascending = list(self.rows) == sorted(set(self.rows))
        if not (paired and ascending and self.rows[0] > 0 and min(self.flops) > 0):
            raise ValueError("a rate curve needs ascending numbers of rows, each with its rate")

    def at(self, num_rows: float) -> float:
        """Between two measured numbers of rows, linear in the time that the product takes."""
        rows, flops = self.rows, self.flops
        if num_rows <= rows[0]:
            return flops[0] * num_rows / rows[0]  # time is that of the fewest rows measured
        if num_rows >= rows[-1]:
            return flops[-1]
        above = bisect_left(rows, num_rows)
        low, high = rows[above - 1], rows[above]
        share = (num_rows - low) / (high - low)
        seconds = (1 - share) * low / flops[above - 1] + share * high / flops[above]
        return num_rows / seconds


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """Peaks of one device for one model and number format."""

    bandwidth_bytes_per_s: float
    linear_flops: float
    """At the type that the layers' products run in."""
    dense_flops: float
    """At the type of activations: attention."""
    link_bytes_per_s: float = math.inf
    hop_bytes_per_s: float = math.inf
    """Between pipeline stages."""
    head_flops: float | None = None
    """At the type that the product with the vocabulary runs in; None is ``dense_flops``."""
    linear_curve: RateCurve | None = None
    """Measured products of the layers; None is the roofline."""
    expert_curve: RateCurve | None = None
    """Measured products of one matrix, for experts, each of which has fewer rows than a step has
    tokens; None where ``linear_curve`` is of all of a model's layers together."""
    head_curve: RateCurve | None = None
    """Of the head, where it was measured by itself."""

    @property
    def head_peak(self) -> float:
        return self.dense_flops if self.head_flops is None else self.head_flops


@dataclass(frozen=True, slots=True)
class Domain:
    """The largest step that the coefficients were learned from."""

    num_tokens: float = math.inf
    num_sequences: float = math.inf
    kv_tokens: float = math.inf

    def covers(self, shape: StepShape) -> bool:
        """Whether a step is no further out than half as large again."""
        return (
            shape.num_tokens <= self.num_tokens * _DOMAIN_MARGIN
            and shape.num_sequences <= self.num_sequences * _DOMAIN_MARGIN
            and max(shape.kv_tokens, default=0.0) <= self.kv_tokens * _DOMAIN_MARGIN
        )


@dataclass(frozen=True, slots=True)
class FitKey:
    """What coefficients were learned of: a model as an engine holds and computes it."""

    engine: str
    model: str
    """``ModelSpec.fingerprint`` of the model."""
    dtype: str
    """Of activations."""
    weights: str
    """Their scheme, or the type of unquantized ones, as ``LinearRate.dtype`` has it."""
    kv_cache_dtype: str


@dataclass(frozen=True, slots=True)
class FittedCoefficients:
    """What a ``StepTimeFit`` learned of one model on one device, to be kept in its profile."""

    key: FitKey
    coefficients: Terms
    spread: float
    domain: Domain
    num_steps: int
    date: str
    linear_curve: RateCurve | None = None
    """The model's own products, all layers together; None where they were not measured apart."""
    head_curve: RateCurve | None = None


@dataclass(frozen=True, slots=True)
class StepTime:
    """A prediction: the mean and one standard deviation, in seconds."""

    seconds: float
    spread_s: float
    extrapolated: bool = False
    """Outside the domain that the coefficients were learned in."""


@dataclass(frozen=True, slots=True)
class StepTimeModel:
    """Predicts the duration of steps of one model on one kind of device.

    ``pipeline_parallel_size`` stages lie in a row: the prediction is the time that a batch takes
    through all of them.
    """

    cost: StepCost
    rates: DeviceRates
    priors: Priors
    pipeline_parallel_size: int = 1
    coefficients: Terms = (1.0,) * len(TERMS)
    spread: float | None = None
    """Relative; None is that of the priors."""
    domain: Domain = field(default_factory=Domain)

    @property
    def relative_spread(self) -> float:
        return self.priors.spread if self.spread is None else self.spread

    def scaled(self, factor: float) -> StepTimeModel:
        """The same model for steps that all take ``factor`` times as long."""
        return replace(self, coefficients=tuple(factor * c for c in self.coefficients))

    def predict(self, shape: StepShape) -> StepTime:
        """Never faster than the roofline."""
        explained = sum(
            c * term for c, term in zip(self.coefficients, self.terms(shape), strict=True)
        )
        seconds = max(explained, self.floor_s(shape))
        spread = self.relative_spread
        extrapolated = not self.domain.covers(shape)
        if extrapolated:
            spread *= _EXTRAPOLATION_SPREAD
        return StepTime(seconds, spread * seconds, extrapolated)

    def with_fit(self, fit: FittedCoefficients) -> StepTimeModel:
        """The same model with what calibration learned of it."""
        rates = replace(
            self.rates,
            linear_curve=fit.linear_curve or self.rates.linear_curve,
            expert_curve=None if fit.linear_curve else self.rates.expert_curve,
            head_curve=fit.head_curve or self.rates.head_curve,
        )
        return replace(
            self,
            rates=rates,
            coefficients=fit.coefficients,
            spread=fit.spread,
            domain=fit.domain,
        )

    def floor_s(self, shape: StepShape) -> float:
        """Seconds below which the device's peaks do not allow this step."""
        return max(self.memory_floor_s(shape), self.compute_floor_s(shape))

    def memory_floor_s(self, shape: StepShape) -> float:
        """Seconds that the step's bytes take at the peak of the memory's bandwidth."""
        num_bytes = self.cost.bytes_read(shape) + self.cost.kv_bytes_written(shape)
        return num_bytes / self.rates.bandwidth_bytes_per_s

    def compute_floor_s(self, shape: StepShape) -> float:
        """Seconds that the step's operations take at the peak of arithmetic."""
        cost, rates = self.cost, self.rates
        return (
            cost.linear_flops(shape.num_tokens) / rates.linear_flops
            + cost.head_flops_per_row * shape.num_sampled / rates.head_peak
            + cost.attention_flops(shape) / rates.dense_flops
        )

    def terms(self, shape: StepShape) -> Terms:
        """Seconds of each term before coefficients, in the order of ``TERMS``."""
        cost, rates, priors = self.cost, self.rates, self.priors
        stages = self.pipeline_parallel_size
        overhead = stages * priors.step_overhead_s + cost.num_layers * priors.layer_overhead_s
        linear = self._layers_s(shape.num_tokens)
        head = 0.0
        if shape.num_sampled:
            head_flops = cost.head_flops_per_row * shape.num_sampled
            head = self._product_s(
                cost.head_bytes,
                head_flops,
                rates.head_peak,
                shape.num_sampled,
                rates.head_curve or rates.linear_curve,
            )
        kv = cost.kv_bytes(shape) / (rates.bandwidth_bytes_per_s * priors.kv_bandwidth)
        attention = cost.attention_flops(shape) / (rates.dense_flops * priors.attention)
        stream = rates.bandwidth_bytes_per_s * priors.bandwidth
        tokens = shape.num_tokens * (
            priors.token_overhead_s
            + priors.activation_passes * cost.num_layers * cost.hidden_bytes / stream
        )
        sequences = (
            shape.num_sequences * priors.sequence_overhead_s
            + shape.num_sampled * cost.sampled_bytes_per_row / stream
        )
        return (
            overhead,
            linear,
            head,
            kv,
            attention,
            tokens,
            sequences,
            self._communication_s(shape),
        )

    def _layers_s(self, num_tokens: int) -> float:
        """Of the layers' products."""
        cost, rates = self.cost, self.rates
        flops, routed_s = cost.linear_flops(num_tokens), 0.0
        if rates.expert_curve is not None:
            flops = num_tokens * cost.linear_flops_per_token
            for group in cost.experts:
                rate = rates.expert_curve.at(group.rows_each(num_tokens))
                routed_s += num_tokens * group.flops_per_token / rate
        num_bytes = cost.weight_bytes_read(num_tokens)
        peak, curve = rates.linear_flops, rates.linear_curve
        return routed_s + self._product_s(num_bytes, flops, peak, num_tokens, curve)

    def _product_s(
        self, num_bytes: float, flops: float, peak: float, num_rows: int, curve: RateCurve | None
    ) -> float:
        if curve is not None:
            return flops / curve.at(num_rows)
        memory = num_bytes / (self.rates.bandwidth_bytes_per_s * self.priors.bandwidth)
        reached = self.priors.matmul * num_rows / (num_rows + self.priors.matmul_half_rows)
        compute = flops / (peak * reached)
        larger, smaller = max(memory, compute), min(memory, compute)
        ratio = smaller / larger
        joined: float = (1 + ratio**_ROOFLINE_SHARPNESS) ** (1 / _ROOFLINE_SHARPNESS)
        return larger * joined

    def _communication_s(self, shape: StepShape) -> float:
        cost, rates, priors = self.cost, self.rates, self.priors
        seconds = 0.0
        if cost.num_collectives:
            growth = (cost.tensor_parallel_size / 2) ** priors.collective_growth
            seconds += cost.num_collectives * priors.collective_latency_s * growth
            num_bytes = cost.collective_bytes_per_token * shape.num_tokens
            seconds += num_bytes / (rates.link_bytes_per_s * priors.link)
        if self.pipeline_parallel_size > 1:
            hop = shape.num_tokens * cost.hidden_bytes / (rates.hop_bytes_per_s * priors.link)
            seconds += (self.pipeline_parallel_size - 1) * (priors.collective_latency_s + hop)
        return seconds


class StepTimeFit:
    """Learns a model's coefficients from measured steps.

    Ridge regression on relative errors around the coefficients it starts from, so that a term
    which the steps seen so far say nothing about keeps its prior. Robust: a step whose error is
    ``_OUTLIER`` standard deviations gets Huber's weight. Non-negative: solved by coordinate
    descent on the normal equations (Franc et al., 2005). Forgetting: the weight of a step
    halves every ``half_life`` steps, so coefficients follow a machine that changes.
    """

    _OUTLIER = 2.0
    _PRIOR_WEIGHT = 4.0
    """Steps that the prior is worth, against which each term's coefficient is pulled."""
    _REFRESH_EVERY = 16
    _LEAST_SPREAD = 0.01

    def __init__(self, model: StepTimeModel, *, half_life: float = 2000.0) -> None:
        self.model = model
        self._prior = model.coefficients
        self._keep = 0.5 ** (1 / half_life)
        size = len(TERMS)
        self._gram = [[0.0] * size for _ in range(size)]
        self._target = [0.0] * size
        self._squares = 0.0
        self._weight = 0.0
        self._num_observed = 0

    @property
    def num_observed(self) -> int:
        return self._num_observed

    def observe(self, shape: StepShape, seconds: float) -> None:
        """Takes in one measured step; every so many steps the model is renewed.

        Raises:
            ValueError: a duration that is none.
        """
        if not 0 < seconds < math.inf:
            raise ValueError(f"a step cannot take {seconds} seconds")
        terms = [term / seconds for term in self.model.terms(shape)]
        predicted = sum(c * t for c, t in zip(self.model.coefficients, terms, strict=True))
        error = abs(predicted - 1)
        spread = self._current_spread()
        weight = 1.0
        if self._num_observed >= self._REFRESH_EVERY and error > self._OUTLIER * spread:
            weight = self._OUTLIER * spread / error
        self._accumulate(terms, weight, error)
        self._widen_domain(shape)
        self._num_observed += 1
        if self._num_observed % self._REFRESH_EVERY == 0:
            self.refresh()

    def refresh(self) -> StepTimeModel:
        """Solves for the coefficients and returns the renewed model."""
        coefficients = self._solve()
        self.model = replace(self.model, coefficients=coefficients, spread=self._current_spread())
        return self.model

    def _accumulate(self, terms: Sequence[float], weight: float, error: float) -> None:
        for i, row in enumerate(self._gram):
            scaled = weight * terms[i]
            self._target[i] = self._keep * self._target[i] + scaled
            for j, term in enumerate(terms):
                row[j] = self._keep * row[j] + scaled * term
        self._squares = self._keep * self._squares + weight * error * error
        self._weight = self._keep * self._weight + weight

    def _solve(self) -> Terms:
        # The prior pulls in units of each term's own mean share, so that it weighs the same for
        # a term of milliseconds and for one of nanoseconds.
        size = len(TERMS)
        pull = [
            self._PRIOR_WEIGHT * self._gram[i][i] / self._weight if self._weight else 0.0
            for i in range(size)
        ]
        solution = list(self.model.coefficients)
        for _ in range(200):
            largest_change = 0.0
            for i in range(size):
                diagonal = self._gram[i][i] + pull[i]
                if diagonal <= 1e-18:
                    continue
                rest = sum(self._gram[i][j] * solution[j] for j in range(size) if j != i)
                wanted = (self._target[i] + pull[i] * self._prior[i] - rest) / diagonal
                wanted = max(0.0, wanted)
                largest_change = max(largest_change, abs(wanted - solution[i]))
                solution[i] = wanted
            if largest_change < 1e-6:
                break
        return tuple(solution)

    def _current_spread(self) -> float:
        if self._weight < 1.0:
            return self.model.priors.spread
        # The prior counts as a few steps here too: two lucky steps prove no precision.
        prior = self._PRIOR_WEIGHT * self.model.priors.spread**2
        variance = (self._squares + prior) / (self._weight + self._PRIOR_WEIGHT)
        return max(self._LEAST_SPREAD, math.sqrt(variance))

    def _widen_domain(self, shape: StepShape) -> None:
        seen = self.model.domain if self._num_observed else Domain(0, 0, 0)
        self.model = replace(
            self.model,
            domain=Domain(
                max(seen.num_tokens, shape.num_tokens),
                max(seen.num_sequences, shape.num_sequences),
                max(seen.kv_tokens, max(shape.kv_tokens, default=0.0)),
            ),
        )
