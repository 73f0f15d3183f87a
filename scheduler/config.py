"""The limits that a scheduler works within."""

from __future__ import annotations

from dataclasses import dataclass

MOST_SPECULATIVE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of the batch and of the KV cache, checked on construction.

    Raises:
        ValueError: the limits contradict each other, so that some request could never run.
    """

    num_blocks: int
    block_size: int = 16
    """Tokens whose keys and values one block holds."""
    max_num_seqs: int = 64
    """Sequences in one step at most."""
    max_num_batched_tokens: int = 512
    """Tokens in one step at most (prefill and decode together)."""
    max_model_len: int = 2048
    """Tokens of a sequence at most (prompt and output together)."""
    max_prefill_chunk: int | None = None
    """Tokens of one sequence in one step at most; None leaves it to the budget."""
    share_prefill: bool = True
    """Several prompts share what a step has left (see ``policy.prefill_share``); otherwise the
    first in order takes all it wants, as vLLM's scheduler does."""
    enable_prefix_caching: bool = True
    num_speculative_tokens: int = 0
    """Tokens drafted for one sequence in one step at most, see ``scheduler.speculation``."""
    priority_aging_s: float = 10.0
    """How much later an arrival with priority p+1 counts than one with priority p, in seconds."""

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_num_seqs", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_num_batched_tokens <= self.max_num_seqs:
            # Running sequences take one token each; what is left is all that prompts ever get.
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must exceed "
                f"max_num_seqs ({self.max_num_seqs}), or prompts could wait for ever"
            )
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"{self.num_blocks} KV blocks of {self.block_size} tokens cannot hold one sequence "
                f"of max_model_len {self.max_model_len}"
            )
        if self.max_prefill_chunk is not None and self.max_prefill_chunk < 1:
            raise ValueError(f"max_prefill_chunk must be at least 1, not {self.max_prefill_chunk}")
        if not 0 <= self.num_speculative_tokens <= MOST_SPECULATIVE_TOKENS:
            raise ValueError(
                f"num_speculative_tokens must be 0 to {MOST_SPECULATIVE_TOKENS}, not "
                f"{self.num_speculative_tokens}"
            )
        if self.priority_aging_s < 0:
            raise ValueError(f"priority_aging_s must not be negative, not {self.priority_aging_s}")
