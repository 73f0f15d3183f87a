"""What will be asked of the server: arrivals and lengths, written in one line or as a trace.

    input=512,output=128,rate=4                  open: Poisson arrivals, requests per second
    input=512,output=128,concurrency=16          closed: each client asks again when answered
    input=512,output=128,rate=inf                offline: everything is there from the start

A length is a number or a distribution: ``uniform:100:900``, ``normal:512:100`` (mean, standard
deviation) or ``lognormal:512:0.8`` (median, sigma). ``arrival`` is ``poisson``, ``constant`` or
``gamma:CV``. ``prefix=256`` says that each prompt begins with one of ``prefixes=N`` beginnings
that requests share.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

DEFAULT_CONCURRENCY = 16
MAX_LENGTH = 10_000_000
MAX_REQUESTS = 100_000


class WorkloadError(ValueError):
    """A workload that cannot be read; one line."""


@dataclass(frozen=True, slots=True)
class Length:
    """A number of tokens, fixed or distributed; ``mean`` and ``spread`` depend on ``kind``."""

    kind: str
    first: float
    second: float = 0.0

    @classmethod
    def parse(cls, text: str, name: str) -> Length:
        """Reads ``512``, ``uniform:LOW:HIGH``, ``normal:MEAN:SD`` or ``lognormal:MEDIAN:SIGMA``.

        Raises:
            WorkloadError: it is none of these.
        """
        kind, *values = text.split(":")
        try:
            if not values:
                length = cls("fixed", float(int(kind)))
            elif kind in ("uniform", "normal", "lognormal") and len(values) == 2:
                length = cls(kind, float(values[0]), float(values[1]))
            else:
                raise ValueError
        except ValueError:
            raise WorkloadError(
                f"{name}={text} is no length; write 512, uniform:100:900, normal:512:100 or "
                "lognormal:512:0.8"
            ) from None
        in_order = length.kind != "uniform" or length.first <= length.second
        if not (1 <= length.first <= MAX_LENGTH and 0 <= length.second <= MAX_LENGTH and in_order):
            raise WorkloadError(f"{name}={text} must be between 1 and {MAX_LENGTH} tokens")
        return length

    @property
    def mean(self) -> float:
        match self.kind:
            case "uniform":
                return (self.first + self.second) / 2
            case "lognormal":
                return self.first * math.exp(self.second**2 / 2)
            case _:
                return self.first

    def draw(self, rng: random.Random) -> int:
        match self.kind:
            case "uniform":
                value = rng.uniform(self.first, self.second)
            case "normal":
                value = rng.gauss(self.first, self.second)
            case "lognormal":
                value = self.first * math.exp(rng.gauss(0, self.second))
            case _:
                value = self.first
        return int(min(MAX_LENGTH, max(1, round(value))))

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.first:g}"
        return f"{self.kind}:{self.first:g}:{self.second:g}"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: when it arrives (seconds; 0 in closed and offline workloads) and its sizes."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    prefix: int | None = None
    """Which shared beginning the prompt has."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A stream of requests; exactly one of ``rate``, ``concurrency`` and ``trace`` is set."""

    input: Length = Length("fixed", 512)
    output: Length = Length("fixed", 128)
    rate: float | None = None
    """Requests per second; infinite is offline."""
    concurrency: int | None = None
    """Clients that take turns."""
    arrival: str = "poisson"
    prefix_tokens: int = 0
    num_prefixes: int = 1
    num_requests: int | None = None
    seed: int = 0
    trace: tuple[Ask, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Reads ``key=value,...`` as in the module's docstring, or ``trace=FILE``.

        Raises:
            WorkloadError: with the key that is wrong.
        """
        values: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = part.strip().partition("=")
            if not equals or not value:
                raise WorkloadError(f"workload: {part.strip()!r} is not key=value")
            if key not in _KEYS:
                raise WorkloadError(f"workload: unknown key {key!r}; known: {', '.join(_KEYS)}")
            if key in values:
                raise WorkloadError(f"workload: {key} is given twice")
            values[key] = value
        if "trace" in values:
            return _with_trace(values)
        if "rate" in values and "concurrency" in values:
            raise WorkloadError("workload: give rate (open) or concurrency (closed), not both")
        workload = cls(
            input=Length.parse(values.get("input", "512"), "input"),
            output=Length.parse(values.get("output", "128"), "output"),
            rate=_rate(values["rate"]) if "rate" in values else None,
            concurrency=_integer(values, "concurrency"),
            arrival=_arrival(values.get("arrival", "poisson")),
            prefix_tokens=_integer(values, "prefix", least=0) or 0,
            num_prefixes=_integer(values, "prefixes") or 1,
            num_requests=_integer(values, "requests"),
            seed=_integer(values, "seed", least=0) or 0,
        )
        if workload.rate is None and workload.concurrency is None:
            workload = replace(workload, concurrency=DEFAULT_CONCURRENCY)
        if workload.prefix_tokens and workload.prefix_tokens >= _least(workload.input):
            raise WorkloadError("workload: prefix must be shorter than every input")
        return workload

    @property
    def is_offline(self) -> bool:
        return self.rate is not None and math.isinf(self.rate)

    @property
    def longest_request(self) -> int:
        """Tokens of prompt and output that nearly every request stays below."""
        if self.trace:
            return max(ask.input_tokens + ask.output_tokens for ask in self.trace)
        return math.ceil(_most(self.input) + _most(self.output))

    @property
    def mean_input(self) -> float:
        if self.trace:
            return sum(ask.input_tokens for ask in self.trace) / len(self.trace)
        return self.input.mean

    @property
    def mean_output(self) -> float:
        if self.trace:
            return sum(ask.output_tokens for ask in self.trace) / len(self.trace)
        return self.output.mean

    @property
    def mean_rate(self) -> float | None:
        """Requests per second that arrive; None for closed and offline workloads."""
        if self.trace:
            span = self.trace[-1].arrival_s - self.trace[0].arrival_s
            return (len(self.trace) - 1) / span if span > 0 else None
        return None if self.rate is None or self.is_offline else self.rate

    def shares(self, num_lanes: int) -> float:
        """How many times ``share(num_lanes)`` the whole is; fewer clients leave lanes idle."""
        if self.concurrency is None:
            return float(num_lanes)
        return self.concurrency / -(-self.concurrency // num_lanes)

    def share(self, num_lanes: int) -> Workload:
        """What one of ``num_lanes`` equal servers sees of it, the busiest where they differ."""
        if num_lanes == 1:
            return self
        if self.trace:
            return replace(self, trace=self.trace[::num_lanes])
        return replace(
            self,
            rate=None if self.rate is None else self.rate / num_lanes,
            concurrency=self.concurrency and -(-self.concurrency // num_lanes),
        )

    def draw(self, num_requests: int) -> list[Ask]:
        """The first ``num_requests`` requests, in order of arrival; the same ones every time."""
        if self.trace:
            return list(self.trace[:num_requests])
        rng = random.Random(self.seed)
        asks, now = [], 0.0
        for _ in range(num_requests):
            if self.rate is not None and not self.is_offline:
                now += _gap(self.arrival, rng) / self.rate
            prefix = rng.randrange(self.num_prefixes) if self.prefix_tokens else None
            asks.append(Ask(now, self.input.draw(rng), self.output.draw(rng), prefix))
        return asks

    def __str__(self) -> str:
        if self.trace:
            return f"trace of {len(self.trace)} requests"
        load = f"concurrency={self.concurrency}" if self.rate is None else f"rate={self.rate:g}"
        parts = [f"input={self.input}", f"output={self.output}", load]
        if self.arrival != "poisson":
            parts.append(f"arrival={self.arrival}")
        if self.prefix_tokens:
            parts += [f"prefix={self.prefix_tokens}", f"prefixes={self.num_prefixes}"]
        return ",".join(parts)


_KEYS = (
    "input",
    "output",
    "rate",
    "concurrency",
    "arrival",
    "prefix",
    "prefixes",
    "requests",
    "seed",
    "trace",
)


def read_trace(path: Path) -> tuple[Ask, ...]:
    """Reads a trace: JSON lines with ``timestamp`` (seconds), ``input_tokens``, ``output_tokens``.

    Raises:
        WorkloadError: the file or a line of it cannot be read; one line naming it.
    """
    asks = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    asks.append(_read_ask(line, f"{path}, line {number}"))
                if len(asks) > MAX_REQUESTS:
                    raise WorkloadError(f"{path} holds more than {MAX_REQUESTS} requests")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"trace {path} cannot be read: {error}") from None
    if not asks:
        raise WorkloadError(f"trace {path} holds no request")
    asks.sort(key=lambda ask: ask.arrival_s)
    first = asks[0].arrival_s
    return tuple(replace(ask, arrival_s=ask.arrival_s - first) for ask in asks)


def _read_ask(line: str, where: str) -> Ask:
    try:
        fields = json.loads(line)
        arrival = float(fields["timestamp"])
        sizes = int(fields["input_tokens"]), int(fields["output_tokens"])
        if not (math.isfinite(arrival) and all(1 <= size <= MAX_LENGTH for size in sizes)):
            raise ValueError
        prefix = fields.get("prefix")
        return Ask(arrival, *sizes, None if prefix is None else int(prefix))
    except (ValueError, TypeError, KeyError):
        raise WorkloadError(
            f"{where} must be an object with timestamp (seconds), input_tokens and output_tokens"
        ) from None


def _with_trace(values: dict[str, str]) -> Workload:
    others = set(values) - {"trace", "prefix"}
    if others:
        raise WorkloadError(f"workload: a trace already says {', '.join(sorted(others))}")
    return Workload(
        trace=read_trace(Path(values["trace"])),
        prefix_tokens=_integer(values, "prefix", least=0) or 0,
    )


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise WorkloadError(f"workload: rate must be above 0 requests per second, not {text}")
    return rate


def _arrival(text: str) -> str:
    kind, _, cv = text.partition(":")
    valid = kind in ("poisson", "constant") and not cv
    if kind == "gamma":
        try:
            valid = 0 < float(cv) <= 100
        except ValueError:
            valid = False
    if not valid:
        raise WorkloadError(f"workload: arrival must be poisson, constant or gamma:CV, not {text}")
    return text


def _gap(arrival: str, rng: random.Random) -> float:
    """Time between two arrivals, of mean 1."""
    if arrival == "poisson":
        return rng.expovariate(1.0)
    if arrival == "constant":
        return 1.0
    shape = float(arrival.partition(":")[2]) ** -2  # the gamma distribution has CV = shape^-1/2
    return rng.gammavariate(shape, 1 / shape)


def _integer(values: dict[str, str], key: str, least: int = 1) -> int | None:
    if key not in values:
        return None
    try:
        value = int(values[key])
    except ValueError:
        value = least - 1
    if not least <= value <= MAX_LENGTH:
        raise WorkloadError(f"workload: {key} must be a number from {least} on, not {values[key]}")
    return value


def _least(length: Length) -> float:
    match length.kind:
        case "normal":
            return max(1.0, length.first - 3 * length.second)
        case "lognormal":
            return max(1.0, length.first * math.exp(-3 * length.second))
        case _:
            return length.first


def _most(length: Length) -> float:
    """The largest length, or three standard deviations above the middle."""
    match length.kind:
        case "uniform":
            return length.second
        case "normal":
            return length.first + 3 * length.second
        case "lognormal":
            return length.first * math.exp(3 * length.second)
        case _:
            return length.first
