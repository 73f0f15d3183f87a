"""A step of one lane: made ready, launched on the device, finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from engine.native.forward import Forward
from engine.native.input_batch import InputBatch, StepInputs
from engine.native.prompt_reading import PromptReader
from engine.native.sampler import Sampling
from engine.native.sampling.backend import SamplingBackend
from scheduler.step_plan import (
    OutputDetails,
    ScheduledSequence,
    StepPlan,
    StepResult,
    TokenLogprobs,
)


@dataclass(slots=True)
class Step:
    """On its way through ``StepRunner``.

    What is read of prompts takes a forward pass of its own.
    """

    inputs: StepInputs | None
    """Of the sequences of which only the next token is wanted; None without any."""
    reading: StepInputs | None
    """Of those whose prompts are read themselves, ``chunks``."""
    chunks: Sequence[ScheduledSequence]
    sampling: Sampling | None = None
    logits: Tensor | None = None
    details: dict[int, OutputDetails] = field(default_factory=dict)

    @property
    def sampled_sequences(self) -> tuple[ScheduledSequence, ...]:
        passes = (self.inputs, self.reading)
        return tuple(s for inputs in passes if inputs is not None for s in inputs.sampling)


class StepRunner:
    """Carries out the steps of one lane, in three parts or at once.

    Without ``samples`` it has no logits, and must ``take_in`` what was sampled from them.
    """

    def __init__(
        self,
        forward: Forward,
        batch: InputBatch,
        sampling: SamplingBackend,
        device: torch.device,
        *,
        samples: bool,
    ) -> None:
        self.batch = batch
        self._forward = forward
        self._sampling = sampling
        self._device = device
        self._samples = samples
        self._reader = PromptReader(forward.project)

    def execute(self, plan: StepPlan) -> StepResult:
        """
        Raises:
            ValueError: as ``prepare``.
        """
        start = time.perf_counter()
        step = self.prepare(plan)
        self.launch(step)
        return replace(self.finish(step), duration_s=time.perf_counter() - start)

    def prepare(self, plan: StepPlan, in_flight: Step | None = None) -> Step:
        """All of a step that can be done while the one before it, ``in_flight``, runs.

        Raises:
            ValueError: the plan contradicts what is known (see ``InputBatch``).
        """
        batch = self.batch
        batch.apply(plan)
        self._reader.forget(plan.dropped)
        awaited = in_flight.sampled_sequences if in_flight is not None else ()
        chunks = [s for s in plan.scheduled if batch.is_read(s)]
        others = [s for s in plan.scheduled if s not in chunks] if chunks else plan.scheduled
        step = Step(
            inputs=batch.build(others, awaited) if others else None,
            reading=batch.build(chunks, awaited) if chunks else None,
            chunks=chunks,
        )
        if self._samples and step.sampled_sequences:
            passes = [inputs for inputs in (step.inputs, step.reading) if inputs is not None]
            rows = [row for inputs in passes for row in batch.sampling_rows(inputs)]
            step.sampling = Sampling(rows, self._sampling)
        return step

    def launch(self, step: Step) -> None:
        """Sets the device to work on a step, the one before it being finished."""
        with torch.inference_mode():
            if step.inputs is not None:
                self.batch.complete(step.inputs)
                step.logits = self._forward.logits(step.inputs, step.inputs.sampled_tokens)
            if step.reading is not None:
                self._read(step, step.reading)
            if step.sampling is not None and not step.sampling.waits_for_logits:
                assert step.logits is not None
                step.sampling.start(step.logits)

    def finish(self, step: Step) -> StepResult:
        """Waits until a step has been carried out; what came of it, but not how long it took."""
        if step.sampling is None:
            if self._device.type == "cuda":
                torch.cuda.current_stream().synchronize()  # or its time would be the next one's
            return StepResult(details=step.details)
        assert step.logits is not None
        with torch.inference_mode():
            if step.sampling.waits_for_logits:
                step.sampling.start(step.logits)
            tokens = step.sampling.tokens()
            sampled = self.batch.take_in(step.sampled_sequences, tokens)
            logprobs = step.sampling.logprobs(tokens)
        if logprobs:
            _add_logprobs(step, sampled, logprobs)
        return StepResult(sampled, details=step.details)

    def _read(self, step: Step, reading: StepInputs) -> None:
        """The pass over prompts that are read; their logits come behind the others'."""
        self.batch.complete(reading)
        # The second pass may overwrite what the first one returned.
        before = None if step.logits is None else step.logits.clone()
        states = self._forward.states(reading, reading.sampled_tokens)
        step.logits = states.logits.clone()
        if before is not None:
            step.logits = torch.cat([before, step.logits])
        # Stages of a pipeline that are not the last one have no states.
        hidden = (
            torch.split(states.hidden, [s.num_tokens for s in step.chunks]) if self._samples else ()
        )
        for chunk, rows in zip(step.chunks, hidden, strict=False):
            details = self._details(chunk, rows)
            if details is not None:
                step.details[chunk.sequence_id] = details

    def _details(self, chunk: ScheduledSequence, hidden: Tensor) -> OutputDetails | None:
        sampling = self.batch.sampling_of(chunk)
        if sampling.pooling is not None:
            return self._reader.pool(chunk, sampling, hidden)
        following = self.batch.prompt_after(chunk)
        return self._reader.score(hidden, following, sampling.prompt_logprobs or 0)


def _add_logprobs(
    step: Step, sampled: dict[int, tuple[int, ...]], logprobs: dict[int, TokenLogprobs]
) -> None:
    """Hands out what rows of the step's sampling reported to their sequences."""
    row = 0
    for sequence in step.sampled_sequences:
        rows = range(row, row + sequence.num_sampled)
        row += sequence.num_sampled
        if rows[0] in logprobs:
            of_tokens = tuple(logprobs[i] for i in rows)[: len(sampled[sequence.sequence_id])]
            before = step.details.get(sequence.sequence_id, OutputDetails())
            step.details[sequence.sequence_id] = OutputDetails(of_tokens, before.prompt_logprobs)
