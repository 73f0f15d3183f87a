"""What a layer of a decoder is made of, in the sizes that memory and time depend on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AttentionKind(StrEnum):
    """How a layer remembers the tokens before: what it caches for them."""

    FULL = "full"
    """Keys and values of every token."""
    SLIDING = "sliding"
    """Keys and values of the last ``window`` tokens."""
    LATENT = "latent"
    """One compressed vector per token for all heads (MLA, DeepSeek-V2, arXiv 2405.04434)."""
    RECURRENT = "recurrent"
    """A state of fixed size per sequence (linear attention, state-space layers)."""


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The token mixer of one layer; sizes in elements."""

    kind: AttentionKind
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Of queries and keys."""
    v_head_dim: int
    window: int | None = None
    """Tokens (itself included) that a token sees; None is all of them."""
    latent_dim: int = 0
    """LATENT: cached elements of a token, ``kv_lora_rank + qk_rope_head_dim``."""
    state_elements: int = 0
    """RECURRENT: elements of a sequence's state, however long the sequence is."""

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds to this layer's cache."""
        match self.kind:
            case AttentionKind.FULL | AttentionKind.SLIDING:
                return self.num_kv_heads * (self.head_dim + self.v_head_dim)
            case AttentionKind.LATENT:
                return self.latent_dim
            case AttentionKind.RECURRENT:
                return 0

    def kv_elements(self, num_tokens: int) -> int:
        """Elements cached for a sequence of ``num_tokens``, without its recurrent state."""
        kept = num_tokens if self.window is None else min(num_tokens, self.window)
        return kept * self.kv_elements_per_token

    def flops(self, num_new: int, num_context: int) -> int:
        """Operations of ``num_new`` tokens attending to themselves after ``num_context`` others.

        Query-key products and weighted values: ``2·heads·(head_dim + v_head_dim)`` per pair of a
        token and one it sees. The delta rule of a recurrent layer decays, reads, corrects and
        reads its state: 7 operations per element and token (``torch_recurrent_gated_delta_rule``
        of transformers 5.23).
        """
        if self.kind is AttentionKind.RECURRENT:
            return 7 * self.state_elements * num_new
        pairs = _pairs_seen(num_new, num_context, self.window)
        return 2 * self.num_heads * (self.head_dim + self.v_head_dim) * pairs


def _pairs_seen(num_new: int, num_context: int, window: int | None) -> int:
    growing = num_new
    if window is not None:
        growing = max(0, min(num_new, window - num_context))
    pairs = growing * num_context + growing * (growing + 1) // 2
    return pairs + (num_new - growing) * (window or 0)


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """The feed-forward part of one layer: dense, or experts of which a router chooses some."""

    intermediate_size: int
    """Of a dense layer; 0 when it has routed experts."""
    num_experts: int = 0
    """Routed experts; 0 is a dense layer."""
    experts_per_token: int = 0
    expert_intermediate_size: int = 0
    shared_intermediate_size: int = 0
    """Of all experts together that every token passes."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    attention: AttentionSpec
    mlp: MlpSpec
