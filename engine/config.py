"""What an engine is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scheduler.config import SchedulerConfig


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything the engine process needs, decided before it starts.

    ``scheduler.num_blocks`` is the number of KV blocks that ``planner.ledger`` found room for.
    """

    model_dir: Path
    scheduler: SchedulerConfig
    dtype: str = "float32"
    """Type that weights, activations and KV cache are held in."""
    num_threads: int = 0
    """Compute threads; 0 takes one for each core this process may use."""
    attention_backend: str = "auto"
    """``auto``, ``native`` (compiled CPU kernel) or ``torch`` (plain torch, the reference)."""
    show_progress: bool = True
    """Draw a progress bar while weights load, where standard error is a terminal."""
