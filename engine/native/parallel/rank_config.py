"""What of an engine's configuration is each rank's own. Pure but for the number of cores."""

from __future__ import annotations

import os
from dataclasses import replace

from engine.config import EngineConfig
from engine.placement import share_of_rank


def config_of_rank(config: EngineConfig, rank: int) -> EngineConfig:
    """The configuration of one rank: the same but for its share of the compute threads."""
    num_threads = config.num_threads or len(os.sched_getaffinity(0))
    share, cpus = share_of_rank(num_threads, config.cpus, rank, config.num_ranks)
    return replace(config, num_threads=share, cpus=cpus)
