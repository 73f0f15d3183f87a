"""Runs the steps that the scheduler plans: one forward pass each, then sampling."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.grammar import GrammarCompiler
from engine.native.attention.native_backend import NativeAttention
from engine.native.attention.select import select_attention_backend
from engine.native.attention.torch_backend import TorchAttention
from engine.native.attention.workload import AttentionShape
from engine.native.compiled_forward import CompiledForward
from engine.native.device import open_device
from engine.native.forward import Forward, ModularForward
from engine.native.input_batch import InputBatch
from engine.native.linear.cuda import cuda_linear_kernels
from engine.native.linear.select import LinearKernels, choose_linear_kernels
from engine.native.loader import load_weights, stored_dtype
from engine.native.memory import populate_in_background
from engine.native.models import build_model
from engine.native.parallel.communicator import SINGLE_RANK, Communicator, rank_0_first
from engine.native.parallel.partition import check_divisible, kv_heads_of, stage_of
from engine.native.parallel.pipeline import SINGLE_STAGE, Pipeline
from engine.native.quantization import handler_for
from engine.native.random_weights import fill_with_noise
from engine.native.sampling.select import select_sampling_backend
from engine.native.staged_forward import StagedForward
from engine.native.staging import Staging
from engine.native.step import StepRunner
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
CACHE_DTYPES = {**DTYPES, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
LOAD_FORMATS = ("safetensors", "random")
_STAGING_BYTES = 2**20
_WARM_UP_ID = -1
_WARM_UP_TOKENS = 16


class ModelRunner:
    """A loaded model, its KV cache and the sequences in progress.

    Follows a scheduler by the differences that its plans carry; the cache's blocks are the
    scheduler's to give out. One thread calls it: it is not thread-safe.

    With several ``ranks`` it holds a part of the model and of the cache. All ranks run the same
    plans, and sample the same tokens from the same logits. In a ``pipeline`` it holds a stage,
    runs that stage's part of each plan, and only samples in the last stage.

    There are as many lanes as stages: batches that proceed by themselves, each with a scheduler, a
    share of the cache and sequences of its own.

    Raises:
        ModelSpecError: the model is not supported, not for sequences so long, or cannot be split
            over so many ranks or stages.
        WeightLoadingError: the weights are missing or broken.
        ValueError: ``dtype``, ``device`` or ``attention_backend`` of the configuration is unknown,
            or they do not go together.
        KernelBuildError: the native backend was asked for by name and cannot be built.
    """

    def __init__(
        self,
        config: EngineConfig,
        ranks: Communicator = SINGLE_RANK,
        pipeline: Pipeline = SINGLE_STAGE,
    ) -> None:
        limits = config.scheduler
        dtype = DTYPES.get(config.dtype)
        if dtype is None:
            raise ValueError(f"dtype {config.dtype!r} is unknown (known: {', '.join(DTYPES)})")
        self.spec = ModelSpec.from_directory(config.model_dir)
        check_supported(self.spec)
        _check_max_model_len(self.spec, limits.max_model_len)
        if config.load_format not in LOAD_FORMATS:
            known = ", ".join(LOAD_FORMATS)
            raise ValueError(f"load_format {config.load_format!r} is unknown (known: {known})")
        rank = pipeline.rank * ranks.size + ranks.rank  # as ``place_of`` counts
        self._device = open_device(config.device, rank)
        torch.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
        check_divisible(self.spec, ranks.size, config.enable_expert_parallel)
        stage = stage_of(self.spec, pipeline.rank, pipeline.size, config.stage_layers)
        shape = _attention_shape(self.spec, limits.block_size, ranks)
        self._captures = config.cuda_graphs and self._can_capture(ranks, pipeline)
        with rank_0_first(ranks), rank_0_first(pipeline):
            self._backend = select_attention_backend(
                config.attention_backend,
                dtype,
                _cache_dtype(config.kv_cache_dtype, dtype),
                self._device,
                shape,
                cuda_graphs=self._captures,
            )
            self._kernels = self._choose_kernels(config, dtype, ranks)
        with self._device:  # where parameters are created
            self._model = build_model(
                self.spec,
                limits.max_model_len,
                self._kernels,
                dtype,
                ranks,
                stage,
                expert_parallel=config.enable_expert_parallel,
            )
        self._fill_model(config, dtype, show_progress=config.show_progress and rank == 0)
        self._caches = self._backend.allocate_cache(
            len(stage.layers),
            pipeline.size * limits.num_blocks,
            shape.num_kv_heads,
            shape.block_size,
            shape.head_dim,
        )
        if self._device.type == "cpu":
            populate_in_background(part for cache in self._caches for part in cache.tensors)
        self._limits = limits
        self._forward = self._choose_forward(ranks, pipeline)
        self.samples = pipeline.is_last
        """Whether it has logits; if not, it must ``take_in`` what was sampled from them."""
        self.grammars = GrammarCompiler(
            (config.model_dir / "tokenizer.json").read_text, self.spec.vocab_size
        )
        self.lanes = [self._lane(lane * limits.num_blocks) for lane in range(pipeline.size)]

    def _can_capture(self, ranks: Communicator, pipeline: Pipeline) -> bool:
        """Not every kind of collective can be captured."""
        return self._device.type == "cuda" and ranks.size == pipeline.size == 1

    def _choose_kernels(
        self, config: EngineConfig, dtype: torch.dtype, ranks: Communicator
    ) -> LinearKernels:
        if self._device.type == "cuda":
            return cuda_linear_kernels(
                config.quantization,
                self.spec.quantization,
                dtype,
                config.linear_kernel,
                torch.cuda.get_device_capability(self._device),
            )
        stored = dtype if config.load_format == "random" else stored_dtype(config.model_dir)
        return choose_linear_kernels(
            self.spec,
            config.quantization,
            stored,
            dtype,
            config.linear_kernel,
            ranks.size,
            expert_parallel=config.enable_expert_parallel,
        )

    def _fill_model(self, config: EngineConfig, dtype: torch.dtype, *, show_progress: bool) -> None:
        if config.load_format == "random":
            if self.spec.quantization is not None:
                raise ValueError("load_format random makes no weights of a quantized checkpoint")
            fill_with_noise(self._model, dtype)
            return
        stored = self.spec.quantization
        handler = None if stored is None else handler_for(stored)
        load_weights(self._model, config.model_dir, handler, show_progress=show_progress)

    def _choose_forward(self, ranks: Communicator, pipeline: Pipeline) -> Forward:
        model, caches, backend = self._model, self._caches, self._backend
        compiled = self._kernels.are_compiled and isinstance(backend, NativeAttention)
        if compiled and ranks.size == 1 and CompiledForward.suits(self.spec, model):
            return CompiledForward(model, self.spec, caches, pipeline)
        if isinstance(backend, NativeAttention | TorchAttention) or pipeline.size > 1:
            modular = ModularForward(model, caches, backend, pipeline)
            if self._device.type == "cpu":
                return modular
            return StagedForward(modular, Staging(self._device, _STAGING_BYTES), graphs=None)
        # Brings Triton in, which a CPU does without.
        from engine.native.cuda_graphs import DecodeGraphs
        from engine.native.fused_forward import FusedForward

        fused = FusedForward(model, caches, backend, self._limits.max_model_len)
        graphs = None
        if self._captures and fused.can_be_captured:
            graphs = DecodeGraphs(fused, self._limits, self.spec.vocab_size, self._device)
        return StagedForward(fused, Staging(self._device, _STAGING_BYTES), graphs)

    def _lane(self, first_block: int) -> StepRunner:
        batch = InputBatch(self._limits, first_block, self.grammars)
        sampling = select_sampling_backend(self._device)
        return StepRunner(self._forward, batch, sampling, self._device, samples=self.samples)

    @property
    def detail(self) -> str:
        """What ``auto`` came to, for people."""
        where = "" if self._device.type == "cpu" else f" on {self._device}"
        return f"{self._backend.name} attention, products by {self._kernels.names}{where}"

    @property
    def num_sequences(self) -> int:
        """Sequences that have started and have not been dropped."""
        return sum(len(lane.batch) for lane in self.lanes)

    def execute(self, plan: StepPlan, lane: int = 0) -> StepResult:
        """Runs one step of a lane.

        Raises:
            ValueError: the plan contradicts what the runner knows (see ``InputBatch``).
        """
        return self.lanes[lane].execute(plan)

    def take_in(self, result: StepResult, lane: int) -> None:
        """Learns what the last stage sampled in a lane's step before."""
        self.lanes[lane].batch.append(result.sampled_token_ids)

    def forward(self, plan: StepPlan, rows: Sequence[int] | None = None) -> Tensor:
        """Runs a step without sampling: the logits of its tokens in plan order, or of ``rows``.

        Returns float32 [number of rows, vocab_size]. For tests and for measuring quality.
        """
        batch = self.lanes[0].batch
        batch.apply(plan)
        with torch.inference_mode():
            inputs = batch.build(plan.scheduled)
            wanted = torch.arange(len(inputs.token_ids)) if rows is None else torch.tensor(rows)
            logits = self._forward.logits(inputs, wanted.long())
            return logits.to("cpu", copy=True)

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


def _attention_shape(spec: ModelSpec, block_size: int, ranks: Communicator) -> AttentionShape:
    """What a rank holds of the model's attention."""
    kv_heads = kv_heads_of(spec.num_kv_heads, ranks.rank, ranks.size)
    return AttentionShape(
        num_heads=spec.num_attention_heads // ranks.size,
        num_kv_heads=kv_heads.stop - kv_heads.start,
        head_dim=spec.head_dim,
        block_size=block_size,
        has_window=any(window is not None for window in spec.sliding_window),
    )


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
