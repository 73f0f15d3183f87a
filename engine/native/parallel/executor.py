"""An executor of several ranks: this process is rank 0, each other rank a process of its own.

Every rank runs every plan: of its layers, those that it holds, and of these its part. Rank 0 is in
the last stage and samples. So do the other ranks of that stage, which have the same logits, and
sampling is a pure function of them; the earlier stages learn what was sampled with the lane's next
plan. Plans and their results are all that travels beside collectives and hidden states.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torch import Tensor

from engine.config import EngineConfig
from engine.grammar import GrammarCompiler
from engine.loop import ExecutorError
from engine.native.overlapping_executor import OverlappingExecutor
from engine.native.parallel.communicator import CommunicatorError
from engine.native.parallel.messages import Score, Step
from engine.native.parallel.partition import check_divisible, stage_of
from engine.native.parallel.process_group import join_groups
from engine.native.parallel.rank_config import config_of_rank
from engine.native.parallel.workers import Workers
from engine.native.runner import ModelRunner, warm_up_plans
from profiles.model_spec import ModelSpec
from scheduler.step_plan import StepPlan, StepResult

_LAST_WORDS_S = 2.0
"""How long a collective that failed waits for the worker that is to blame to end or to say why."""


class _Submitted(NamedTuple):
    lane: int
    plan: StepPlan
    at_s: float


class ParallelExecutor:
    """Rank 0 of a model that is split over ``config.num_ranks`` ranks, and the others.

    Raises:
        ExecutorError: a worker could not start.
        Exception: whatever ``ModelRunner`` raises.
    """

    def __init__(self, config: EngineConfig) -> None:
        spec, num_stages = ModelSpec.from_directory(config.model_dir), config.pipeline_parallel_size
        check_divisible(spec, config.tensor_parallel_size, config.enable_expert_parallel)
        stage_of(spec, 0, num_stages, config.stage_layers)
        self._config = config
        self._in_flight: deque[_Submitted] = deque()
        self._previous = [StepResult()] * config.num_lanes
        with TemporaryDirectory(prefix="ridgeline-ranks-") as directory:
            self._workers = Workers(config, Path(directory))
            try:
                self._workers.wait_until_started()
                groups = join_groups(config, 0, Path(directory))
                self._runner = ModelRunner(config_of_rank(config, 0), *groups)
                self._workers.wait_until_loaded()
            except CommunicatorError as error:
                lost = self._lost(error)
                self._workers.close()
                raise lost from error
            except Exception:
                self._workers.close()
                raise
        self._overlapping = OverlappingExecutor(self._runner) if config.async_scheduling else None

    @property
    def spec(self) -> ModelSpec:
        return self._runner.spec

    @property
    def grammars(self) -> GrammarCompiler:
        """Of this rank; the others compile a grammar when its first sequence starts."""
        return self._runner.grammars

    @property
    def detail(self) -> str:
        """What ``auto`` came to, for people."""
        return f"{self._config.num_ranks} ranks, {self._runner.detail}"

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The processes of ranks 1, 2, …"""
        return self._workers.pids

    def submit(self, plan: StepPlan, lane: int = 0) -> None:
        """Begins a step of a lane that has none in flight; does not wait.

        With ``async_scheduling`` the lane may have one, and then the step is made ready.

        Raises:
            ExecutorError: it cannot go on.
        """
        ahead = self._overlapping is not None and bool(self._in_flight)
        self._workers.send(Step(lane, plan, self._previous[lane], ahead))
        self._in_flight.append(_Submitted(lane, plan, time.perf_counter()))
        if self._overlapping is not None:
            with self._noticing_losses():
                self._overlapping.submit(plan)

    def collect(self) -> StepResult:
        """Ends the step that was submitted first; ``duration_s`` is from its beginning to now."""
        lane, plan, began_s = self._in_flight.popleft()
        with self._noticing_losses():
            if self._overlapping is not None:
                result = self._overlapping.collect()
            else:
                result = self._runner.execute(plan, lane)
                result = replace(result, duration_s=time.perf_counter() - began_s)
        self._previous[lane] = StepResult(result.sampled_token_ids)
        return result

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step of the first lane, while none is in flight."""
        self.submit(plan, 0)
        return self.collect()

    def forward(self, plan: StepPlan) -> Tensor:
        """As ``ModelRunner.forward``, on all ranks, while no step is in flight."""
        self._workers.send(Score(plan, self._previous[0]))
        self._previous[0] = StepResult()
        with self._noticing_losses():
            return self._runner.forward(plan)

    def warm_up(self) -> None:
        """As ``ModelRunner.warm_up``, on all ranks."""
        for plan in warm_up_plans(self._config.scheduler):
            self.execute(plan)

    def check(self) -> None:
        reason = self._workers.why_lost()
        if reason:
            raise ExecutorError(reason)

    def close(self) -> None:
        """Ends the workers; they would end by themselves with this process."""
        self._workers.close()

    @contextmanager
    def _noticing_losses(self) -> Iterator[None]:
        """
        Raises:
            ExecutorError: a collective broke within.
        """
        try:
            yield
        except CommunicatorError as error:
            raise self._lost(error) from error

    def _lost(self, error: CommunicatorError) -> ExecutorError:
        """What broke a collective: a worker that is gone, unless it hangs."""
        return ExecutorError(self._workers.why_lost(_LAST_WORDS_S) or str(error))
