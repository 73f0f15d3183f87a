"""Speed of the native engine on one device, with random weights: decode steps and prefills."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.messages import AddRequest, FromEngine
from engine.native.linear.select import FP32_ACTIVATIONS
from engine.native.overlapping_executor import OverlappingExecutor
from engine.native.runner import ModelRunner
from engine.overlapped_loop import OverlappedLoop
from planner.sizing import weight_format
from profiles.model_spec import ModelSpec, TensorRole
from profiles.numerics import SCHEMES
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.sampling_params import SamplingParams
from scheduler.scheduler import Scheduler
from scheduler.step_plan import StepPlan

_BLOCK_SIZE = 16
_WARM_STEPS = 3
"""Decode steps that are not timed: the first captures a graph."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device reaches at best, measured in the same run."""

    bytes_per_s: float
    flops: float
    """Of dense products in the type of activations."""
    fp8_flops: float | None
    """Of those in FP8; None where the device has none."""

    def flops_of(self, scheme: str) -> float:
        """At which weights of a scheme can be multiplied: in groups they are decoded to 16 bits."""
        return self.fp8_flops or self.flops if scheme == "fp8" else self.flops


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One kind of step."""

    num_seqs: int
    num_tokens: int
    """Of each sequence, in this step."""
    context_len: int
    step_s: float
    """From one step's beginning to the next one's, scheduling and sampling included."""
    forward_s: float
    """Of that, the forward pass on the device."""
    roofline_s: float
    """What the bytes that must be read, or the operations, take at the ceilings."""

    @property
    def tokens_per_s(self) -> float:
        return self.num_seqs * self.num_tokens / self.step_s

    @property
    def roofline_share(self) -> float:
        return self.roofline_s / self.step_s

    @property
    def host_share(self) -> float:
        """Of a step, what is not the forward pass: the host's work and sampling."""
        return max(0.0, 1 - self.forward_s / self.step_s)


def time_repeats(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of ``work`` on the device, called over and over without waiting in between."""
    work()
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - start) / repeats
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    events[0].record()
    for _ in range(repeats):
        work()
    events[1].record()
    events[1].synchronize()
    return float(events[0].elapsed_time(events[1])) * 1e-3 / repeats


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    on_cuda = device.type == "cuda"
    data = torch.ones((2**30 if on_cuda else 2**22,), dtype=torch.float32, device=device)
    target = torch.empty_like(data)
    # Reads and writes as many bytes; the fastest of a few, since others only make it slower.
    copy_s = min(time_repeats(lambda: target.copy_(data), 5, device) for _ in range(3))
    bytes_per_s = 2 * data.nbytes / copy_s
    size = 8192 if on_cuda else 256
    # Random, since a device that multiplies zeros draws less power and so runs faster.
    left, right = (torch.randn((size, size), device=device).to(dtype) for _ in range(2))
    product_s = min(time_repeats(lambda: left @ right, 10, device) for _ in range(3))
    fp8_flops = None
    if on_cuda and torch.cuda.get_device_capability(device) >= (8, 9):
        fp8_flops = 2 * size**3 / _fp8_product_seconds(left, right, device)
    return Ceilings(bytes_per_s, 2 * size**3 / product_s, fp8_flops)


def _fp8_product_seconds(left: Tensor, right: Tensor, device: torch.device) -> float:
    one = torch.ones((), dtype=torch.float32, device=device)
    a, b = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn)

    def product() -> Tensor:
        return torch._scaled_mm(a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return min(time_repeats(product, 10, device) for _ in range(3))


class _Runner(ModelRunner):
    """The engine's runner, one forward pass of which can be repeated."""

    def forward_of(self, plan: StepPlan) -> Callable[[], Tensor]:
        """Writes the same keys and values to the same places as that step, the latest, does."""
        scheduled = [replace(s, new_block_ids=(), samples=False) for s in plan.scheduled]
        inputs = self.lanes[0].batch.build(scheduled)
        rows = inputs.attention.query_start_loc[1:].long() - 1
        return lambda: self._forward.logits(inputs, rows)


class _Executor(OverlappingExecutor):
    """Remembers the latest step."""

    last_plan = StepPlan(-1)

    def submit(self, plan: StepPlan) -> None:
        self.last_plan = plan
        super().submit(plan)


class BenchEngine:
    """Scheduler, loop and runner in this process, for a model with random weights in a scheme.

    On a CPU, to try it out, products are by torch or by the compiled kernels in float32.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        device: str,
        dtype: str,
        limits: SchedulerConfig,
        scheme: str = "none",
    ) -> None:
        on_cpu = device == "cpu"
        on_cpu_kernel = "torch" if scheme == "none" else FP32_ACTIVATIONS
        with TemporaryDirectory() as directory:
            (Path(directory) / "config.json").write_text(json.dumps(dict(config)))
            self._runner = _Runner(
                EngineConfig(
                    model_dir=Path(directory),
                    scheduler=limits,
                    dtype=dtype,
                    device=device,
                    quantization=scheme,
                    attention_backend="torch" if on_cpu else "auto",
                    linear_kernel=on_cpu_kernel if on_cpu else "auto",
                    load_format="random",
                )
            )
        self._runner.warm_up()
        self._limits = limits
        self._device = torch.device(device)
        self._dtype_bytes = 4 if dtype == "float32" else 2
        self._scheme = scheme
        self._weight_bytes = weight_bytes(self.spec, scheme, dtype, device)
        self._scheduler = Scheduler(limits)
        self._executor = _Executor(self._runner)
        self._loop = OverlappedLoop(
            self._scheduler, self._executor, self.spec.vocab_size, self._count_message
        )
        self._num_messages = 0
        self._num_requests = 0
        self._random = np.random.default_rng(0)

    @property
    def spec(self) -> ModelSpec:
        return self._runner.spec

    @property
    def detail(self) -> str:
        return self._runner.detail

    def _count_message(self, message: FromEngine) -> None:
        self._num_messages += 1

    def _add(self, count: int, prompt_len: int, max_tokens: int) -> None:
        requests = []
        for _ in range(count):
            self._num_requests += 1
            prompt = self._random.integers(0, self.spec.vocab_size, prompt_len).tolist()
            sampling = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0)
            requests.append(AddRequest(Request(str(self._num_requests), tuple(prompt), sampling)))
        self._loop.handle(requests)

    def _finish(self) -> None:
        for number in range(self._num_requests + 1):
            self._scheduler.abort(str(number))
        while self._loop.has_work:
            self._loop.step()

    def decode(
        self, num_seqs: int, context_len: int, num_steps: int, ceilings: Ceilings
    ) -> StepFigures:
        """Steady decode steps of so many sequences, each with about ``context_len`` tokens."""
        prompt_len = context_len - num_steps - _WARM_STEPS
        budget = self._limits.max_num_batched_tokens
        longest = longest_sequence(num_seqs, context_len, budget)
        self._add(num_seqs, prompt_len, longest - prompt_len)
        while sum(n >= prompt_len for n in self._scheduler.running_contexts()) < num_seqs:
            if not self._loop.has_work:
                raise RuntimeError("sequences ended before the last had begun")
            self._loop.step()
        for _ in range(_WARM_STEPS):
            self._loop.step()
        seconds = []
        for _ in range(num_steps):
            start = time.perf_counter()
            self._loop.step()
            seconds.append(time.perf_counter() - start)
        with torch.inference_mode():
            forward = self._runner.forward_of(self._executor.last_plan)
            forward_s = time_repeats(forward, num_steps, self._device)
        contexts = self._scheduler.running_contexts()
        if len(contexts) != num_seqs:
            raise RuntimeError(f"{len(contexts)} of {num_seqs} sequences were left")
        roofline_s = self._roofline([(1, n) for n in contexts], ceilings)
        self._finish()
        return StepFigures(num_seqs, 1, context_len, median(seconds), forward_s, roofline_s)

    def prefill(self, num_tokens: int, repeats: int, ceilings: Ceilings) -> StepFigures:
        """One prompt, whole in one step."""
        seconds = []
        for _ in range(repeats + 1):
            self._finish()
            self._add(1, num_tokens, max_tokens=1)
            start = time.perf_counter()
            self._loop.step()
            seconds.append(time.perf_counter() - start)
        if self._executor.last_plan.num_tokens != num_tokens:
            raise RuntimeError(f"{num_tokens} tokens do not fit into one step")
        with torch.inference_mode():
            forward = self._runner.forward_of(self._executor.last_plan)
            forward_s = time_repeats(forward, repeats, self._device)
        roofline_s = self._roofline([(num_tokens, num_tokens)], ceilings)
        self._finish()
        return StepFigures(1, num_tokens, num_tokens, median(seconds[1:]), forward_s, roofline_s)

    def _roofline(self, sequences: list[tuple[int, int]], ceilings: Ceilings) -> float:
        """Seconds of a step that reads weights and cache once and does nothing in vain.

        ``sequences`` are tokens of the step and of the context for each.
        """
        spec = self.spec
        tokens = sum(new for new, _ in sequences)
        read = dict(self._weight_bytes)
        if not spec.tie_word_embeddings:
            del read[TensorRole.EMBEDDING]  # only rows are looked up
        kv_bytes = sum(spec.kv_bytes_per_sequence(n, self._dtype_bytes) for _, n in sequences)
        flops = tokens * spec.flops_per_token + len(sequences) * spec.flops_per_sampled_token
        flops += sum(spec.attention_flops(new, context - new) for new, context in sequences)
        return max(
            (sum(read.values()) + kv_bytes) / ceilings.bytes_per_s,
            flops / ceilings.flops_of(self._scheme),
        )


def weight_bytes(spec: ModelSpec, scheme: str, dtype: str, device: str) -> dict[TensorRole, float]:
    """What the weights of a scheme take, scales included, by what they are for."""
    vendor = "cpu" if device == "cpu" else "nvidia"
    held = weight_format(spec, SCHEMES[scheme], "native", dtype, vendor)
    return {role: n * held.bytes_of(role) for role, n in spec.parameters_by_role.items()}


def longest_sequence(num_seqs: int, context_len: int, num_batched_tokens: int) -> int:
    """Tokens that a sequence of ``BenchEngine.decode`` may reach.

    The first go on while the last are in prefill, which takes half as many steps as are allowed.
    """
    return context_len + 2 * -(-num_seqs * context_len // num_batched_tokens) + 8


def cache_limits(
    spec: ModelSpec,
    batch_sizes: Iterable[int],
    context_len: int,
    prefill_tokens: int,
    num_batched_tokens: int,
    memory_bytes: int,
) -> tuple[SchedulerConfig, list[int]]:
    """Limits for the largest batches whose cache of 16-bit keys fits, and those batch sizes.

    Raises:
        ValueError: not even the prompt of the prefill fits.
    """
    block_bytes = spec.kv_bytes_per_token(2) * _BLOCK_SIZE
    longest = prefill_tokens + 1
    most_blocks = -(-longest // _BLOCK_SIZE)
    if most_blocks * block_bytes > memory_bytes:
        raise ValueError("the model does not fit into the device's memory")
    fitting = []
    for num_seqs in batch_sizes:
        length = longest_sequence(num_seqs, context_len, num_batched_tokens)
        num_blocks = num_seqs * -(-length // _BLOCK_SIZE)
        if num_blocks * block_bytes <= memory_bytes:
            fitting.append(num_seqs)
            longest, most_blocks = max(longest, length), max(most_blocks, num_blocks)
    most_seqs = max(fitting, default=1)
    limits = SchedulerConfig(
        num_blocks=max(most_blocks, -(-longest // _BLOCK_SIZE)),
        block_size=_BLOCK_SIZE,
        max_num_seqs=most_seqs,
        max_num_batched_tokens=max(num_batched_tokens, most_seqs + 1),
        max_model_len=longest,
        enable_prefix_caching=False,
    )
    return limits, fitting
