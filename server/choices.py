"""Values that flags choose from."""

from __future__ import annotations

from enum import StrEnum


class EngineChoice(StrEnum):
    """What ``ridgeline serve --engine`` takes."""

    AUTO = "auto"
    NATIVE = "native"
    VLLM = "vllm"
    SIMULATED = "simulated"


class Objective(StrEnum):
    """What a plan is best at."""

    GOODPUT = "goodput"
    THROUGHPUT = "throughput"
    LATENCY = "latency"
    DEVICES = "devices"
