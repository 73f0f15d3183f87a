"""Model facts for tests that need no weights."""

from __future__ import annotations

from benchmarks import random_checkpoint
from profiles.model_spec import ModelSpec

QWEN3_0_6B = ModelSpec.from_config(random_checkpoint.QWEN3_0_6B)
