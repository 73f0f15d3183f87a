"""What is assumed of an engine on a device before anything is measured."""

from __future__ import annotations

import dataclasses
from functools import cache
from importlib.resources import files
from typing import Any

from profiles.accelerator import AcceleratorProfile
from profiles.catalog import read_yaml
from profiles.step_time import Priors


def priors_for(profile: AcceleratorProfile, engine: str) -> Priors:
    """The priors of ``profiles/priors.yaml``, overridden by the profile's own coefficients.

    Raises:
        ValueError: nothing is known of this engine on devices of this vendor.
    """
    for entry in _entries():
        if entry["engine"] == engine and profile.vendor in entry["vendors"]:
            known = {name: profile.coefficients[name].value for name in _names(profile)}
            return Priors(**(entry["values"] | known))
    raise ValueError(f"nothing is known of the engine {engine} on {profile.vendor} devices")


def _names(profile: AcceleratorProfile) -> set[str]:
    return {field.name for field in dataclasses.fields(Priors)} & set(profile.coefficients)


@cache
def _entries() -> list[dict[str, Any]]:
    text = (files("profiles") / "priors.yaml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = read_yaml(text)
    return entries
