"""What speculation is worth where the answer stands in the prompt: on the bundled model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.config import EngineConfig
from engine.native.runner import ModelRunner
from profiles.model_spec import ModelSpec
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.sampling_params import SamplingParams
from scheduler.scheduler import Scheduler
from server.chat_template import ChatTemplate
from server.model_source import BUNDLED_MODEL_DIR
from server.tokenizer import Tokenizer
from tests.step_times import host_bound_model

LIMITS = SchedulerConfig(num_blocks=64, max_model_len=512, num_speculative_tokens=7)
COPIES = (
    ["Extract the email: you can reach anna at anna.miller.house@example.com tomorrow."],
    ["Sort these words: pear, apple, plum, cherry, banana, orange"],
    ["Spell the word engineering", "e-n-g-i-n-e-e-r-i-n-g", "once more"],
    [
        "What is Ridgeline?",
        "Ridgeline is a hardware-aware inference server for language models.",
        "say that again",
    ],
)
Answers = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    # This kernel is there on every machine, and as exact as the checkpoint.
    return ModelRunner(
        EngineConfig(BUNDLED_MODEL_DIR, LIMITS, num_threads=1, linear_kernel="fp32-activations")
    )


def requests(**sampling: object) -> list[Request]:
    template = ChatTemplate.from_directory(BUNDLED_MODEL_DIR)
    assert template is not None
    tokenizer = Tokenizer.from_directory(BUNDLED_MODEL_DIR)
    ends = ModelSpec.from_directory(BUNDLED_MODEL_DIR).eos_token_ids
    options: dict[str, object] = {"max_tokens": 64, "seed": 0, "temperature": 0.0}
    params = SamplingParams(**(options | sampling), stop_token_ids=ends)  # type: ignore[arg-type]
    prompts = [
        template.render(
            [
                {"role": ("user", "assistant")[turn % 2], "content": text}
                for turn, text in enumerate(texts)
            ]
        )
        for texts in COPIES
    ]
    return [
        Request(str(i), tuple(tokenizer.encode(prompt, add_special_tokens=False)), params)
        for i, prompt in enumerate(prompts)
    ]


def answer(
    runner: ModelRunner, asked: list[Request], num_speculative_tokens: int, *, together: bool
) -> tuple[Answers, int]:
    """The answers, and the number of steps summed over sequences."""
    limits = replace(LIMITS, num_speculative_tokens=num_speculative_tokens)
    scheduler = Scheduler(limits, host_bound_model())
    answers: Answers = {request.request_id: () for request in asked}
    num_steps = 0
    for group in [asked] if together else [[request] for request in asked]:
        for request in group:
            scheduler.add(request)
        while scheduler.has_work:
            plan = scheduler.schedule()
            num_steps += sum(scheduled.samples for scheduled in plan.scheduled)
            for output in scheduler.update(plan, runner.execute(plan)):
                answers[output.request_id] += output.token_ids
    scheduler.check_integrity()
    return answers, num_steps


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "seed": 3}], ids=str)
def test_copies_take_fewer_steps_and_say_the_same(
    runner: ModelRunner, sampling: dict[str, object], together: bool
) -> None:
    asked = requests(**sampling)
    plain, num_tokens = answer(runner, asked, 0, together=together)
    assert num_tokens == sum(map(len, plain.values())) > 60
    speculative, num_steps = answer(runner, asked, 7, together=together)
    assert speculative == plain
    assert num_tokens / num_steps >= 1.5
