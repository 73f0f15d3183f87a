"""Speed of the native engine on a GPU, beside its roofline, torch and transformers.

    python -m benchmarks.gpu --output gpu.json

A Llama 3.1 8B with random weights, made on the device: no checkpoint is needed. It is measured with
weights in bfloat16, FP8 and 4 bits. Takes less than eight minutes. ``--model tiny --device cpu``
tries the script itself on any machine.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

from benchmarks.gpu_engine import (
    BenchEngine,
    Ceilings,
    StepFigures,
    cache_limits,
    measure_ceilings,
    weight_bytes,
)
from benchmarks.gpu_peers import (
    TransformersModel,
    attention_seconds,
    has_transformers,
    release_memory,
)
from engine.native.attention.workload import Workload
from engine.native.kernels.build import compiler_available
from profiles.model_library import find_known_model
from profiles.model_spec import ModelSpec

_TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}
_MEMORY_SHARE = 0.92
"""Of the device, what weights and cache may take together."""
_ACTIVATIONS_BYTES = 4 * 2**30
_SCHEMES = ("none", "fp8", "int4_g128")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    batch_sizes: tuple[int, ...]
    context_len: int
    num_steps: int
    prefill_tokens: int
    num_batched_tokens: int
    attention: Mapping[str, Workload]


_FULL = Size(
    batch_sizes=(1, 16, 64, 256),
    context_len=1024,
    num_steps=24,
    prefill_tokens=4096,
    num_batched_tokens=8192,
    attention={
        "decode 1 x 8192": Workload(1, 8192, 1),
        "decode 64 x 2048": Workload(64, 2048, 1),
        "decode 256 x 1024": Workload(256, 1024, 1),
        "prefill 4096": Workload(1, 4096, 4096),
        "chunk 2048 of 8192": Workload(1, 8192, 2048),
    },
)
_SMALL = Size(
    batch_sizes=(1, 2),
    context_len=40,
    num_steps=4,
    prefill_tokens=32,
    num_batched_tokens=64,
    attention={"decode 2 x 64": Workload(2, 64, 1), "prefill 32": Workload(1, 32, 32)},
)


def main(
    model: Annotated[str, typer.Option(help="A model of the library, or tiny.")] = "Llama-3.1-8B",
    device: Annotated[str, typer.Option(help="cuda, cuda:1, …, or cpu.")] = "cuda",
    output: Annotated[Path | None, typer.Option(help="Where to write the figures as JSON.")] = None,
    skip_transformers: bool = False,
) -> None:
    is_tiny = model == "tiny"
    config = _TINY if is_tiny else find_known_model(model).config
    size = _SMALL if is_tiny else _FULL
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device; --device cpu --model tiny tries it out")
    dtype_name = "bfloat16" if place.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, dtype_name)
    print(f"{device_name(place)}, torch {torch.__version__}, {model} in {dtype_name}\n", flush=True)

    ceilings = measure_ceilings(place, dtype)
    print(
        f"memory {ceilings.bytes_per_s / 1e12:.2f} TB/s, "
        f"products {ceilings.flops / 1e12:.0f} TFLOP/s, "
        + (f"in FP8 {ceilings.fp8_flops / 1e12:.0f}\n" if ceilings.fp8_flops else "none in FP8\n"),
        flush=True,
    )
    release_memory()
    attention = measure_attention(size, dtype, place)
    release_memory()
    engines: dict[str, EngineFigures] = {}
    for scheme in _SCHEMES:
        if place.type == "cpu" and scheme != "none" and not compiler_available():
            print(f"{scheme} weights: need compiled kernels, and there is no C++ compiler\n")
            continue
        engines[scheme] = measure_engine(config, size, device, dtype_name, scheme, ceilings)
        release_memory()
    peers: dict[str, float] = {}
    if has_transformers() and not skip_transformers:
        peers = measure_transformers(config, size, place, dtype, engines["none"].decode)
    else:
        print("transformers: not installed or not asked for")
    if output is not None:
        figures = {
            "date": datetime.date.today().isoformat(),
            "device": device_name(place),
            "torch": torch.__version__,
            "model": model,
            "dtype": dtype_name,
            "ceilings": asdict(ceilings),
            "attention_s": attention,
            "engine": {scheme: figures.as_json() for scheme, figures in engines.items()},
            "transformers_s": peers,
        }
        output.write_text(json.dumps(figures, indent=1) + "\n")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def measure_attention(
    size: Size, dtype: torch.dtype, device: torch.device
) -> dict[str, dict[str, float]]:
    """Seconds by workload and implementation; a Markdown table of them as they come."""
    seconds = {}
    for name, workload in size.attention.items():
        seconds[name] = attention_seconds(workload, dtype, device, repeats=20)
        if len(seconds) == 1:
            _print_head("attention of a layer", *(f"{kind}, µs" for kind in seconds[name]))
        _print_row(name, *(f"{1e6 * s:,.0f}" for s in seconds[name].values()))
        release_memory()
    print(flush=True)
    return seconds


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """With weights in one scheme."""

    detail: str
    decode: list[StepFigures]
    prefill: StepFigures

    def as_json(self) -> dict[str, Any]:
        return {
            "detail": self.detail,
            "decode": [_as_json(step) for step in self.decode],
            "prefill": _as_json(self.prefill),
        }


def measure_engine(
    config: Mapping[str, Any],
    size: Size,
    device: str,
    dtype: str,
    scheme: str,
    ceilings: Ceilings,
) -> EngineFigures:
    """Decode at every batch size that fits, and prefill."""
    spec = ModelSpec.from_config(config)
    weights = sum(weight_bytes(spec, scheme, dtype, device).values())
    room = int(_memory_bytes(device) * _MEMORY_SHARE - weights)
    room -= _ACTIVATIONS_BYTES if device != "cpu" else 0
    try:
        limits, batches = cache_limits(
            spec,
            size.batch_sizes,
            size.context_len,
            size.prefill_tokens,
            size.num_batched_tokens,
            room,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    for missing in sorted(set(size.batch_sizes) - set(batches)):
        print(f"batch {missing}: its KV cache does not fit", flush=True)
    engine = BenchEngine(config, device, dtype, limits, scheme)
    print(f"{'unquantized' if scheme == 'none' else scheme} weights, {engine.detail}\n")
    _print_head("step", "ms", "tokens/s", "forward, ms", "roofline, ms", "of roofline", "host")
    steps = []
    for batch in batches:
        steps.append(engine.decode(batch, size.context_len, size.num_steps, ceilings))
        _print_step(f"decode {batch} x {size.context_len}", steps[-1])
    prefill = engine.prefill(size.prefill_tokens, 5, ceilings)
    _print_step(f"prefill {size.prefill_tokens}", prefill)
    print(flush=True)
    return EngineFigures(engine.detail, steps, prefill)


def measure_transformers(
    config: Mapping[str, Any],
    size: Size,
    device: torch.device,
    dtype: torch.dtype,
    ours: Iterable[StepFigures],
) -> dict[str, float]:
    """Seconds of transformers' decode steps and prefill, by name."""
    model = TransformersModel(config, device, dtype)
    seconds: dict[str, float] = {}
    _print_head("transformers", "ms", "times ours")
    for step in ours:
        name = f"decode {step.num_seqs} x {step.context_len}"
        prompt_len = step.context_len - size.num_steps
        try:
            seconds[name] = model.decode_step(step.num_seqs, prompt_len, size.num_steps // 2)
        except torch.OutOfMemoryError:
            print(f"| {name} | out of memory | |", flush=True)
            release_memory()
            continue
        ratio = seconds[name] / step.step_s
        _print_row(name, f"{1e3 * seconds[name]:.2f}", f"{ratio:.2f}")
    name = f"prefill {size.prefill_tokens}"
    seconds[name] = model.prefill(size.prefill_tokens, 3)
    _print_row(name, f"{1e3 * seconds[name]:.2f}", "")
    return seconds


def _memory_bytes(device: str) -> int:
    if device == "cpu":
        return psutil.virtual_memory().available
    return int(torch.cuda.mem_get_info(torch.device(device))[0])


def _as_json(step: StepFigures) -> dict[str, float]:
    derived = {
        "tokens_per_s": step.tokens_per_s,
        "roofline_share": step.roofline_share,
        "host_share": step.host_share,
    }
    return asdict(step) | derived


def _print_step(name: str, step: StepFigures) -> None:
    _print_row(
        name,
        f"{1e3 * step.step_s:.2f}",
        f"{step.tokens_per_s:,.0f}",
        f"{1e3 * step.forward_s:.2f}",
        f"{1e3 * step.roofline_s:.2f}",
        f"{step.roofline_share:.0%}",
        f"{step.host_share:.1%}",
    )


def _print_head(*cells: str) -> None:
    _print_row(*cells)
    _print_row(*("---" for _ in cells))


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
