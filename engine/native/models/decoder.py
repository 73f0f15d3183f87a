"""The decoder of Llama, Mistral, Mixtral and Qwen 2 and 3; a ``ModelSpec`` says how they differ.

Modules carry the names of the Hugging Face checkpoints, which is how weights find them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.native.attention.backend import AttentionBackend, LayerCache
from engine.native.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from engine.native.layers.linear import QKVParallelLinear, RowParallelLinear
from engine.native.layers.mlp import GatedMLP
from engine.native.layers.moe import SparseMoE
from engine.native.layers.norm import RMSNorm
from engine.native.layers.rotary import RotaryEmbedding, rotate
from engine.native.linear.select import LinearKernels
from engine.native.parallel.communicator import SINGLE_RANK, Communicator
from engine.native.parallel.partition import Stage
from profiles.model_spec import LayerSpec, ModelSpec


class Attention(nn.Module):
    def __init__(
        self,
        spec: ModelSpec,
        window: int | None,
        kernels: LinearKernels,
        dtype: torch.dtype,
        ranks: Communicator,
    ) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        self.window = window
        self.qkv_proj = QKVParallelLinear(
            spec.hidden_size,
            spec.head_dim,
            spec.num_attention_heads,
            spec.num_kv_heads,
            kernels.qkv,
            ranks,
            bias=spec.qkv_bias,
            dtype=dtype,
        )
        self.num_heads = self.qkv_proj.num_heads
        self.num_kv_heads = self.qkv_proj.num_kv_heads
        self.o_proj = RowParallelLinear(
            spec.num_attention_heads * spec.head_dim,
            spec.hidden_size,
            kernels.output,
            ranks,
            bias=spec.o_bias,
            dtype=dtype,
        )
        if spec.qk_norm:
            self.q_norm: RMSNorm | None = RMSNorm(spec.head_dim, spec.rms_norm_eps, dtype=dtype)
            self.k_norm: RMSNorm | None = RMSNorm(spec.head_dim, spec.rms_norm_eps, dtype=dtype)
        else:
            self.q_norm = self.k_norm = None

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        cache: LayerCache,
        backend: AttentionBackend,
    ) -> Tensor:
        heads = self.qkv_proj(hidden).view(len(hidden), -1, self.head_dim)
        num_rotated = self.num_heads + self.num_kv_heads
        value = heads[:, num_rotated:]
        if self.q_norm is None or self.k_norm is None:
            # Queries and keys lie side by side, so one rotation serves both.
            rotated = rotate(heads[:, :num_rotated], *angles)
            query, key = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        else:
            query = rotate(self.q_norm(heads[:, : self.num_heads]), *angles)
            key = rotate(self.k_norm(heads[:, self.num_heads : num_rotated]), *angles)
        output: Tensor = self.o_proj(backend.forward(query, key, value, cache, self.window))
        return output


class DecoderLayer(nn.Module):
    def __init__(
        self,
        spec: ModelSpec,
        layer: LayerSpec,
        kernels: LinearKernels,
        dtype: torch.dtype,
        ranks: Communicator,
        *,
        expert_parallel: bool,
    ) -> None:
        super().__init__()
        hidden_size, mlp = spec.hidden_size, layer.mlp
        self.input_layernorm = RMSNorm(hidden_size, spec.rms_norm_eps, dtype=dtype)
        self.self_attn = Attention(spec, layer.attention.window, kernels, dtype, ranks)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, dtype=dtype)
        self.mlp: GatedMLP | SparseMoE
        if mlp.num_experts:
            self.mlp = SparseMoE(
                hidden_size,
                mlp,
                kernels,
                dtype,
                ranks,
                norm_topk_prob=spec.norm_topk_prob,
                expert_parallel=expert_parallel,
            )
        else:
            self.mlp = GatedMLP(
                hidden_size, mlp.intermediate_size, kernels, dtype, ranks, bias=spec.mlp_bias
            )

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        cache: LayerCache,
        backend: AttentionBackend,
    ) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), angles, cache, backend)
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class Decoder(nn.Module):
    """The layers of a pipeline's stage, and what of the ends it holds."""

    embed_tokens: VocabParallelEmbedding
    """Of the first stage, and of the last one where it is the head too."""
    norm: RMSNorm
    """Of the last stage."""

    def __init__(
        self,
        spec: ModelSpec,
        max_model_len: int,
        kernels: LinearKernels,
        dtype: torch.dtype,
        ranks: Communicator,
        stage: Stage,
        *,
        expert_parallel: bool,
    ) -> None:
        super().__init__()
        if stage.is_first or (stage.is_last and spec.tie_word_embeddings):
            self.embed_tokens = VocabParallelEmbedding(
                spec.vocab_size, spec.hidden_size, kernels.head, ranks
            )
        self.layers = nn.ModuleList()
        for i in stage.layers:  # by their numbers in the model, which name their weights
            layer = DecoderLayer(
                spec, spec.layers[i], kernels, dtype, ranks, expert_parallel=expert_parallel
            )
            self.layers.add_module(str(i), layer)
        if stage.is_last:
            self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, dtype=dtype)
        held = {name for name, _ in self.named_modules()}
        everything = [f"layers.{i}" for i in range(spec.num_layers)] + ["embed_tokens", "norm"]
        self.elsewhere = tuple(name for name in everything if name not in held)
        """Modules that other stages hold."""
        device = next(self.parameters()).device
        self.rotary = RotaryEmbedding(spec.rope, spec.head_dim, max_model_len, device)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        max_context_len: int,
        caches: list[LayerCache],
        backend: AttentionBackend,
        hidden: Tensor | None,
    ) -> Tensor:
        if hidden is None:
            hidden = self.embed_tokens(token_ids)
        angles = self.rotary.angles(positions, max_context_len, hidden.dtype)
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden = layer(hidden, angles, cache, backend)
        return hidden


class DecoderForCausalLM(nn.Module):
    """Token ids → hidden states → logits; the two halves are apart so that only rows that
    sample are projected onto the vocabulary. Each of ``ranks`` holds a part of every matrix, or
    with ``expert_parallel`` some of the experts whole; each stage of a pipeline some of the layers.
    """

    def __init__(
        self,
        spec: ModelSpec,
        max_model_len: int,
        kernels: LinearKernels,
        dtype: torch.dtype,
        ranks: Communicator = SINGLE_RANK,
        stage: Stage | None = None,
        *,
        expert_parallel: bool = False,
    ) -> None:
        super().__init__()
        stage = stage or Stage(range(spec.num_layers))
        self.hidden_size = spec.hidden_size
        self.vocab_size = spec.vocab_size
        self.dtype = dtype
        """Of hidden states."""
        self.model = Decoder(
            spec, max_model_len, kernels, dtype, ranks, stage, expert_parallel=expert_parallel
        )
        if not stage.is_last:
            return
        if spec.tie_word_embeddings:
            self.lm_head = ParallelLMHead.tied_to(self.model.embed_tokens)
        else:
            self.lm_head = ParallelLMHead.untied(
                spec.vocab_size, spec.hidden_size, kernels.head, ranks
            )

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        max_context_len: int,
        caches: list[LayerCache],
        backend: AttentionBackend,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [num_tokens, hidden_size] of int64 ids and positions [num_tokens].

        ``max_context_len`` exceeds every position; ``backend`` has been prepared for the batch.
        Every stage but the first takes the ``hidden`` states of the one before it.
        """
        output: Tensor = self.model(token_ids, positions, max_context_len, caches, backend, hidden)
        return output

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocab_size], in float32, of the last stage's hidden states [n, size]."""
        logits: Tensor = self.lm_head(self.model.norm(hidden))
        return logits.float()
