"""The plan: everything that is decided, what it promises, and why.

It is a document: ``to_json`` and ``to_yaml`` write it, ``read_plan`` reads it back. The schema is
versioned; a reader refuses a version that it does not know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

SCHEMA = "ridgeline.plan/v1"


class PlanFileError(ValueError):
    """A plan file that cannot be used; one line."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is started with; the names are the engine's own."""

    engine: str
    dtype: str
    quantization: str
    """A scheme of ``profiles.numerics``; ``none`` keeps the checkpoint's 16 or 32 bits."""
    kv_cache_dtype: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    replicas: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_kv_blocks: int
    """Of each replica."""
    enable_expert_parallel: bool = False
    """Devices that split the layers hold some of the experts each, and not a part of each."""
    enable_prefix_caching: bool = True
    gpu_memory_utilization: float = 1.0
    """Share of each device's memory that the engine takes."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the true percentiles lie with probability ``level``, each as (low, high)."""

    level: float
    p50: tuple[float, float]
    p90: tuple[float, float]
    p99: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Percentiles:
    p50: float
    p90: float
    p99: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Prediction:
    """What clients will see, over requests; latencies in milliseconds."""

    ttft_ms: Percentiles
    tpot_ms: Percentiles
    e2e_ms: Percentiles
    output_tokens_per_s: float
    output_tokens_per_s_interval: tuple[float, float]
    requests_per_s: float
    requests_per_s_interval: tuple[float, float]
    goodput_per_s: float
    """Requests per second that meet every target; all of them when there is none."""
    slo_attainment: float
    """Share of requests that meet every target."""
    utilization: float
    """Share of the time that the engine is in a step."""
    extrapolated: bool = False
    """Some steps lie outside what the step-time model was fitted to."""


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The memory ledger of one device, in bytes."""

    device: str
    device_bytes: int
    usable_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    activations_bytes: int
    logits_bytes: int
    state_bytes: int
    graphs_bytes: int
    communication_bytes: int
    context_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """An alternative, and the number that rejected it."""

    alternative: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no plan, and the shortest ways to one."""

    reason: str
    fixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas on devices of one kind."""

    hardware: str
    devices_used: int
    plan: Settings
    ledger: LedgerView
    prediction: Prediction
    share: float
    """Of the requests."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole document. ``plan``, ``prediction`` and ``ledger`` are those of the first pool;
    on mixed hardware ``pools`` has one entry for each kind and ``prediction`` covers all."""

    status: Literal["ok", "refused"]
    model: str
    hardware: str
    workload: str
    slo: str
    objective: str
    plan: Settings | None = None
    prediction: Prediction | None = None
    ledger: LedgerView | None = None
    binding_constraint: str = ""
    rejected: tuple[Rejected, ...] = ()
    refusal: Refusal | None = None
    pools: tuple[Pool, ...] = ()
    notes: tuple[str, ...] = ()
    """What the user should know: a quality floor that was lowered, a bridge that was assumed."""
    schema: str = field(default=SCHEMA)

    def to_mapping(self) -> dict[str, Any]:
        mapping: dict[str, Any] = msgspec.to_builtins(self)
        return {"schema": mapping.pop("schema")} | mapping

    def to_json(self) -> str:
        return json.dumps(self.to_mapping(), indent=2)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, width=100)


def read_plan(path: Path) -> Plan:
    """Reads a plan from YAML or JSON (which is YAML too).

    Raises:
        PlanFileError: no such file, no plan, another version of the schema, or a refusal.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanFileError(f"plan {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        first_line = str(error).partition("\n")[0]
        raise PlanFileError(f"plan {path} is not YAML: {first_line}") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise PlanFileError(f"plan {path} has schema {schema!r}; this version reads {SCHEMA!r}")
    try:
        plan = msgspec.convert(data, Plan)
    except msgspec.ValidationError as error:
        raise PlanFileError(f"plan {path} is damaged: {error}") from None
    if plan.plan is None:
        raise PlanFileError(f"plan {path} is a refusal; there is nothing to serve")
    return plan
