"""What serving costs outside the engine's steps.

HTTP, tokenizing, detokenizing and messages run beside the engine. On accelerators that costs
latency only; where the engine computes on the processor, everyone shares its cores, and what the
front end takes the engine loses.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from profiles.accelerator import AcceleratorProfile


@dataclass(frozen=True, slots=True)
class HostOverheads:
    """Seconds that a server spends beside its steps."""

    request_s: float = 0.0
    """From a client to the engine and back with the first token, when nothing else goes on."""
    request_work_s: float = 0.0
    """Work on one request that others wait for: in the front end, and in the engine as far as it
    computes on the same cores."""
    step_s: float = 0.0
    """Between two steps: scheduling, messages."""
    token_s: float = 0.0
    """Work on every token that is delivered, between steps or beside them on the same cores."""


_DEFAULTS = {
    # Learned from served workloads on two cores (AVX-512, 2026-11-25), client included: round
    # values between what several calibrations found.
    "native": HostOverheads(request_s=2e-3, request_work_s=1.3e-3, step_s=0.15e-3, token_s=0.03e-3),
    # Fitted to measured serving points, see benchmarks/reference_accuracy.py.
    "vllm": HostOverheads(request_s=12e-3),
}


def host_overheads(profile: AcceleratorProfile, engine: str) -> HostOverheads:
    """What was measured on this device (``<engine>.host_<name>`` of its coefficients), or else
    what is assumed of the engine."""
    known = {
        name: profile.coefficients[key].value
        for name, key in coefficient_names(engine).items()
        if key in profile.coefficients
    }
    return dataclasses.replace(_DEFAULTS[engine], **known)


def coefficient_names(engine: str) -> dict[str, str]:
    """Fields of ``HostOverheads`` → names of coefficients in a profile."""
    return {
        field.name: f"{engine}.host_{field.name}" for field in dataclasses.fields(HostOverheads)
    }
