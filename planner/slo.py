"""What a user asks of latency: ``ttft=500ms,tpot=50ms,e2e=2s``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from profiles.latency import RequestTimes

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s)?")


class SloError(ValueError):
    """A target that cannot be read; one line."""


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets for every request, in milliseconds; None asks nothing."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Reads ``name=TIME,...``; a bare number is milliseconds.

        Raises:
            SloError: an unknown name or no time.
        """
        targets: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            match = _TIME.fullmatch(value.strip())
            if not equals or name not in ("ttft", "tpot", "e2e"):
                raise SloError(f"slo: {part.strip()!r} is none of ttft=, tpot= and e2e=TIME")
            if name in {key.removesuffix("_ms") for key in targets}:
                raise SloError(f"slo: {name} is given twice")
            if match is None or float(match[1]) <= 0:
                raise SloError(f"slo: {name}={value} is no time above 0; write 500ms or 2s")
            targets[f"{name}_ms"] = float(match[1]) * (1000 if match[2] == "s" else 1)
        return cls(**targets)

    @property
    def is_empty(self) -> bool:
        return self.ttft_ms is None and self.tpot_ms is None and self.e2e_ms is None

    @property
    def targets_ms(self) -> dict[str, float]:
        """The targets that there are: ``ttft``, ``tpot``, ``e2e``."""
        targets = {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2e": self.e2e_ms}
        return {name: value for name, value in targets.items() if value is not None}

    def verdicts(self, ttft_s: float, tpot_s: float | None, e2e_s: float) -> dict[str, bool]:
        """Whether one request met each target; one without gaps has met that for them."""
        measured = {"ttft": ttft_s, "tpot": tpot_s or 0.0, "e2e": e2e_s}
        return {name: measured[name] * 1e3 <= value for name, value in self.targets_ms.items()}

    def is_met(self, times: RequestTimes) -> bool:
        """Whether one request met every target."""
        return all(self.verdicts(times.ttft, times.tpot, times.e2e).values())

    def __str__(self) -> str:
        return ",".join(f"{name}={value:g}ms" for name, value in self.targets_ms.items())
