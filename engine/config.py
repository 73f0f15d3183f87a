"""What an engine process is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything the native engine's process needs, decided before it starts.

    A batch that proceeds by itself, with a scheduler of its own, is a lane; there are as many as
    pipeline stages (``planner.sizing.Sized.num_lanes``). They share the KV blocks that
    ``planner.ledger`` found room for.
    """

    model_dir: Path
    scheduler: SchedulerConfig
    """Of each lane."""
    dtype: str = "float32"
    """Type of activations; also of weights and KV cache where nothing else is said."""
    quantization: str = "none"
    """Scheme that weights are held in: ``none`` (as stored), ``fp8``, ``int8``, ``int8_g128``,
    ``int4`` or ``int4_g128`` (``profiles/numerics.yaml``); that of a checkpoint that is quantized
    already."""
    kv_cache_dtype: str = "auto"
    """``auto`` (that of ``dtype``), ``float32``, ``bfloat16``, ``float16``, ``int8`` or ``fp8``."""
    tensor_parallel_size: int = 1
    """Ranks that each hold a part of every layer; all but the first are processes of their own."""
    pipeline_parallel_size: int = 1
    """Stages, each so many ranks, that the layers are divided among."""
    stage_layers: tuple[int, ...] = ()
    """Layers of each stage; empty divides them evenly."""
    enable_expert_parallel: bool = False
    """Each rank holds some of a layer's experts whole, instead of a part of all of them."""
    num_threads: int = 0
    """Compute threads of all ranks; 0 takes one for each core this process may use."""
    cpus: tuple[int, ...] = ()
    """The hardware thread that each compute thread is bound to; empty leaves it to the system."""
    device: str = "cpu"
    """``cpu``, ``cuda`` (the first) or ``cuda:0``, ``cuda:1``, …"""
    cuda_graphs: bool = True
    """On CUDA, repeat decode steps from captured graphs."""
    attention_backend: str = "auto"
    """``auto``, ``native`` (compiled CPU kernel), ``torch`` (plain torch, the reference),
    ``triton`` (GPU kernels), or ``sdpa``, ``flash-attn`` or ``flashinfer`` for what they can do."""
    linear_kernel: str = "auto"
    """Implementation of the matrix products (``engine.native.linear.select.KERNELS``); ``auto``
    measures which is fastest on this CPU, and on a GPU rounds activations where weights can meet
    such."""
    async_scheduling: bool = False
    """Plan each step while the one before it runs, where that is known to hold no drafts. Not for
    pipelines, whose lanes are planned while others run."""
    load_format: str = "safetensors"
    """``safetensors``, or ``random``: noise in place of weights, to measure speed without any."""
    step_time: StepTimeModel | None = None
    """What its steps are predicted to take, for decisions while it runs (speculation)."""
    show_progress: bool = True
    """Draw a progress bar while weights load, where standard error is a terminal."""

    @property
    def num_ranks(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def num_lanes(self) -> int:
        return self.pipeline_parallel_size

    @property
    def max_num_seqs(self) -> int:
        """Sequences in progress at once, in all lanes."""
        return self.num_lanes * self.scheduler.max_num_seqs

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence that any request may have."""
        return self.scheduler.max_model_len


@dataclass(frozen=True, slots=True)
class SimulatedPool:
    """Lanes that are alike: replicas of one layout on devices of one kind.

    A lane is a batch that proceeds by itself, with a scheduler of its own: each pipeline stage of
    each replica holds one (``planner.sizing.Sized.num_lanes``).
    """

    hardware: str
    num_lanes: int
    share: float
    """Of the requests, relative to the other pools."""
    scheduler: SchedulerConfig
    """Of each lane."""
    step_time: StepTimeModel


@dataclass(frozen=True, slots=True)
class SimulatedConfig:
    """Everything the simulated engine's process needs."""

    pools: tuple[SimulatedPool, ...]
    vocab_size: int
    """Of the tokenizer that the server reads the tokens with."""
    placeholder: tuple[int, ...]
    """Token ids of the text that every answer repeats."""
    end_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer whose length nobody asked for."""

    @property
    def max_num_seqs(self) -> int:
        """Sequences in progress at once, in all lanes."""
        return sum(pool.num_lanes * pool.scheduler.max_num_seqs for pool in self.pools)

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence that any request may have, whichever lane gets it."""
        return min(pool.scheduler.max_model_len for pool in self.pools)
