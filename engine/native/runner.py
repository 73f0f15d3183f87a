"""Runs the steps that the scheduler plans: one forward pass each, then sampling."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.native import sampler
from engine.native.attention.native_backend import NativeAttention
from engine.native.attention.select import select_attention_backend
from engine.native.compiled_forward import CompiledForward
from engine.native.forward import Forward, ModularForward
from engine.native.input_batch import InputBatch
from engine.native.linear.select import choose_linear_kernels
from engine.native.loader import load_weights, stored_dtype
from engine.native.models import build_model
from engine.native.parallel.communicator import SINGLE_RANK, Communicator, rank_0_first
from engine.native.parallel.partition import check_divisible, kv_heads_of
from engine.native.support import check_supported
from profiles.model_spec import ModelSpec, ModelSpecError, RopeType
from scheduler.config import SchedulerConfig
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import ScheduledSequence, StartedSequence, StepPlan, StepResult

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CACHE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_WARM_UP_ID = -1
_WARM_UP_TOKENS = 16


class ModelRunner:
    """A loaded model, its KV cache and the sequences in progress.

    Follows a scheduler by the differences that its plans carry; the cache's blocks are the
    scheduler's to give out. One thread calls it: it is not thread-safe.

    With several ``ranks`` it holds a part of the model and of the cache. All ranks run the same
    plans, and sample the same tokens from the same logits.

    Raises:
        ModelSpecError: the model is not supported, not for sequences so long, or cannot be split
            over so many ranks.
        WeightLoadingError: the weights are missing or broken.
        ValueError: ``dtype`` or ``attention_backend`` of the configuration is unknown.
        KernelBuildError: the native backend was asked for by name and cannot be built.
    """

    def __init__(self, config: EngineConfig, ranks: Communicator = SINGLE_RANK) -> None:
        limits = config.scheduler
        dtype = DTYPES.get(config.dtype)
        if dtype is None:
            raise ValueError(f"dtype {config.dtype!r} is unknown (known: {', '.join(DTYPES)})")
        self.spec = ModelSpec.from_directory(config.model_dir)
        check_supported(self.spec)
        _check_max_model_len(self.spec, limits.max_model_len)
        torch.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
        by_expert = config.enable_expert_parallel
        check_divisible(self.spec, ranks.size, by_expert)
        with rank_0_first(ranks):
            self._backend = select_attention_backend(
                config.attention_backend, dtype, _cache_dtype(config.kv_cache_dtype, dtype)
            )
            self._kernels = choose_linear_kernels(
                self.spec,
                config.quantization,
                stored_dtype(config.model_dir),
                dtype,
                config.linear_kernel,
                ranks.size,
                expert_parallel=by_expert,
            )
        self._model = build_model(
            self.spec,
            limits.max_model_len,
            self._kernels,
            dtype,
            ranks,
            expert_parallel=by_expert,
        )
        show_progress = config.show_progress and ranks.rank == 0
        load_weights(self._model, config.model_dir, show_progress=show_progress)
        kv_heads = kv_heads_of(self.spec.num_kv_heads, ranks.rank, ranks.size)
        self._caches = self._backend.allocate_cache(
            self.spec.num_layers,
            limits.num_blocks,
            kv_heads.stop - kv_heads.start,
            limits.block_size,
            self.spec.head_dim,
        )
        self._forward: Forward
        compiled = self._kernels.are_compiled and isinstance(self._backend, NativeAttention)
        if compiled and ranks.size == 1 and CompiledForward.suits(self.spec):
            self._forward = CompiledForward(self._model, self.spec, self._caches)
        else:
            self._forward = ModularForward(self._model, self._caches, self._backend)
        self._limits = limits
        self._batch = InputBatch(limits)

    @property
    def detail(self) -> str:
        """What ``auto`` came to, for people."""
        return f"{self._backend.name} attention, products by {self._kernels.names}"

    @property
    def num_sequences(self) -> int:
        """Sequences that have started and have not been dropped."""
        return len(self._batch)

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step.

        Raises:
            ValueError: the plan contradicts what the runner knows (see ``InputBatch``).
        """
        start = time.perf_counter()
        self._batch.apply(plan)
        sampled: dict[int, int] = {}
        if plan.scheduled:
            inputs = self._batch.build(plan.scheduled)
            with torch.inference_mode():
                logits = self._forward.logits(inputs, inputs.sampled_tokens)
                if inputs.sampled_ids:
                    rows = [self._batch.sampling_row(i) for i in inputs.sampled_ids]
                    tokens = sampler.sample(logits, rows)
                    self._batch.append(inputs.sampled_ids, tokens)
                    sampled = dict(zip(inputs.sampled_ids, tokens, strict=True))
        return StepResult(sampled, time.perf_counter() - start)

    def forward(self, plan: StepPlan) -> Tensor:
        """Runs a step without sampling: the logits of every scheduled token, in plan order.

        Returns float32 [plan.num_tokens, vocab_size]. For tests and for measuring quality.
        """
        self._batch.apply(plan)
        with torch.inference_mode():
            inputs = self._batch.build(plan.scheduled)
            return self._forward.logits(inputs, torch.arange(len(inputs.token_ids))).clone()

    def check(self) -> None:
        """Nothing of it can break while it does nothing."""

    def warm_up(self) -> None:
        """Touches weights and code with a prefill and a decode step; leaves no sequence behind.

        Writes to the first cache blocks, so it is to run before the scheduler gives any out.
        """
        for plan in warm_up_plans(self._limits):
            self.execute(plan)


def warm_up_plans(limits: SchedulerConfig) -> Iterator[StepPlan]:
    """A prefill step, a decode step, and one that forgets the sequence again."""
    num_prompt = max(1, min(_WARM_UP_TOKENS, limits.max_model_len - 1))
    started = StartedSequence(
        sequence_id=_WARM_UP_ID,
        token_ids=(0,) * num_prompt,
        num_prompt_tokens=num_prompt,
        sampling=SamplingParams(max_tokens=1, seed=0, temperature=0.0),
        index=0,
    )
    blocks = tuple(range(-(-num_prompt // limits.block_size)))
    prefill = ScheduledSequence(_WARM_UP_ID, 0, num_prompt, blocks, samples=True)
    decode = ScheduledSequence(_WARM_UP_ID, num_prompt - 1, 1, (), samples=False)
    yield StepPlan(step_id=-1, started=(started,), scheduled=(prefill,))
    yield StepPlan(step_id=-1, scheduled=(decode,))
    yield StepPlan(step_id=-1, dropped=(_WARM_UP_ID,))


def _cache_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    if name == "auto":
        return dtype
    if name not in CACHE_DTYPES:
        known = ", ".join(["auto", *CACHE_DTYPES])
        raise ValueError(f"kv_cache_dtype {name!r} is unknown (known: {known})")
    return CACHE_DTYPES[name]


def _check_max_model_len(spec: ModelSpec, max_model_len: int) -> None:
    # Dynamic NTK scaling is made for lengths beyond the trained one; nothing else is.
    if max_model_len > spec.max_model_len and spec.rope.type is not RopeType.DYNAMIC:
        raise ModelSpecError(
            f"max_model_len {max_model_len} exceeds the {spec.max_model_len} tokens that the "
            "model was made for"
        )
