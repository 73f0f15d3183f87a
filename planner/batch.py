"""How much one step may hold."""

from __future__ import annotations

_TARGET_STEP_SECONDS = 0.5
"""Longest step that a running request should have to wait for its next token."""
_FLOPS_PER_CORE = 50e9
"""Dense float32 FLOP/s of one AVX2 core (8 lanes x 2 FMA units x 2 x ~3 GHz, half of it reached).
A first guess; calibration will replace it by a measurement."""
_MAX_TOKENS = 512
"""Beyond this the matrix products gain nothing from more rows on a CPU."""


def default_token_budget(num_parameters: int, num_cores: int, max_num_seqs: int) -> int:
    """Tokens per step that keep a full step near the target time on this many CPU cores.

    A forward pass takes 2 FLOPs per parameter and token. At least twice the number of sequences,
    so that prompts move on beside a full batch of decodes.
    """
    affordable = _TARGET_STEP_SECONDS * _FLOPS_PER_CORE * num_cores / (2 * num_parameters)
    return max(2 * max_num_seqs, min(_MAX_TOKENS, int(affordable)))
