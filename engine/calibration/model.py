"""What steps of a real model take, by the engine's own runner."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.calibration.device import fill_cache
from engine.calibration.grid import StepCase, step_cases
from engine.calibration.readings import (
    HostReading,
    ModelOrder,
    ModelReadings,
    Order,
    RowReading,
    StepReading,
)
from engine.calibration.timing import FEWEST_RUNS, measure, reading_of
from engine.config import EngineConfig
from engine.native.attention.backend import AttentionBatch, LayerCache
from engine.native.compiled_forward import CompiledForward
from engine.native.forward import Forward, ModularForward
from engine.native.input_batch import StepInputs
from engine.native.runner import ModelRunner
from profiles.model_spec import ModelSpec
from profiles.numerics import KV_TYPES
from scheduler.config import SchedulerConfig
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import ScheduledSequence, StartedSequence, StepPlan

_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_HEAD_ROWS = (1, 2, 4, 8, 16, 32, 64)
"""More rows than sequences are never sampled in a step."""
_PROBE_ROWS = 64
_FEWEST_ROWS = 5
_MAX_NUM_SEQS = 64
_MAX_NUM_TOKENS = 512
_BLOCK_SIZE = 16
_TOKEN_STRIDE = 7919
"""Between the ids of one token and the next: rows of the embedding are not found in a cache."""
_REPEATS = 3
"""Measured steps in a row at each visit of a case."""
_FEWEST_CASES = 12
_MOST_SAMPLES = 60
"""Of a case; what time is left then is for slower models."""
_LAYERS_SHARE = 0.35
"""Of a model's time, for its layers alone."""


class CalibrationRunner(ModelRunner):
    """The engine's runner, with its layers, its head and its cache within reach."""

    def fill_cache(self) -> None:
        fill_cache(self._caches)

    def measure_layers(self, num_tokens: int, seconds: float) -> RowReading:
        """One pass of so many tokens through all layers but for attention.

        The norms and activations between the products are measured with them: what they cost
        depends on the number of tokens alone.
        """
        inputs = tokens_in_a_row(num_tokens, self._limits.max_model_len, self.spec.vocab_size)
        with torch.inference_mode():
            duration = measure(
                lambda: self.layers_alone.logits(inputs, inputs.sampled_tokens), seconds
            )
        return RowReading(num_tokens, duration.inverse(num_tokens * self.spec.flops_per_token))

    @cached_property
    def layers_alone(self) -> Forward:
        """The engine's own forward pass, in which queries pass for attention's output."""
        if isinstance(self._forward, CompiledForward):
            return CompiledForward(self._model, self.spec, self._caches, attends=False)
        return ModularForward(self._model, self._caches, _NoAttention())

    def measure_head(self, num_rows: int, seconds: float) -> RowReading:
        head, dtype = self._model.lm_head, self._model.model.norm.weight.dtype
        hidden = torch.full((num_rows, self.spec.hidden_size), 0.01, dtype=dtype)
        with torch.inference_mode():
            duration = measure(lambda: head(hidden), seconds)
        flops = num_rows * self.spec.flops_per_sampled_token
        return RowReading(num_rows, duration.inverse(flops))


class _NoAttention:
    """An attention backend that answers the queries with themselves, and so keeps nothing."""

    name = "none"

    def allocate_cache(
        self, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
    ) -> list[LayerCache]:
        return [LayerCache(torch.empty(0), torch.empty(0), block_size)] * num_layers

    def prepare(self, batch: AttentionBatch) -> None:
        pass

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        return query.flatten(1)


def tokens_in_a_row(num_tokens: int, max_model_len: int, vocab_size: int) -> StepInputs:
    """Tokens of which none is sampled; where their keys and values would go does not matter.

    More than one sequence may have begin at the first position again.
    """
    return StepInputs(
        token_ids=torch.arange(num_tokens) * _TOKEN_STRIDE % vocab_size,
        positions=torch.arange(num_tokens) % max_model_len,
        attention=AttentionBatch(
            query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32),
            context_lens=torch.tensor([num_tokens], dtype=torch.int32),
            block_tables=torch.zeros((1, -(-num_tokens // _BLOCK_SIZE)), dtype=torch.int32),
            slot_mapping=torch.arange(num_tokens),
        ),
        max_context_len=min(num_tokens, max_model_len),
        sampled_tokens=torch.empty(0, dtype=torch.int64),
        sampling=(),
    )


class StepBench:
    """Runs single steps of any shape on a runner, without a scheduler."""

    def __init__(self, runner: ModelRunner, num_blocks: int, block_size: int) -> None:
        self._runner = runner
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._ids = itertools.count(1)

    def run(self, case: StepCase, num_repeats: int) -> list[float]:
        """Durations in seconds of so many steps of this shape, one after the other."""
        decodes = [next(self._ids) for _ in range(case.num_decodes)]
        blocks = iter(range(self._num_blocks))
        self._execute(self._first_decodes(decodes, case.context, blocks))
        durations = []
        for repeat in range(num_repeats):
            # Each time the prompts are new sequences, in the same blocks.
            blocks, chunk_blocks = itertools.tee(blocks)
            plan = self._plan(case, repeat, decodes, chunk_blocks)
            durations.append(self._execute(plan))
            self._execute(StepPlan(-1, dropped=tuple(s.sequence_id for s in plan.started)))
        self._execute(StepPlan(-1, dropped=tuple(decodes)))
        return durations

    def _first_decodes(self, ids: list[int], context: int, blocks: Iterator[int]) -> StepPlan:
        """The step before the first measured one: sequences get their blocks and a token."""
        num_blocks = -(-(context + _REPEATS + 1) // self._block_size)
        return StepPlan(
            step_id=-1,
            started=tuple(
                _started(sequence_id, context, self._runner.spec.vocab_size) for sequence_id in ids
            ),
            scheduled=tuple(
                ScheduledSequence(
                    sequence_id,
                    context - 1,
                    1,
                    tuple(itertools.islice(blocks, num_blocks)),
                    samples=True,
                )
                for sequence_id in ids
            ),
        )

    def _plan(
        self, case: StepCase, repeat: int, decodes: list[int], blocks: Iterator[int]
    ) -> StepPlan:
        scheduled = [
            ScheduledSequence(sequence_id, case.context + repeat, 1, (), samples=True)
            for sequence_id in decodes
        ]
        started = []
        for computed, new in case.chunks:
            sequence_id = next(self._ids)
            num_blocks = -(-(computed + new) // self._block_size)
            own = tuple(itertools.islice(blocks, num_blocks))
            started.append(_started(sequence_id, computed + new, self._runner.spec.vocab_size))
            scheduled.append(ScheduledSequence(sequence_id, computed, new, own, samples=True))
        return StepPlan(step_id=-1, started=tuple(started), scheduled=tuple(scheduled))

    def _execute(self, plan: StepPlan) -> float:
        return self._runner.execute(plan).duration_s


def measure_model(
    model: ModelOrder, order: Order, seconds: float, progress: Callable[[str], None]
) -> ModelReadings:
    """The model's layers and steps in about ``seconds``, loading aside."""
    spec = ModelSpec.from_directory(model.directory)
    every_case = step_cases(spec.max_model_len, _MAX_NUM_SEQS, _MAX_NUM_TOKENS)
    cases = _affordable(every_case, spec, model, order)
    name = f"{model.directory.name}, weights {model.quantization}"
    progress(f"{name}: loading")
    runner, bench = load(model, spec, order, cases)
    progress(f"{name}: layers")
    budget = seconds * _LAYERS_SHARE
    rows = _affordable_rows(_ROWS, runner.measure_layers(_PROBE_ROWS, 0.0), spec, budget)
    share = budget / (len(rows) + len(_HEAD_ROWS))
    linear = tuple(runner.measure_layers(number, share) for number in rows)
    head = tuple(runner.measure_head(number, share) for number in _HEAD_ROWS)
    progress(f"{name}: steps")
    steps = measure_steps(bench, cases, seconds * (1 - _LAYERS_SHARE))
    return ModelReadings(model, linear, head, steps)


def measure_steps(
    bench: StepBench,
    cases: list[StepCase],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[StepReading, ...]:
    """Rounds over the cases, so that a disturbance hits one sample of many cases.

    The first round warms up and finds out how many cases a quarter of the time is enough for.
    """
    start = clock()
    affordable: list[StepCase] = []
    for case in cases:
        bench.run(case, 1)
        affordable.append(case)
        if clock() - start > seconds / 4 and len(affordable) >= _FEWEST_CASES:
            break
    round_s = clock() - start
    num_repeats = _REPEATS if round_s * _REPEATS < seconds - round_s else 1
    samples: list[list[float]] = [[] for _ in affordable]
    while not samples[-1] or (clock() - start < seconds and len(samples[-1]) < _MOST_SAMPLES):
        for case, durations in zip(affordable, samples, strict=True):
            durations += bench.run(case, num_repeats)
            if samples[-1] and clock() - start > seconds:
                break
    return tuple(
        StepReading(_sequences(case, num_repeats), case.num_sequences, reading_of(durations))
        for case, durations in zip(affordable, samples, strict=True)
    )


def measure_host(order: Order, seconds: float) -> tuple[HostReading, ...]:
    """Steps of models that compute next to nothing: what is left is what launching costs.

    Two depths and two numbers of sequences tell apart what a step, a layer and a sequence cost.
    """
    readings = []
    for num_layers in (2, 10):
        cases = [
            StepCase(1, 16),
            *([StepCase(32, 16)] if num_layers == 2 else []),
        ]
        with _tiny_checkpoint(num_layers) as directory:
            spec = ModelSpec.from_directory(directory)
            _, bench = load(ModelOrder(directory, "none", "auto"), spec, order, cases)
            for step, case in zip(measure_steps(bench, cases, seconds / 2), cases, strict=True):
                readings.append(
                    HostReading(num_layers, case.num_sequences, case.num_tokens, step.seconds)
                )
    return tuple(readings)


def _affordable(
    cases: list[StepCase], spec: ModelSpec, model: ModelOrder, order: Order
) -> list[StepCase]:
    """The cases whose KV cache takes at most a quarter of the memory."""
    kv_type = KV_TYPES[model.kv_cache_dtype]
    kv_bytes = spec.kv_bytes_per_token(kv_type.bytes_per_element(0, spec.head_dim))
    return [case for case in cases if 4 * case.kv_tokens * kv_bytes <= order.memory_bytes]


def _affordable_rows(
    rows: tuple[int, ...], probe: RowReading, spec: ModelSpec, seconds: float
) -> tuple[int, ...]:
    """All of ``rows``, or of slow models the powers of two as far as the time goes."""
    s_per_token = spec.flops_per_token / probe.flops.median

    def cost_s(chosen: tuple[int, ...]) -> float:
        return FEWEST_RUNS * s_per_token * sum(chosen)

    if cost_s(rows) <= seconds:
        return rows
    chosen = tuple(number for number in rows if number & (number - 1) == 0)
    while len(chosen) > _FEWEST_ROWS and cost_s(chosen) > seconds:
        chosen = chosen[:-1]
    return chosen


def _started(sequence_id: int, num_tokens: int, vocab_size: int) -> StartedSequence:
    return StartedSequence(
        sequence_id=sequence_id,
        token_ids=tuple(
            place * _TOKEN_STRIDE % vocab_size
            for place in range(sequence_id, sequence_id + num_tokens)
        ),
        num_prompt_tokens=num_tokens,
        sampling=SamplingParams(max_tokens=_REPEATS + 1, seed=0, temperature=0.0),
        index=0,
    )


def _sequences(case: StepCase, num_repeats: int) -> tuple[tuple[int, int], ...]:
    """The mean of the measured steps, whose contexts grow by one each."""
    decode = (case.context + (num_repeats - 1) // 2, 1)
    return (decode,) * case.num_decodes + case.chunks


@contextmanager
def _tiny_checkpoint(num_layers: int) -> Iterator[Path]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    spec = ModelSpec.from_config(config)
    with tempfile.TemporaryDirectory(prefix="ridgeline-") as name:
        directory = Path(name)
        (directory / "config.json").write_bytes(msgspec.json.encode(config))
        tensors = {tensor.name: torch.full(tensor.shape, 0.01) for tensor in spec.tensors()}
        save_file(tensors, directory / "model.safetensors")
        yield directory


def load(
    model: ModelOrder, spec: ModelSpec, order: Order, cases: list[StepCase]
) -> tuple[CalibrationRunner, StepBench]:
    """The model as the engine would run it, with a cache for the largest of the cases."""
    tokens = max(case.kv_tokens + case.num_sequences * (_BLOCK_SIZE + _REPEATS) for case in cases)
    length = min(spec.max_model_len, max(case.longest for case in cases) + _REPEATS + 1)
    num_blocks = max(tokens, length + _BLOCK_SIZE) // _BLOCK_SIZE + 1
    runner = CalibrationRunner(
        EngineConfig(
            model_dir=model.directory,
            dtype=order.dtype,
            quantization=model.quantization,
            kv_cache_dtype=model.kv_cache_dtype,
            num_threads=order.num_threads,
            attention_backend=order.attention_backend,
            scheduler=SchedulerConfig(
                num_blocks=num_blocks,
                block_size=_BLOCK_SIZE,
                max_num_seqs=_MAX_NUM_SEQS,
                max_num_batched_tokens=_MAX_NUM_TOKENS,
                max_model_len=length,
            ),
            show_progress=False,
        )
    )
    runner.fill_cache()
    return runner, StepBench(runner, num_blocks, _BLOCK_SIZE)
