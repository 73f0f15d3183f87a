"""Memory, device by device and item by item, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planner.stages import bytes_by_layer, stage_layers
from profiles.model_spec import LayerSpec, ModelSpec, TensorRole
from profiles.step_cost import WeightFormat, kv_elements_per_token, weight_bytes_by_role

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_SHARED_HOST_KV_BYTES = 4 * GIB
"""Most that an unasked engine takes for its KV cache on a host that others use too."""
_SHARED_HOST_SHARE = 0.5
"""Of the memory left beside everything else; the rest is for everyone else."""


class DoesNotFitError(ValueError):
    """The model, or the cache that was asked for, does not fit into memory."""

    def __init__(self, message: str, *, shortfall_bytes: int) -> None:
        super().__init__(message)
        self.shortfall_bytes = shortfall_bytes


@dataclass(frozen=True, slots=True)
class Overheads:
    """What an engine takes besides the model, on each device."""

    context_bytes: int
    """Driver context, libraries, allocator's slack."""
    graph_bytes: int = 0
    graph_bytes_per_layer: int = 0
    """Captured device graphs."""
    communication_bytes: int = 0
    """Buffers of the collectives, when there are several devices."""
    utilization: float = 1.0
    """Share of the device's memory that the engine takes in all."""


OVERHEADS = {
    # Context and workspaces of a CUDA process, graphs as vLLM logs them (0.3 to 0.6 GiB for 32
    # layers), NCCL's buffers as aiconfigurator records them (342 to 392 MB); vLLM's own default
    # for the share of memory.
    ("vllm", "accelerator"): Overheads(
        context_bytes=int(0.75 * GIB),
        graph_bytes=int(0.2 * GIB),
        graph_bytes_per_layer=8 * 2**20,
        communication_bytes=int(0.37 * GIB),
        utilization=0.9,
    ),
    ("vllm", "cpu"): Overheads(context_bytes=2 * GIB),
    # As vLLM's: the same runtime, graphs of the same steps. Not measured yet.
    ("native", "accelerator"): Overheads(
        context_bytes=int(0.75 * GIB),
        graph_bytes=int(0.2 * GIB),
        graph_bytes_per_layer=8 * 2**20,
        communication_bytes=int(0.37 * GIB),
        utilization=0.9,
    ),
    # Resident size of an engine process with torch loaded and no model, measured: 0.3 GiB.
    ("native", "cpu"): Overheads(context_bytes=int(0.35 * GIB)),
}


@dataclass(frozen=True, slots=True)
class MemoryLedger:
    """Bytes on one device: where they differ, the one that has room for the fewest KV blocks."""

    device_bytes: int
    """All memory, as the driver reports it; on a host, what is available to us."""
    usable_bytes: int
    """What the engine may take of it."""
    weights_bytes: int
    activations_bytes: int
    logits_bytes: int
    state_bytes: int
    """Recurrent state of all sequences."""
    graphs_bytes: int
    communication_bytes: int
    context_bytes: int
    kv_block_bytes: int
    num_kv_blocks: int

    @property
    def kv_cache_bytes(self) -> int:
        return self.num_kv_blocks * self.kv_block_bytes

    @property
    def fixed_bytes(self) -> int:
        """Everything but the KV cache."""
        return (
            self.weights_bytes
            + self.activations_bytes
            + self.logits_bytes
            + self.state_bytes
            + self.graphs_bytes
            + self.communication_bytes
            + self.context_bytes
        )

    @property
    def free_bytes(self) -> int:
        """Usable and not spoken for; negative when the ledger does not close."""
        return self.usable_bytes - self.fixed_bytes - self.kv_cache_bytes


@dataclass(frozen=True, slots=True)
class MemoryDemand:
    """What is to be held: the model, its number formats, its split and its limits."""

    spec: ModelSpec
    engine: str
    weights: WeightFormat
    dtype: str
    kv_dtype_bytes: float
    tensor_parallel_size: int
    pipeline_parallel_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    stage_layers_asked: tuple[int, ...] | None = None
    stage_layers: tuple[int, ...] = field(init=False)
    """Layers of each pipeline stage: those asked for, or what the engine would choose."""

    def __post_init__(self) -> None:
        stages = self.pipeline_parallel_size
        layers = self.stage_layers_asked or stage_layers(
            self.spec, self.weights, self.engine, stages, self.max_num_seqs
        )
        object.__setattr__(self, "stage_layers", layers)

    def layers_of(self, stage: int) -> slice:
        first = sum(self.stage_layers[:stage])
        return slice(first, first + self.stage_layers[stage])

    def kv_block_bytes_of(self, stage: int) -> int:
        layers = self.spec.layers[self.layers_of(stage)]
        elements = kv_elements_per_token(layers, self.tensor_parallel_size)
        return max(1, round(elements * self.kv_dtype_bytes * self.block_size))

    @property
    def kv_block_bytes(self) -> int:
        """Of the stage with the largest blocks."""
        return max(map(self.kv_block_bytes_of, range(self.pipeline_parallel_size)))

    @property
    def useful_blocks(self) -> int:
        """Blocks that all sequences together could ever fill: more is never allocated."""
        return self.max_num_seqs * -(-self.max_model_len // self.block_size)

    @property
    def least_blocks(self) -> int:
        """Blocks without which one sequence of the longest length does not fit."""
        return -(-self.max_model_len // self.block_size)


def draw_up_ledger(
    demand: MemoryDemand,
    *,
    device_bytes: int,
    is_cpu: bool,
    taken_bytes: int = 0,
    utilization: float | None = None,
    kv_cache_bytes: int | None = None,
    num_kv_blocks: int | None = None,
) -> MemoryLedger:
    """Counts everything and gives the rest to the KV cache.

    ``taken_bytes`` is what other processes hold. ``kv_cache_bytes`` or ``num_kv_blocks`` is the
    user's own choice, which wins as it is.

    Raises:
        DoesNotFitError: with the figures.
    """
    overheads = OVERHEADS[demand.engine, "cpu" if is_cpu else "accelerator"]
    share = overheads.utilization if utilization is None else utilization
    usable = max(0, min(int(device_bytes * share), device_bytes - taken_bytes))
    stages = range(demand.pipeline_parallel_size)
    ledger = min(
        (_without_cache(demand, stage, device_bytes, usable, overheads) for stage in stages),
        key=lambda ledger: ledger.free_bytes / ledger.kv_block_bytes,
    )
    left = ledger.free_bytes
    if left <= 0:
        raise DoesNotFitError(
            f"the weights take {gib(ledger.weights_bytes)} and the engine's buffers "
            f"{gib(ledger.fixed_bytes - ledger.weights_bytes)}, "
            f"but only {gib(usable)} of memory is available",
            shortfall_bytes=-left + demand.least_blocks * ledger.kv_block_bytes,
        )
    if num_kv_blocks is None:
        block_bytes = ledger.kv_block_bytes if kv_cache_bytes is None else demand.kv_block_bytes
        if kv_cache_bytes is None:
            kv_cache_bytes = _unasked_kv_bytes(demand, ledger, is_cpu)
        num_kv_blocks = kv_cache_bytes // block_bytes
        if num_kv_blocks < 1:
            raise DoesNotFitError(
                f"a KV cache of {gib(kv_cache_bytes)} holds not one block of {demand.block_size} "
                f"tokens, which takes {gib(block_bytes)}",
                shortfall_bytes=demand.least_blocks * block_bytes - kv_cache_bytes,
            )
    closed = replace(ledger, num_kv_blocks=num_kv_blocks)
    if closed.free_bytes < 0:
        raise DoesNotFitError(
            f"{num_kv_blocks} KV blocks take {gib(closed.kv_cache_bytes)}, but beside the weights "
            f"({gib(ledger.weights_bytes)}) only {gib(left)} is available; "
            f"at most {left // ledger.kv_block_bytes} blocks fit",
            shortfall_bytes=-closed.free_bytes,
        )
    return closed


def _without_cache(
    demand: MemoryDemand, stage: int, device_bytes: int, usable_bytes: int, overheads: Overheads
) -> MemoryLedger:
    """What a device of a pipeline's stage holds before any KV block."""
    is_last = stage == demand.pipeline_parallel_size - 1
    layers = demand.layers_of(stage)
    num_layers = layers.stop - layers.start
    is_split = demand.tensor_parallel_size * demand.pipeline_parallel_size > 1
    return MemoryLedger(
        device_bytes=device_bytes,
        usable_bytes=usable_bytes,
        weights_bytes=_weight_bytes(demand, stage),
        activations_bytes=_activation_bytes(demand),
        logits_bytes=_logits_bytes(demand) if is_last else 0,
        state_bytes=_state_bytes(demand, demand.spec.layers[layers]),
        graphs_bytes=overheads.graph_bytes + overheads.graph_bytes_per_layer * num_layers,
        communication_bytes=overheads.communication_bytes if is_split else 0,
        context_bytes=overheads.context_bytes,
        kv_block_bytes=demand.kv_block_bytes_of(stage),
        num_kv_blocks=0,
    )


def _unasked_kv_bytes(demand: MemoryDemand, ledger: MemoryLedger, is_cpu: bool) -> int:
    """An accelerator is ours alone; on a host no more is taken than can be used."""
    left = ledger.free_bytes
    if not is_cpu:
        return left
    num_ranks = demand.tensor_parallel_size * demand.pipeline_parallel_size
    shared = min(_SHARED_HOST_KV_BYTES // num_ranks, int(left * _SHARED_HOST_SHARE))
    return min(demand.useful_blocks * ledger.kv_block_bytes, shared)


def _weight_bytes(demand: MemoryDemand, stage: int) -> int:
    """A stage's layers; the embedding in the first; head and last norm in the last, where a tied
    head is another copy of the embedding."""
    by_role = dict(weight_bytes_by_role(demand.spec, demand.weights))
    embedding = by_role.get(TensorRole.EMBEDDING, 0.0)
    by_layer = bytes_by_layer(demand.spec, demand.weights)
    held = sum(by_layer[demand.layers_of(stage)])
    is_first, is_last = stage == 0, stage == demand.pipeline_parallel_size - 1
    if is_first or (is_last and demand.spec.tie_word_embeddings):
        held += embedding
    if is_last:
        held += sum(by_role.values()) - embedding - sum(by_layer)
    return round(held / demand.tensor_parallel_size)


def _activation_bytes(demand: MemoryDemand) -> int:
    """Tensors alive at once in the widest layer of a full step.

    Residual, normed input and output are whole on every device; queries, keys, values and the
    attention's output, or gate, up and their product, are split.
    """
    tp = demand.tensor_parallel_size
    width = 0.0
    for layer in set(demand.spec.layers):
        attention, mlp = layer.attention, layer.mlp
        heads = attention.num_heads * (attention.head_dim + attention.v_head_dim)
        heads += 2 * attention.num_kv_heads * max(attention.head_dim, attention.v_head_dim)
        inner = 3 * (mlp.intermediate_size + mlp.shared_intermediate_size)
        if mlp.num_experts:
            inner = 3 * mlp.shared_intermediate_size + mlp.experts_per_token * (
                3 * mlp.expert_intermediate_size + demand.spec.hidden_size * tp
            )
        width = max(width, heads / tp, inner / tp)
    width += 4 * demand.spec.hidden_size
    return round(demand.max_num_batched_tokens * width * DTYPE_BYTES[demand.dtype])


def _logits_bytes(demand: MemoryDemand) -> int:
    """Logits in the model's type, in float32 and once more while sampling."""
    row = demand.spec.vocab_size * (DTYPE_BYTES[demand.dtype] + 4 + 4)
    return demand.max_num_seqs * row


def _state_bytes(demand: MemoryDemand, layers: Sequence[LayerSpec]) -> int:
    elements = sum(layer.attention.state_elements for layer in layers)
    return round(4 * elements * demand.max_num_seqs / demand.tensor_parallel_size)


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
