"""What one step of a model costs, in bytes and operations: counted, not measured.

Counts follow the usual accounting of a decoder (Kaplan et al., arXiv 2001.08361, section 2.1;
Pope et al., arXiv 2211.05102): two operations per weight and token, ``2·heads·(head_dim +
v_head_dim)`` per query-key pair, weights read once a step, keys and values of a context read once
per sequence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from profiles.model_spec import AttentionKind, AttentionSpec, LayerSpec, ModelSpec, TensorRole

LINEAR_ROLES = (TensorRole.ATTENTION, TensorRole.MLP, TensorRole.ROUTER)
"""Weights that every token passes, in every layer."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The sizes of a step that its duration depends on.

    ``kv_tokens`` and ``attention_pairs`` have one entry for each of the model's windows (see
    ``StepCost.windows``): tokens of context read, and pairs of a new token and one it sees.
    """

    num_tokens: int
    num_sequences: int
    num_sampled: int
    kv_tokens: tuple[float, ...]
    attention_pairs: tuple[float, ...]

    @classmethod
    def of(
        cls, sequences: Iterable[tuple[int, int]], windows: tuple[int | None, ...], num_sampled: int
    ) -> StepShape:
        """The shape of a step over ``(num_computed_tokens, num_tokens)`` of each sequence."""
        if windows == (None,):
            return cls._without_windows(sequences, num_sampled)
        num_tokens = num_sequences = 0
        kv_tokens = [0.0] * len(windows)
        pairs = [0.0] * len(windows)
        for computed, new in sequences:
            num_sequences += 1
            num_tokens += new
            for index, window in enumerate(windows):
                context = computed + new
                if window is None or context <= window:
                    kv_tokens[index] += context
                    pairs[index] += new * (computed + 0.5 * (new + 1))
                else:
                    kv_tokens[index] += min(context, window + new - 1)
                    # Each new token sees at most the window; the first ones of a prompt see less.
                    growing = max(0, min(new, window - computed))
                    seen = growing * (computed + 0.5 * (growing + 1))
                    pairs[index] += seen + (new - growing) * window
        return cls(num_tokens, num_sequences, num_sampled, tuple(kv_tokens), tuple(pairs))

    @classmethod
    def _without_windows(cls, sequences: Iterable[tuple[int, int]], num_sampled: int) -> StepShape:
        """``of`` for most models, which simulations call for every step."""
        num_tokens = num_sequences = kv_tokens = 0
        pairs = 0.0
        for computed, new in sequences:
            num_sequences += 1
            num_tokens += new
            kv_tokens += computed + new
            pairs += new * (computed + 0.5 * (new + 1))
        return cls(num_tokens, num_sequences, num_sampled, (float(kv_tokens),), (pairs,))


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Bytes per weight as held on the device, by what the weights are for."""

    other_bytes: float
    """Of roles that are not named."""
    by_role: Mapping[TensorRole, float] = field(default_factory=dict)

    def bytes_of(self, role: TensorRole) -> float:
        return self.by_role.get(role, self.other_bytes)


def expected_experts(num_experts: int, experts_per_token: int, num_tokens: int) -> float:
    """Of a layer's experts, as many as ``num_tokens`` tokens are expected to go to, routed evenly.

    A token passes an expert by with probability 1 - experts_per_token / num_experts.
    """
    untouched: float = (1 - experts_per_token / num_experts) ** num_tokens
    return num_experts * (1 - untouched)


@dataclass(frozen=True, slots=True)
class ExpertGroup:
    """Layers with the same routed experts."""

    num_layers: int
    num_experts: int
    experts_per_token: int
    bytes_per_expert: float
    flops_per_token: float
    """Of the chosen experts of all these layers, on one device."""

    def num_touched(self, num_tokens: int) -> float:
        return expected_experts(self.num_experts, self.experts_per_token, num_tokens)

    def bytes_read(self, num_tokens: int) -> float:
        """Of all these layers, on one device."""
        return self.num_layers * self.num_touched(num_tokens) * self.bytes_per_expert

    def rows_each(self, num_tokens: int) -> float:
        """Tokens that an expert which is touched has to multiply, on average."""
        return num_tokens * self.experts_per_token / self.num_touched(num_tokens)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Bytes and operations of a step on one device of a tensor-parallel group.

    With pipeline stages the figures are those of all stages together: what one token passes.
    """

    num_layers: int
    tensor_parallel_size: int
    linear_bytes: float
    linear_flops_per_token: float
    head_bytes: float
    head_flops_per_row: float
    experts: tuple[ExpertGroup, ...]
    windows: tuple[int | None, ...]
    kv_bytes_per_token: tuple[float, ...]
    """For each window, over its layers."""
    attention_flops_per_pair: tuple[float, ...]
    state_bytes_per_sequence: float
    """Recurrent state, read and written by each sequence in a step."""
    hidden_bytes: float
    """Of a token's hidden vector."""
    collective_bytes_per_token: float
    """Sent by each device in the all-reduces of a step."""
    num_collectives: int
    sampled_bytes_per_row: float

    def weight_bytes_read(self, num_tokens: int) -> float:
        return self.linear_bytes + sum(group.bytes_read(num_tokens) for group in self.experts)

    def linear_flops(self, num_tokens: int) -> float:
        routed = sum(group.flops_per_token for group in self.experts)
        return num_tokens * (self.linear_flops_per_token + routed)

    def kv_bytes(self, shape: StepShape) -> float:
        """Keys, values and recurrent state read and written."""
        return self.kv_bytes_read(shape) + self.kv_bytes_written(shape)

    def kv_bytes_read(self, shape: StepShape) -> float:
        kept = sum(
            tokens * size
            for tokens, size in zip(shape.kv_tokens, self.kv_bytes_per_token, strict=True)
        )
        return kept + self.state_bytes_per_sequence * shape.num_sequences

    def kv_bytes_written(self, shape: StepShape) -> float:
        new = sum(self.kv_bytes_per_token) * shape.num_tokens
        return new + self.state_bytes_per_sequence * shape.num_sequences

    def bytes_read(self, shape: StepShape) -> float:
        """Weights, and what is kept of contexts."""
        head = self.head_bytes if shape.num_sampled else 0.0
        return self.weight_bytes_read(shape.num_tokens) + head + self.kv_bytes_read(shape)

    def flops(self, shape: StepShape) -> float:
        """Operations of the layers' products, the head's and attention."""
        head = self.head_flops_per_row * shape.num_sampled
        return self.linear_flops(shape.num_tokens) + head + self.attention_flops(shape)

    def attention_flops(self, shape: StepShape) -> float:
        return sum(
            pairs * flops
            for pairs, flops in zip(
                shape.attention_pairs, self.attention_flops_per_pair, strict=True
            )
        )


def weight_bytes_by_role(spec: ModelSpec, weights: WeightFormat) -> Mapping[TensorRole, float]:
    """Bytes of all weights of the model in this format, by role."""
    counts = spec.parameters_by_role
    return {role: count * weights.bytes_of(role) for role, count in counts.items()}


def step_cost(
    spec: ModelSpec,
    weights: WeightFormat,
    *,
    kv_dtype_bytes: float,
    activation_dtype_bytes: float,
    tensor_parallel_size: int = 1,
) -> StepCost:
    """Counts a step of ``spec`` on one of ``tensor_parallel_size`` devices.

    Linear layers, experts and the head are split evenly; keys and values by KV heads, which are
    replicated when there are fewer of them than devices; a latent cache is held by each device.
    """
    tp = tensor_parallel_size
    role_bytes = weight_bytes_by_role(spec, weights)
    parameters = spec.parameters_by_role
    linear_parameters = sum(parameters.get(role, 0) for role in LINEAR_ROLES)
    head_parameters = spec.vocab_size * spec.hidden_size
    head_width = weights.bytes_of(TensorRole.HEAD)
    attention = Counter(layer.attention for layer in spec.layers)
    windows = tuple(
        dict.fromkeys(a.window for a in attention if a.kind is not AttentionKind.RECURRENT)
    ) or (None,)
    return StepCost(
        num_layers=spec.num_layers,
        tensor_parallel_size=tp,
        linear_bytes=sum(role_bytes.get(role, 0.0) for role in LINEAR_ROLES) / tp,
        linear_flops_per_token=2 * linear_parameters / tp,
        head_bytes=head_parameters * head_width / tp,
        head_flops_per_row=2 * head_parameters / tp,
        experts=_expert_groups(spec, weights, tp),
        windows=windows,
        kv_bytes_per_token=tuple(
            _sum_by_window(attention, window, lambda a: _kv_elements(a, tp)) * kv_dtype_bytes
            for window in windows
        ),
        attention_flops_per_pair=tuple(
            _sum_by_window(attention, window, lambda a: _pair_flops(a, tp)) for window in windows
        ),
        state_bytes_per_sequence=4.0
        * sum(count * a.state_elements / tp for a, count in attention.items()),
        hidden_bytes=spec.hidden_size * activation_dtype_bytes,
        # A ring all-reduce sends 2·(tp-1)/tp of the vector (Patarasuk and Yuan, 2009), twice a
        # layer and once for the embedding.
        collective_bytes_per_token=(2 * spec.num_layers + 1)
        * spec.hidden_size
        * activation_dtype_bytes
        * 2
        * (tp - 1)
        / tp,
        num_collectives=2 * spec.num_layers + 2 if tp > 1 else 0,
        sampled_bytes_per_row=4.0 * spec.vocab_size,
    )


def kv_elements_per_token(layers: Iterable[LayerSpec], tensor_parallel_size: int) -> float:
    """Elements that one token adds to one device's KV cache of these layers, windows ignored."""
    return sum(_kv_elements(layer.attention, tensor_parallel_size) for layer in layers)


def _kv_elements(attention: AttentionSpec, tp: int) -> float:
    if attention.kind is AttentionKind.LATENT or attention.num_kv_heads == 0:
        return attention.kv_elements_per_token
    return attention.kv_elements_per_token * max(1 / tp, 1 / attention.num_kv_heads)


def _pair_flops(attention: AttentionSpec, tp: int) -> float:
    if attention.kind is AttentionKind.RECURRENT:
        return 0.0
    return 2 * attention.num_heads * (attention.head_dim + attention.v_head_dim) / tp


def _sum_by_window(
    attention: Counter[AttentionSpec], window: int | None, of: Callable[[AttentionSpec], float]
) -> float:
    return sum(
        count * of(a)
        for a, count in attention.items()
        if a.window == window and a.kind is not AttentionKind.RECURRENT
    )


def _expert_groups(spec: ModelSpec, weights: WeightFormat, tp: int) -> tuple[ExpertGroup, ...]:
    routed = Counter(layer.mlp for layer in spec.layers if layer.mlp.num_experts)
    total = sum(count * mlp.num_experts for mlp, count in routed.items())
    if not total:
        return ()
    # Layers share one expert size in every model known; biases are counted with their experts.
    per_expert = spec.parameters_by_role[TensorRole.EXPERTS] / total
    return tuple(
        ExpertGroup(
            num_layers=count,
            num_experts=mlp.num_experts,
            experts_per_token=mlp.experts_per_token,
            bytes_per_expert=per_expert * weights.bytes_of(TensorRole.EXPERTS) / tp,
            flops_per_token=2 * count * mlp.experts_per_token * per_expert / tp,
        )
        for mlp, count in routed.items()
    )
