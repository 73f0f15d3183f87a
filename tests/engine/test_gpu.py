"""The native engine on a real GPU: the same tokens as on the processor, graphs or not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.cuda import CUDAGraph

from engine.config import EngineConfig
from engine.loop import EngineLoop
from engine.messages import AddRequest, FromEngine, Progress
from engine.native.cuda_graphs import DecodeGraphs, GraphShape
from engine.native.input_batch import StepInputs
from engine.native.overlapping_executor import OverlappingExecutor
from engine.native.runner import ModelRunner
from engine.overlapped_loop import OverlappedLoop
from profiles.model_spec import ModelSpec
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.sampling_params import SamplingParams
from scheduler.scheduler import Scheduler
from tests.checkpoints import make_checkpoint
from tests.quantized_checkpoints import FORMATS, make_quantized

pytestmark = pytest.mark.gpu

Outputs = dict[str, list[int]]


def requests(count: int, num_tokens: int = 40, **sampling: object) -> list[Request]:
    chooser = random.Random(5)

    def prompt() -> tuple[int, ...]:
        return tuple(chooser.randrange(3, 256) for _ in range(chooser.randint(2, 90)))

    options: dict[str, object] = {"max_tokens": num_tokens, "temperature": 0.0} | sampling
    return [
        Request(
            request_id=f"r{i}",
            prompt_token_ids=prompt(),
            sampling=SamplingParams(seed=i, **options),  # type: ignore[arg-type]
            arrival_time=float(i),
        )
        for i in range(count)
    ]


def run(
    directory: Path, asked: list[Request], arrive_every: int = 0, **settings: object
) -> tuple[Outputs, ModelRunner]:
    limits = {"num_blocks": 512, "max_num_seqs": 16, "max_model_len": 192}
    limits |= {k: settings.pop(k) for k in ("num_blocks", "max_prefill_chunk") if k in settings}  # type: ignore[misc]
    config = EngineConfig(
        model_dir=directory,
        scheduler=SchedulerConfig(**limits),
        **settings,  # type: ignore[arg-type]
    )
    runner = ModelRunner(config)
    runner.warm_up()
    outputs: Outputs = {}

    def collect(message: FromEngine) -> None:
        assert isinstance(message, Progress)
        for output in message.outputs:
            outputs.setdefault(output.request_id, []).extend(output.token_ids)

    scheduler, vocab_size = Scheduler(config.scheduler), runner.spec.vocab_size
    loop = EngineLoop(scheduler, runner, vocab_size, collect)
    if config.async_scheduling:
        loop = OverlappedLoop(scheduler, OverlappingExecutor(runner), vocab_size, collect)
    waiting, num_steps = asked.copy(), 0
    while waiting or loop.has_work:
        due = waiting if arrive_every == 0 else waiting[: num_steps % arrive_every == 0]
        loop.handle([AddRequest(r) for r in due])
        del waiting[: len(due)]
        if loop.has_work:
            loop.step()
        num_steps += 1
    loop.idle()
    return outputs, runner


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "mistral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp(request.param)
    make_checkpoint(request.param, directory)
    return directory


@pytest.fixture(scope="module")
def on_cpu(model: Path) -> Outputs:
    return run(model, requests(16), linear_kernel="fp32-activations")[0]


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_tokens_are_those_of_the_processor(model: Path, on_cpu: Outputs, cuda_graphs: bool) -> None:
    actual, _ = run(model, requests(16), arrive_every=3, device="cuda", cuda_graphs=cuda_graphs)
    assert actual == on_cpu


@pytest.mark.parametrize("backend", ["torch", "triton", "sdpa"])
def test_attention_by_name(model: Path, on_cpu: Outputs, backend: str) -> None:
    actual, _ = run(model, requests(16), device="cuda", attention_backend=backend)
    assert actual == on_cpu


def test_in_chunks_and_after_preemption(model: Path, on_cpu: Outputs) -> None:
    chunked, _ = run(model, requests(16), device="cuda", max_prefill_chunk=7)
    assert chunked == on_cpu
    crowded, _ = run(model, requests(16), device="cuda", num_blocks=24)
    assert crowded == on_cpu


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_planned_ahead(model: Path, on_cpu: Outputs, cuda_graphs: bool) -> None:
    settings = {"device": "cuda", "async_scheduling": True, "cuda_graphs": cuda_graphs}
    for limits in ({}, {"max_prefill_chunk": 7}, {"num_blocks": 24}):
        outputs, _ = run(model, requests(16), 2, **settings, **limits)
        assert outputs == on_cpu
    sampled = requests(8, temperature=0.9, top_p=0.9, frequency_penalty=0.3)
    plain, _ = run(model, sampled, device="cuda", cuda_graphs=cuda_graphs)
    assert run(model, sampled, **settings)[0] == plain


def test_sampled_tokens_are_those_of_the_processor(model: Path) -> None:
    asked = requests(8, temperature=0.9, top_p=0.95, top_k=50, frequency_penalty=0.3)
    expected, _ = run(model, asked, linear_kernel="fp32-activations")
    actual, _ = run(model, asked, arrive_every=2, device="cuda")
    assert actual == expected


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_experts_are_those_of_the_processor(
    family: str, cuda_graphs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two are scored nearly alike, the last bits may send a token to the other."""
    captured: list[GraphShape] = []
    capture = DecodeGraphs._capture

    def note(graphs: DecodeGraphs, step: StepInputs, rows: Tensor, shape: GraphShape) -> CUDAGraph:
        captured.append(shape)
        return capture(graphs, step, rows, shape)

    monkeypatch.setattr(DecodeGraphs, "_capture", note)
    make_checkpoint(family, tmp_path, **{"mlp_only_layers": [1]} if family == "qwen3_moe" else {})
    expected, _ = run(tmp_path, requests(16, num_tokens=8), linear_kernel="fp32-activations")
    settings = {"device": "cuda", "cuda_graphs": cuda_graphs}
    actual, _ = run(tmp_path, requests(16, num_tokens=8), arrive_every=2, **settings)
    assert bool(captured) is cuda_graphs
    assert sum(expected[name] == actual[name] for name in expected) >= 14


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8", "fp8"])
def test_sixteen_bits_stay_near_float32(model: Path, kv_cache_dtype: str) -> None:
    """Greedy tokens of random models soon differ; the first ones mostly do not."""
    exact, _ = run(model, requests(16, num_tokens=1), linear_kernel="fp32-activations")
    settings = {"device": "cuda", "dtype": "bfloat16", "kv_cache_dtype": kv_cache_dtype}
    actual, _ = run(model, requests(16, num_tokens=1), **settings)
    assert sum(exact[name] == actual[name] for name in exact) >= 12


@pytest.mark.parametrize("scheme", ["int8", "int8_g128", "int4", "int4_g128", "fp8"])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_quantized_weights_are_those_of_the_processor(
    model: Path, scheme: str, cuda_graphs: bool
) -> None:
    """The same integers and scales, and nothing else that is rounded."""
    expected, _ = run(model, requests(16), quantization=scheme, linear_kernel="fp32-activations")
    settings = {"device": "cuda", "linear_kernel": "weight-only", "cuda_graphs": cuda_graphs}
    actual, _ = run(model, requests(16), arrive_every=3, quantization=scheme, **settings)
    assert sum(expected[name] == actual[name] for name in expected) >= 14


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8"])
def test_quantized_weights_in_sixteen_bits(model: Path, scheme: str) -> None:
    """As they are chosen: activations rounded to 8 bits where the device multiplies such."""
    exact, _ = run(
        model, requests(16, num_tokens=1), quantization=scheme, linear_kernel="fp32-activations"
    )
    settings = {"device": "cuda", "dtype": "bfloat16", "quantization": scheme}
    actual, _ = run(model, requests(16, num_tokens=1), **settings)
    assert sum(exact[name] == actual[name] for name in exact) >= 12


@pytest.mark.parametrize("name", ["awq", "gptq-v2-asym-g32", "ct-w8a8", "fp8-block"])
def test_quantized_checkpoints(name: str, tmp_path: Path) -> None:
    stored, meant = make_quantized(FORMATS[name], tmp_path)
    quantization = ModelSpec.from_directory(stored).quantization
    assert quantization is not None
    expected, _ = run(meant, requests(16, num_tokens=8), linear_kernel="fp32-activations")
    settings = {"device": "cuda", "linear_kernel": "weight-only"}
    actual, _ = run(
        stored, requests(16, num_tokens=8), quantization=quantization.scheme.value, **settings
    )
    assert sum(expected[name] == actual[name] for name in expected) >= 14


def test_weights_and_cache_lie_on_the_device(model: Path) -> None:
    before = torch.cuda.memory_allocated()
    _, runner = run(model, requests(1, num_tokens=1), device="cuda:0", dtype="bfloat16")
    cache = 512 * 16 * runner.spec.kv_bytes_per_token(2)
    weights = runner.spec.weight_bytes(2)
    assert torch.cuda.memory_allocated() - before >= cache + weights
    assert "on cuda:0" in runner.detail
