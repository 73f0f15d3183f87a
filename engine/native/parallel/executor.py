"""An executor of several ranks: this process is rank 0, each other rank a process of its own.

Every rank runs every plan. Hidden states and logits are the same on all of them, and sampling is a
pure function of the logits, so all ranks sample alike and hold the same sequences; the plans are
all that travels beside the collectives.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from engine.config import EngineConfig
from engine.loop import ExecutorError
from engine.native.parallel.communicator import CommunicatorError
from engine.native.parallel.messages import Score, Step
from engine.native.parallel.partition import check_divisible
from engine.native.parallel.process_group import join_group
from engine.native.parallel.rank_config import config_of_rank
from engine.native.parallel.workers import Workers
from engine.native.runner import ModelRunner, warm_up_plans
from profiles.model_spec import ModelSpec
from scheduler.step_plan import StepPlan, StepResult

_LAST_WORDS_S = 2.0
"""How long a collective that failed waits for the worker that is to blame to end or to say why."""


class TensorParallelExecutor:
    """Rank 0 of a model that is split over ``config.tensor_parallel_size`` ranks, and the others.

    Raises:
        ExecutorError: a worker could not start.
        Exception: whatever ``ModelRunner`` raises.
    """

    def __init__(self, config: EngineConfig) -> None:
        check_divisible(
            ModelSpec.from_directory(config.model_dir),
            config.tensor_parallel_size,
            config.enable_expert_parallel,
        )
        self._num_ranks = config.tensor_parallel_size
        self._limits = config.scheduler
        self._previous = StepResult()
        with TemporaryDirectory(prefix="ridgeline-ranks-") as directory:
            self._workers = Workers(config, Path(directory))
            try:
                self._workers.wait_until_started()
                group = join_group(config, 0, Path(directory))
                self._runner = ModelRunner(config_of_rank(config, 0), group)
                self._workers.wait_until_loaded()
            except CommunicatorError as error:
                lost = self._lost(error)
                self._workers.close()
                raise lost from error
            except Exception:
                self._workers.close()
                raise

    @property
    def spec(self) -> ModelSpec:
        return self._runner.spec

    @property
    def detail(self) -> str:
        """What ``auto`` came to, for people."""
        return f"{self._num_ranks} ranks, {self._runner.detail}"

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The processes of ranks 1, 2, …"""
        return self._workers.pids

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step on all ranks; ``duration_s`` is that of rank 0."""
        start = time.perf_counter()
        self._workers.send(Step(plan, self._previous))
        try:
            self._previous = self._runner.execute(plan)
        except CommunicatorError as error:
            raise self._lost(error) from error
        return replace(self._previous, duration_s=time.perf_counter() - start)

    def forward(self, plan: StepPlan) -> Tensor:
        """As ``ModelRunner.forward``, on all ranks."""
        self._workers.send(Score(plan))
        try:
            return self._runner.forward(plan)
        except CommunicatorError as error:
            raise self._lost(error) from error

    def warm_up(self) -> None:
        """As ``ModelRunner.warm_up``, on all ranks."""
        for plan in warm_up_plans(self._limits):
            self.execute(plan)

    def check(self) -> None:
        reason = self._workers.why_lost()
        if reason:
            raise ExecutorError(reason)

    def close(self) -> None:
        """Ends the workers; they would end by themselves with this process."""
        self._workers.close()

    def _lost(self, error: CommunicatorError) -> ExecutorError:
        """What broke a collective: a worker that is gone, unless it hangs."""
        return ExecutorError(self._workers.why_lost(_LAST_WORDS_S) or str(error))
