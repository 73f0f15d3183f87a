"""Questions about invented servers."""

from __future__ import annotations

from planner.candidates import Pins, Question
from planner.slo import Slo
from planner.workload import Workload
from profiles.catalog import load_catalog
from profiles.hardware import parse_hardware
from profiles.model_library import find_known_model

MODELS = (
    "Llama-3.1-8B",
    "Llama-3.1-70B",
    "Llama-3.1-405B",
    "Llama-3.2-1B",
    "Llama-3.2-3B",
    "Qwen2.5-7B",
    "Qwen2.5-72B",
    "Qwen3-0.6B",
    "Qwen3-8B",
    "Qwen3-32B",
    "Qwen3-30B-A3B",
    "Qwen3-235B-A22B",
    "Mistral-7B-v0.1",
    "Mixtral-8x7B-v0.1",
    "gemma-2-9b",
    "gemma-3-27b-pt",
    "phi-4",
    "DeepSeek-V3",
    "gpt-oss-20b",
    "gpt-oss-120b",
)


def ask(
    model: str,
    on: str,
    workload: str = "input=512,output=128,concurrency=16",
    slo: str = "",
    *,
    objective: str | None = None,
    quality_bits: int | None = None,
    **pins: object,
) -> Question:
    return Question(
        model=model,
        spec=find_known_model(model).spec,
        hardware=parse_hardware(on, load_catalog()),
        workload=Workload.parse(workload),
        slo=Slo.parse(slo) if slo else Slo(),
        objective=objective,
        quality_bits=quality_bits,
        pins=Pins(**pins),  # type: ignore[arg-type]
    )
