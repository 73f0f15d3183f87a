"""What requests may want beside tokens: probabilities, embeddings, an output by a grammar."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
from engine.loop import EngineLoop
from engine.messages import AbortRequest, AddRequest, FromEngine, Progress, RequestRefused
from engine.native.overlapping_executor import OverlappingExecutor
from engine.native.parallel.executor import ParallelExecutor
from engine.native.runner import ModelRunner
from engine.overlapped_loop import OverlappedLoop
from scheduler.config import SchedulerConfig
from scheduler.request import FinishReason, Request
from scheduler.sampling_params import Grammar, GrammarKind, Pooling, SamplingParams
from scheduler.scheduler import Scheduler
from scheduler.step_plan import SequenceOutput, TokenLogprobs
from tests.checkpoints import make_checkpoint
from tests.engine.test_equivalence import FEW_TOKENS, prompts
from tests.random_schemas import random_schema
from tests.step_times import host_bound_model

END = 0
Results = dict[str, SequenceOutput]


def make_tokenizer(directory: Path) -> Tokenizer:
    """All bytes, some pairs of letters, and an end; 320 tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [a + b for a in 'aeiou"{:' for b in 'rstln"{:'][: 320 - len(letters) - 1]
    vocab = {token: i for i, token in enumerate(["<end>", *letters, *pairs])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


@pytest.fixture(scope="module", params=["qwen3", "mixtral"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    make_checkpoint(request.param, directory)
    make_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


class Host:
    """The real loop, scheduler and runner; joins what comes of each continuation."""

    def __init__(
        self,
        directory: Path,
        executor: ParallelExecutor | None = None,
        *,
        ahead: bool = False,
        **limits: object,
    ) -> None:
        fields = {"num_blocks": 512, "max_num_seqs": 16, "max_model_len": 192} | limits
        config = config_for(directory, SchedulerConfig(**fields))  # type: ignore[arg-type]
        self.scheduler = Scheduler(config.scheduler, host_bound_model())
        self.refused: dict[str, str] = {}
        self.results: Results = {}
        self.loop: EngineLoop
        if executor is not None:
            rest = (executor.spec.vocab_size, self._collect, executor.grammars)
            self.loop = EngineLoop(self.scheduler, executor, *rest)
            return
        runner = ModelRunner(config)
        rest = (runner.spec.vocab_size, self._collect, runner.grammars)
        if ahead:
            self.loop = OverlappedLoop(self.scheduler, OverlappingExecutor(runner), *rest)
        else:
            self.loop = EngineLoop(self.scheduler, runner, *rest)

    def _collect(self, message: FromEngine) -> None:
        if isinstance(message, RequestRefused):
            self.refused[message.request_id] = message.message
            return
        assert isinstance(message, Progress)
        for output in message.outputs:
            name = f"{output.request_id}#{output.index}"
            before = self.results.get(name)
            self.results[name] = output if before is None else joined(before, output)

    def run(self, requests: list[Request], arrive_every: int = 0) -> Results:
        self.results.clear()
        waiting, num_steps = requests.copy(), 0
        while waiting or self.loop.wait_s is not None:
            due = waiting if arrive_every == 0 else waiting[: num_steps % arrive_every == 0]
            self.loop.handle([AddRequest(r) for r in due])
            del waiting[: len(due)]
            self.loop.step()
            num_steps += 1
        self.loop.idle()
        return dict(self.results)


def config_for(directory: Path, limits: SchedulerConfig) -> EngineConfig:
    return EngineConfig(directory, limits, linear_kernel="fp32-activations", num_threads=1)


def joined(before: SequenceOutput, new: SequenceOutput) -> SequenceOutput:
    old, more = before.details, new.details
    details = old or more
    if old is not None and more is not None:
        details = replace(
            old,
            logprobs=old.logprobs + more.logprobs,
            prompt_logprobs=old.prompt_logprobs + more.prompt_logprobs,
        )
    return replace(new, token_ids=before.token_ids + new.token_ids, details=details)


def request(name: str, prompt: tuple[int, ...], n: int = 1, **sampling: object) -> Request:
    fields: dict[str, object] = {"max_tokens": 40, "seed": 0, "temperature": 0.0} | sampling
    return Request(name, prompt, SamplingParams(**fields), n=n)  # type: ignore[arg-type]


def logprobs_of(output: SequenceOutput) -> tuple[TokenLogprobs, ...]:
    assert output.details is not None
    return output.details.logprobs


SCORED = [
    request("plain", prompts(9)[0]),
    request("some", prompts(9)[1], logprobs=3),
    request("none", prompts(9)[2], logprobs=0, temperature=0.8),
    request("prompt", prompts(9)[3], prompt_logprobs=2),
    request("both", prompts(9)[4], logprobs=20, prompt_logprobs=0, n=2, temperature=1.0),
    request("penalized", prompts(9)[5], logprobs=4, logit_bias=FEW_TOKENS, frequency_penalty=1.0),
    request("scores alone", prompts(9)[5], prompt_logprobs=1, max_tokens=0, n=2),
    request("long", prompts(9)[6] + prompts(9)[7], prompt_logprobs=1),
    request("repeating", prompts(9)[8], logprobs=2, logit_bias=FEW_TOKENS),
    request("last", prompts(9)[3], pooling=Pooling.LAST, max_tokens=1),
    request("mean", prompts(9)[6] + prompts(9)[7], pooling=Pooling.MEAN, max_tokens=1),
]


@pytest.fixture(scope="module")
def alone(directory: Path) -> Results:
    host = Host(directory, max_num_seqs=2, enable_prefix_caching=False)
    results: Results = {}
    for scored in SCORED:
        results |= host.run([scored])
    return results


def test_probabilities_are_those_of_the_model(reference: Any, alone: Results) -> None:
    for scored in SCORED:
        for index in range(scored.n):
            output = alone[f"{scored.request_id}#{index}"]
            if output.details is None or output.details.embedding:
                continue
            token_ids = [*scored.prompt_token_ids, *output.token_ids]
            with torch.inference_mode():
                logits = reference(torch.tensor([token_ids])).logits[0]
            expected = logits.double().log_softmax(-1)
            num_prompt = len(scored.prompt_token_ids)
            asked = scored.sampling
            if asked.logprobs is not None:
                check(output.details.logprobs, expected, num_prompt, token_ids, asked.logprobs)
                assert len(output.details.logprobs) == len(output.token_ids)
            if asked.prompt_logprobs is not None and index == 0:
                scores = output.details.prompt_logprobs
                check(scores, expected, 1, token_ids, asked.prompt_logprobs)
                assert len(scores) == num_prompt - 1
            else:
                assert output.details.prompt_logprobs == ()
    assert alone["plain#0"].details is None


def check(
    actual: tuple[TokenLogprobs, ...],
    expected: torch.Tensor,
    first: int,
    token_ids: list[int],
    count: int,
) -> None:
    for place, entry in enumerate(actual, first):
        row = expected[place - 1]
        assert entry.rank == int((row > row[token_ids[place]]).sum()) + 1
        assert entry.logprob == pytest.approx(float(row[token_ids[place]]), abs=2e-4)
        best = row.topk(count)
        assert [token for token, _ in entry.top] == best.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=2e-4)


def test_embeddings_are_those_of_the_model(reference: Any, alone: Results) -> None:
    for name in ("last", "mean"):
        (asked,) = [r for r in SCORED if r.request_id == name]
        with torch.inference_mode():
            states = reference.model(torch.tensor([asked.prompt_token_ids])).last_hidden_state[0]
        pooled = states[-1] if name == "last" else states.mean(0)
        expected = torch.nn.functional.normalize(pooled, dim=-1).tolist()
        output = alone[f"{name}#0"]
        assert output.details is not None
        assert output.token_ids == ()
        assert list(output.details.embedding) == pytest.approx(expected, abs=1e-5)


LIMITS: dict[str, tuple[dict[str, Any], int]] = {
    "all at once": ({}, 0),
    "in chunks": ({"max_prefill_chunk": 7}, 1),
    "with preemption": ({"num_blocks": 14, "max_prefill_chunk": 9}, 1),
    "ahead": ({"ahead": True}, 2),
    "with speculation": ({"num_speculative_tokens": 5}, 0),
}


def same(actual: Results, expected: Results) -> None:
    """The same bits, but for averages, which are added up by chunks."""
    assert actual.keys() == expected.keys()
    for name, output in actual.items():
        other = expected[name]
        assert output.token_ids == other.token_ids, name
        if name == "mean#0":
            assert output.details is not None
            assert other.details is not None
            assert output.details.embedding == pytest.approx(other.details.embedding, abs=1e-6)
        else:
            assert output.details == other.details, name


@pytest.mark.parametrize("name", LIMITS)
def test_they_do_not_depend_on_the_company(directory: Path, alone: Results, name: str) -> None:
    limits, arrive_every = LIMITS[name]
    host = Host(directory, **limits)
    same(host.run(SCORED, arrive_every), alone)
    stats = host.scheduler.stats()
    assert (stats.num_preemptions > 0) == (name == "with preemption")
    assert (stats.num_accepted_tokens > 0) == (name == "with speculation")
    if name != "with preemption":
        same(host.run(SCORED), alone)  # whatever the prefix cache holds now
        assert host.scheduler.stats().num_prefix_hits > 0


@pytest.fixture(scope="module", params=[(2, 1), (1, 3)], ids=["tensor", "pipeline"])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, ParallelExecutor]]:
    directory = tmp_path_factory.mktemp("split")
    make_checkpoint("qwen3", directory)
    make_tokenizer(directory)
    size, stages = request.param
    config = replace(
        config_for(directory, SchedulerConfig(512, max_num_seqs=16, max_model_len=192)),
        tensor_parallel_size=size,
        pipeline_parallel_size=stages,
    )
    executor = ParallelExecutor(config)
    yield directory, executor
    executor.close()


def test_ranks_report_the_same(ranks: tuple[Path, ParallelExecutor]) -> None:
    directory, executor = ranks
    one = Host(directory).run(SCORED)
    several = Host(directory, executor).run(SCORED)
    assert several.keys() == one.keys()
    for name, output in several.items():
        assert output.token_ids == one[name].token_ids
        if output.details is None:
            assert one[name].details is None
            continue
        details, expected = output.details, one[name].details
        assert expected is not None
        assert details.embedding == pytest.approx(expected.embedding, abs=1e-5)
        for field in ("logprobs", "prompt_logprobs"):
            values = [entry.logprob for entry in getattr(details, field)]
            others = [entry.logprob for entry in getattr(expected, field)]
            assert values == pytest.approx(others, abs=1e-4)


# ---------------------------------------------------------------------- grammars

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"enum": ["s", "m", "ß"]},
        "counts": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 3},
    },
    "required": ["name", "size", "counts"],
    "additionalProperties": False,
}
JSON = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
REGEX = Grammar(GrammarKind.REGEX, r"[a-f]{3}(-[0-9]{2}){2}")
LARK = Grammar(GrammarKind.LARK, 'start: ("yes" | "no") "!"')


def by_grammar(name: str, grammar: Grammar, **sampling: object) -> Request:
    fields: dict[str, object] = {"max_tokens": 120, "temperature": 1.0, "stop_token_ids": (END,)}
    return request(name, prompts(4)[0], grammar=grammar, **(fields | sampling))


GUIDED = [
    *(by_grammar(f"json{seed}", JSON, seed=seed) for seed in range(4)),
    by_grammar("regex", REGEX, logprobs=1),
    by_grammar("lark", LARK, temperature=0.0),
    by_grammar("long", LARK, min_tokens=20),
    by_grammar("allowed", REGEX, allowed_token_ids=tuple(range(320)), n=2),
    request("free", prompts(5)[4]),
]


@pytest.mark.parametrize("name", LIMITS)
def test_outputs_are_texts_of_their_grammars(directory: Path, name: str) -> None:
    limits, arrive_every = LIMITS[name]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    results = Host(directory, **limits).run(GUIDED, arrive_every)
    texts = {}
    for each, output in results.items():
        assert each == "free#0" or output.token_ids[-1] == END
        texts[each] = tokenizer.decode(output.token_ids)
    for seed in range(4):
        jsonschema.validate(json.loads(texts[f"json{seed}#0"]), SCHEMA)
    assert len({texts[f"json{seed}#0"] for seed in range(4)}) > 1
    for each in ("regex#0", "allowed#0", "allowed#1"):
        assert re.fullmatch(REGEX.text, texts[each])
    assert texts["lark#0"] in ("yes!", "no!")
    assert texts["long#0"] in ("yes!", "no!")  # which cannot be longer
    quiet = Host(directory, max_num_seqs=1)
    for each in GUIDED:
        for key, output in quiet.run([each]).items():
            assert output.token_ids == results[key].token_ids


def test_noise_by_100_random_schemas_is_valid(directory: Path) -> None:
    """Together with the bundled model in ``tests/e2e/test_details.py``, 200."""
    chooser = random.Random(11)
    schemas = [random_schema(chooser) for _ in range(100)]
    asked = [
        by_grammar(
            f"r{i}",
            Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)),
            seed=i,
            max_tokens=160,
        )
        for i, schema in enumerate(schemas)
    ]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    results = Host(directory, num_blocks=400, max_model_len=320).run(asked, arrive_every=1)
    num_ended = 0
    for i, schema in enumerate(schemas):
        output = results[f"r{i}#0"]
        if output.finish_reason is FinishReason.STOP:
            num_ended += 1
            jsonschema.validate(json.loads(tokenizer.decode(output.token_ids)), schema)
        else:
            assert output.finish_reason is FinishReason.LENGTH
    assert num_ended > 60


def test_only_allowed_tokens_are_sampled(directory: Path) -> None:
    allowed = random.Random(1).sample(range(320), 5)
    asked = [
        request(f"r{i}", prompts(4)[i], allowed_token_ids=tuple(allowed), temperature=i / 2)
        for i in range(3)
    ]
    for output in Host(directory).run(asked).values():
        assert set(output.token_ids) <= set(allowed)
        assert len(output.token_ids) == 40


def test_ranks_follow_the_same_grammar(ranks: tuple[Path, ParallelExecutor]) -> None:
    directory, executor = ranks
    one, several = Host(directory).run(GUIDED), Host(directory, executor).run(GUIDED)
    assert {k: v.token_ids for k, v in several.items()} == {k: v.token_ids for k, v in one.items()}


TOO_MUCH = {"type": "string", "pattern": r"^(\w{1,2000}){1,2000}$", "minLength": 5000}


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar(GrammarKind.JSON_SCHEMA, '{"type": "foo"}'), "is not valid: Invalid type: foo"),
        (Grammar(GrammarKind.JSON_SCHEMA, "{"), "is not valid"),
        (Grammar(GrammarKind.REGEX, "(a|b"), "is not valid.*unclosed group"),
        (Grammar(GrammarKind.LARK, "start: missing"), "is not valid.*missing"),
        (Grammar(GrammarKind.REGEX, "a" * 300_000), "is longer than 262144 characters"),
        (Grammar(GrammarKind.JSON_SCHEMA, json.dumps(TOO_MUCH)), "is not valid.*Unable"),
    ],
    ids=["type", "json", "regex", "lark", "long", "too much"],
)
def test_what_is_no_grammar_is_refused(directory: Path, grammar: Grammar, message: str) -> None:
    host = Host(directory)
    results = host.run([by_grammar("bad", grammar), by_grammar("good", LARK)])
    assert re.search(message, host.refused["bad"], re.DOTALL)
    assert results.keys() == {"good#0"}


def test_steps_go_on_while_a_grammar_is_compiled(directory: Path) -> None:
    host = Host(directory)
    words = ["".join(random.Random(i).choices("abcdefgh", k=40)) for i in range(400)]
    large = Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"enum": words}))
    assert host.loop._grammars is not None
    others_take_long = Event()
    host.loop._grammars._thread.submit(others_take_long.wait)
    host.loop.handle([AddRequest(request("busy", prompts(2)[0], max_tokens=100))])
    host.loop.handle(
        [AddRequest(by_grammar("large", large)), AddRequest(by_grammar("gone", large))]
    )
    assert host.scheduler.stats().num_waiting == 1
    host.loop.step()
    host.loop.handle([AbortRequest("gone"), AddRequest(by_grammar("large", LARK))])
    assert host.refused == {"large": "request_id 'large' is in use"}
    assert host.loop.wait_s == 0.0
    while host.loop.has_work:
        host.loop.handle(())
        host.loop.step()
    results = host.results
    assert results.keys() == {"busy#0"}
    assert host.loop.wait_s is not None
    assert host.loop.wait_s > 0
    others_take_long.set()
    while host.loop.wait_s is not None:
        host.loop.handle(())
        host.loop.step()
    assert results.keys() == {"busy#0", "large#0"}
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert json.loads(tokenizer.decode(results["large#0"].token_ids)) in words


def test_without_a_compiler_there_are_no_grammars(directory: Path) -> None:
    host = Host(directory)
    host.loop._grammars = None
    host.loop.handle([AddRequest(by_grammar("a", LARK))])
    assert "nothing that this engine can follow" in host.refused["a"]
