"""The backbone: the same tokens, whatever the batch, the chunks, the cache or the preemptions."""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
from engine.loop import EngineLoop
from engine.messages import AddRequest, FromEngine, Progress
from engine.native.runner import ModelRunner
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.sampling_params import SamplingParams
from scheduler.scheduler import Scheduler
from scheduler.stats import SchedulerStats
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.quantized_checkpoints import FORMATS, make_quantized
from tests.step_times import host_bound_model

NUM_TOKENS = 64
MAX_MODEL_LEN = 192

Outputs = dict[str, list[int]]


@dataclass(frozen=True)
class Variant:
    """A family of models, and how the engine holds it."""

    family: str
    quantization: str = "none"
    kv_cache_dtype: str = "auto"
    linear_kernel: str = "fp32-activations"
    published: str = ""
    """The format that the checkpoint was quantized in beforehand."""

    def __str__(self) -> str:
        return "-".join(filter(None, astuple(self)))


PLAIN = [Variant(family) for family in FAMILIES]
SMALL = [
    Variant("llama", "none", "bfloat16"),
    Variant("qwen3", "int8", "bfloat16", "int8-activations"),
    Variant("qwen2", "int8_g128", "int8", "int8-activations"),
    Variant("mistral", "int8", "float32", "fp32-activations"),
    Variant("llama", "int4", "int8", "int8-activations"),
    Variant("qwen3", "int4_g128", "bfloat16", "int8-activations"),
    Variant("llama", "awq", "bfloat16", "int8-activations", "awq-g32"),
    Variant("qwen3", "gptq", "bfloat16", "int8-activations", "gptq-asym-act-g32"),
    Variant("qwen3", "fp8", "bfloat16", "fp32-activations", "fp8-block"),
    Variant("qwen3_moe", "awq", "bfloat16", "int8-activations", "awq-g32"),
    Variant("qwen3_moe", "int8", "bfloat16", "int8-activations"),
    Variant("mixtral", "int4", "int8", "int8-activations"),
]


class Model(NamedTuple):
    directory: Path
    variant: Variant


class InProcessEngine:
    """The real loop, scheduler and runner, without the process around them."""

    def __init__(self, model: Model, attention: str = "auto", **limits: object) -> None:
        limits = {"num_blocks": 512, "max_num_seqs": 16, "max_model_len": MAX_MODEL_LEN} | limits
        config = EngineConfig(
            model_dir=model.directory,
            quantization=model.variant.quantization,
            kv_cache_dtype=model.variant.kv_cache_dtype,
            linear_kernel=model.variant.linear_kernel,
            scheduler=SchedulerConfig(**limits),  # type: ignore[arg-type]
            attention_backend=attention,
            num_threads=1,  # tiny models gain nothing from more
        )
        runner = ModelRunner(config)
        # Steps whose rows cost next to nothing, so whatever can be drafted is.
        self.scheduler = Scheduler(config.scheduler, host_bound_model())
        self.outputs: dict[tuple[str, int], list[int]] = {}
        self.loop = EngineLoop(self.scheduler, runner, runner.spec.vocab_size, self._collect)

    def _collect(self, message: FromEngine) -> None:
        assert isinstance(message, Progress)
        for output in message.outputs:
            self.outputs.setdefault((output.request_id, output.index), []).extend(output.token_ids)

    def run(self, requests: list[Request], arrive_every: int = 0) -> Outputs:
        """Adds all at once, or one every so many steps, and runs until nothing is left."""
        self.outputs.clear()
        waiting = requests.copy()
        num_steps = 0
        while waiting or self.loop.has_work:
            due = waiting if arrive_every == 0 else waiting[: num_steps % arrive_every == 0]
            self.loop.handle([AddRequest(r) for r in due])
            del waiting[: len(due)]
            if self.loop.has_work:
                self.loop.step()
            num_steps += 1
        self.loop.idle()
        return {f"{name}#{index}": tokens for (name, index), tokens in self.outputs.items()}

    def stats(self) -> SchedulerStats:
        return self.scheduler.stats()


def prompts(count: int, vocab_size: int = 256) -> list[tuple[int, ...]]:
    chooser = random.Random(5)
    return [
        tuple(chooser.randrange(3, vocab_size) for _ in range(chooser.randint(2, 100)))
        for _ in range(count)
    ]


def make_requests(count: int, prefix: str = "r", **sampling: object) -> list[Request]:
    options: dict[str, object] = {"max_tokens": NUM_TOKENS, "seed": 0, "temperature": 0.0}
    return [
        Request(
            request_id=f"{prefix}{i}",
            prompt_token_ids=prompt,
            sampling=SamplingParams(**(options | sampling | {"seed": i})),  # type: ignore[arg-type]
            arrival_time=float(i),
        )
        for i, prompt in enumerate(prompts(count))
    ]


@pytest.fixture(scope="module", params=PLAIN + SMALL, ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    variant: Variant = request.param
    directory = tmp_path_factory.mktemp(variant.family)
    if variant.published:
        published = FORMATS[variant.published]
        directory, _ = make_quantized(published, directory, family=variant.family)
    else:
        make_checkpoint(variant.family, directory)
    return Model(directory, variant)


@pytest.fixture(scope="module")
def alone(model: Model) -> Outputs:
    """Every request by itself: what all other ways must reproduce."""
    engine = InProcessEngine(model, max_num_seqs=1, enable_prefix_caching=False)
    outputs: Outputs = {}
    for request in make_requests(16):
        outputs |= engine.run([request])
    assert all(len(tokens) == NUM_TOKENS for tokens in outputs.values())
    return outputs


@pytest.mark.parametrize("model", PLAIN, indirect=True, ids=str)
def test_alone_is_what_transformers_says(model: Model, alone: Outputs) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(model.directory, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None  # never stop early
    for i, prompt in enumerate(prompts(4)):
        reference = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False
        )
        assert alone[f"r{i}#0"] == reference[0, len(prompt) :].tolist()


def test_in_a_mixed_batch_of_16(model: Model, alone: Outputs) -> None:
    engine = InProcessEngine(model)
    assert engine.run(make_requests(16), arrive_every=3) == alone


def test_all_at_once(model: Model, alone: Outputs) -> None:
    assert InProcessEngine(model).run(make_requests(16)) == alone


@pytest.mark.parametrize("model", PLAIN, indirect=True, ids=str)
def test_with_the_reference_attention(model: Model, alone: Outputs) -> None:
    assert InProcessEngine(model, attention="torch").run(make_requests(16)) == alone


def test_with_prefill_in_chunks_of_7(model: Model, alone: Outputs) -> None:
    engine = InProcessEngine(model, max_prefill_chunk=7)
    assert engine.run(make_requests(16), arrive_every=2) == alone


def test_after_a_prefix_cache_hit(model: Model, alone: Outputs) -> None:
    engine = InProcessEngine(model)
    assert engine.run(make_requests(16)) == alone
    assert engine.stats().num_prefix_hits == 0
    assert engine.run(make_requests(16)) == alone
    assert engine.stats().num_prefix_hits > 300


def test_after_preemption_and_recompute(model: Model, alone: Outputs) -> None:
    engine = InProcessEngine(model, num_blocks=24, enable_prefix_caching=False)
    assert engine.run(make_requests(16)) == alone
    assert engine.stats().num_preemptions > 0


def test_sampled_tokens_survive_the_batch_and_preemption(model: Model) -> None:
    sampling = {"temperature": 0.9, "top_p": 0.95, "frequency_penalty": 0.3}
    quiet = InProcessEngine(model, max_num_seqs=1)
    expected: Outputs = {}
    for request in make_requests(8, **sampling):
        expected |= quiet.run([request])
    crowded = InProcessEngine(model, num_blocks=16)
    assert crowded.run(make_requests(8, **sampling), arrive_every=2) == expected
    assert crowded.stats().num_preemptions > 0


def test_continuations_are_what_they_are_alone(model: Model) -> None:
    sampling = SamplingParams(max_tokens=20, seed=3, temperature=1.0)
    many = Request("many", prompts(1)[0], sampling, n=4)
    quiet = InProcessEngine(model, max_num_seqs=1).run([many])
    crowded = InProcessEngine(model).run([many, *make_requests(6)])
    assert len({tuple(tokens) for tokens in quiet.values()}) == 4
    assert quiet.items() <= crowded.items()


FEW_TOKENS = tuple((token, 9.0) for token in range(5, 8))
"""A bias to tokens so few that their order is bound to occur again."""
SPECULATING = {
    "plainly": {},
    "with prefill in chunks": {"max_prefill_chunk": 7},
    "after preemption": {"num_blocks": 24, "enable_prefix_caching": False},
    "with few tokens a step": {"max_num_seqs": 4, "max_num_batched_tokens": 12},
}


@pytest.fixture(scope="module")
def repetitive(model: Model) -> Outputs:
    engine = InProcessEngine(model, max_num_seqs=1)
    return engine.run(make_requests(8, "few", logit_bias=FEW_TOKENS))


@pytest.mark.parametrize("limits", SPECULATING.values(), ids=SPECULATING.keys())
def test_with_speculation(
    model: Model, alone: Outputs, repetitive: Outputs, limits: dict[str, object]
) -> None:
    """Drafts that are right and drafts that are wrong, side by side."""
    engine = InProcessEngine(model, num_speculative_tokens=7, **limits)
    requests = make_requests(8, "few", logit_bias=FEW_TOKENS) + make_requests(16)
    assert engine.run(requests, arrive_every=2) == alone | repetitive
    stats = engine.stats()
    assert 100 < stats.num_accepted_tokens < stats.num_draft_tokens
    assert (stats.num_preemptions > 0) == ("num_blocks" in limits)
    if "num_blocks" not in limits:
        assert engine.run(requests) == alone | repetitive
        assert engine.stats().num_prefix_hits > 300


@pytest.mark.parametrize("model", [PLAIN[0], SMALL[1]], indirect=True, ids=str)
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.9, "top_k": 3},
        {"temperature": 0.7, "top_p": 0.5, "frequency_penalty": 0.2, "presence_penalty": 0.2},
        {"temperature": 0.0, "repetition_penalty": 1.05, "frequency_penalty": 0.3},
        {"temperature": 0.7, "stop_token_ids": (5, 6), "min_tokens": 20},
    ],
    ids=str,
)
def test_speculation_with_all_that_sampling_knows(
    model: Model, sampling: dict[str, object]
) -> None:
    """Each token's history is what it is without drafts, and so is the number that picks it."""
    requests = make_requests(8, logit_bias=FEW_TOKENS, **sampling)
    plain = InProcessEngine(model, max_num_seqs=1).run(requests)
    engine = InProcessEngine(model, num_speculative_tokens=5)
    assert engine.run(requests, arrive_every=1) == plain
    stats = engine.stats()
    assert 20 < stats.num_accepted_tokens < stats.num_draft_tokens
