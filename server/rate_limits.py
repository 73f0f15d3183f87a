"""How much each caller may ask for in a minute: token buckets."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace

ANYBODY = "anybody"
"""The caller where there are no keys."""

_MINUTE_S = 60.0
_MOST_CALLERS = 10_000
"""Remembered at once; whoever has not come for longest is forgotten, and starts with a full
minute."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Per minute; None is no limit."""

    requests: int | None = None
    tokens: int | None = None
    """Of prompts and outputs together."""


NO_LIMITS = Rates()


@dataclass(frozen=True, slots=True)
class Bucket:
    """Holds at most ``capacity``, which flows back in a minute. May owe: what a request takes is
    known when it has ended."""

    capacity: float
    level: float
    at_s: float

    @classmethod
    def full(cls, capacity: float, now_s: float) -> Bucket:
        return cls(capacity, capacity, now_s)

    def at(self, now_s: float) -> Bucket:
        flowed = max(0.0, now_s - self.at_s) * self.capacity / _MINUTE_S
        return Bucket(self.capacity, min(self.capacity, self.level + flowed), now_s)

    def less(self, amount: float) -> Bucket:
        return Bucket(self.capacity, self.level - amount, self.at_s)

    def wait_s(self, amount: float) -> float:
        """Until it holds so much, or is full if it never will."""
        missing = min(amount, self.capacity) - self.level
        return max(0.0, missing) * _MINUTE_S / self.capacity


@dataclass(frozen=True, slots=True)
class Standing:
    """Of a caller after a request: what response headers tell."""

    limit: int
    remaining: int
    reset_s: float
    """Until the bucket is full again."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a caller must wait."""

    kind: str
    """``requests`` or ``tokens``."""
    limit: int
    wait_s: float


class RateLimiter:
    """The buckets of all callers. ``rates`` are everybody's, ``own`` those that one caller has
    instead; ``now_s`` is of whatever clock."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._buckets: OrderedDict[tuple[str, str], Bucket] = OrderedDict()

    def shortage(self, caller: str, num_tokens: int, now_s: float, own: Rates) -> Shortage | None:
        """What the caller must wait for longest before one more request of so many tokens."""
        shortages = [
            Shortage(kind, int(bucket.capacity), bucket.wait_s(amount))
            for kind, amount in (("requests", 1), ("tokens", num_tokens))
            if (bucket := self._bucket(caller, kind, now_s, own)) is not None
        ]
        longest = max(shortages, key=lambda shortage: shortage.wait_s, default=None)
        return None if longest is None or longest.wait_s == 0 else longest

    def take(self, caller: str, num_tokens: int, now_s: float, own: Rates) -> Shortage | None:
        """Takes one request and so many tokens; or nothing, and tells why."""
        shortage = self.shortage(caller, num_tokens, now_s, own)
        if shortage is None:
            for kind, amount in (("requests", 1), ("tokens", num_tokens)):
                if (bucket := self._bucket(caller, kind, now_s, own)) is not None:
                    self._keep(caller, kind, bucket.less(amount))
        return shortage

    def correct(self, caller: str, taken: int, used: int, now_s: float, own: Rates) -> None:
        """Gives tokens back that were taken and not used, or takes what was used beyond."""
        bucket = self._bucket(caller, "tokens", now_s, own)
        if bucket is not None:
            level = min(bucket.capacity, bucket.level + taken - used)
            self._keep(caller, "tokens", replace(bucket, level=level))

    def standings(self, caller: str, now_s: float, own: Rates) -> dict[str, Standing]:
        """By kind: ``requests``, ``tokens``."""
        found = {}
        for kind in ("requests", "tokens"):
            bucket = self._bucket(caller, kind, now_s, own)
            if bucket is not None:
                remaining = max(0, math.floor(bucket.level))
                full_s = bucket.wait_s(bucket.capacity)
                found[kind] = Standing(int(bucket.capacity), remaining, full_s)
        return found

    def _bucket(self, caller: str, kind: str, now_s: float, own: Rates) -> Bucket | None:
        capacity: int | None = getattr(own, kind) or getattr(self._rates, kind)
        if capacity is None:
            return None
        bucket = self._buckets.get((caller, kind))
        if bucket is None or bucket.capacity != capacity:
            return Bucket.full(capacity, now_s)
        return bucket.at(now_s)

    def _keep(self, caller: str, kind: str, bucket: Bucket) -> None:
        self._buckets[caller, kind] = bucket
        self._buckets.move_to_end((caller, kind))
        while len(self._buckets) > 2 * _MOST_CALLERS:
            self._buckets.popitem(last=False)
