"""What is assumed of an engine on a device before anything is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from profiles.accelerator import AcceleratorProfile
from profiles.catalog import read_yaml
from profiles.step_time import Priors

_SHARE_OF_ACHIEVABLE = 0.95
"""Of the best rate that a sweep over matrix sizes finds, a model's own sizes reach this."""


_SHARE_OF_ACHIEVABLE = 0.95
"""Of the best rate that a sweep over matrix sizes finds, a model's own sizes reach this."""


def priors_for(profile: AcceleratorProfile, engine: str, kv_cache_dtype: str = "") -> Priors:
    """The priors of ``profiles/priors.yaml``, overridden by the profile's own coefficients.

    Those are called by the engine that they were learned of (``native.step_overhead_s``), what
    depends on the type of the KV cache also by that (``native.attention.int8``).

    Raises:
        ValueError: nothing is known of this engine on devices of this vendor.
    """
    for entry in _entries():
        if entry["engine"] == engine and profile.vendor in entry["vendors"]:
            known = _known(profile, engine, kv_cache_dtype)
            return Priors(**(entry["values"] | _achievable(profile, entry) | known))
    raise ValueError(f"nothing is known of the engine {engine} on {profile.vendor} devices")


def _achievable(profile: AcceleratorProfile, entry: Mapping[str, Any]) -> dict[str, float]:
    """What products reach on this very device, where someone measured it."""
    shares = [
        figure.value / profile.dense_flops[key].value
        for key, figure in profile.achievable_flops.items()
        if key in profile.dense_flops
    ]
    if not shares or not entry.get("matmul_from_achievable", False):
        return {}
    return {"matmul": _SHARE_OF_ACHIEVABLE * sum(shares) / len(shares)}


def _known(profile: AcceleratorProfile, engine: str, kv_cache_dtype: str) -> dict[str, float]:
    return {
        field.name: profile.coefficients[key].value
        for field in dataclasses.fields(Priors)
        for key in (f"{engine}.{field.name}", f"{engine}.{field.name}.{kv_cache_dtype}")
        if key in profile.coefficients
    }


@cache
def _entries() -> list[dict[str, Any]]:
    text = (files("profiles") / "priors.yaml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = read_yaml(text)
    return entries
