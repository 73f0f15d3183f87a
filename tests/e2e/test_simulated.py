"""``ridgeline serve --engine simulated``: a large model on hardware that is not here."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.config import SimulatedConfig
from engine.placement import Placement
from planner.plan import read_plan
from planner.simulate import simulate
from planner.workload import Ask
from profiles.model_library import find_known_model
from server.choices import EngineChoice
from server.planning import Machine, decide_simulated
from server.settings import ServeOptions
from tests.e2e.server_process import ServerProcess, serving
from tests.engine.test_resolve import CPU, VOICE

MODEL = "meta-llama/Llama-3.1-8B"
ON = "1xL40S"
STEPS, SECONDS = "ridgeline_engine_steps_total", "ridgeline_engine_step_seconds_total"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("simulated") / "log"
    with serving(log, "Llama-3.1-8B", "--engine", "simulated", "--on", ON) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def config() -> SimulatedConfig:
    """What the server's engine must have been started with."""
    known = find_known_model(MODEL)
    machine = Machine(
        native=CPU,
        hardware=(CPU,),
        placement=Placement(4),
        available_bytes=2**34,
        has_compiler=True,
    )
    options = ServeOptions(engine=EngineChoice.SIMULATED, on=ON)
    decided = decide_simulated(options, known.name, known.spec, machine, VOICE).config
    assert isinstance(decided, SimulatedConfig)
    return decided


def test_it_says_what_it_is(simulated: ServerProcess) -> None:
    log = simulated.log.read_text()
    assert f"{ON}, simulated" in log
    for words in ("LlamaForCausalLM", "8.03B parameters", "vllm engine", "limited by"):
        assert words in log
    (model,) = simulated.client().models.list().data
    assert model.id == MODEL


def test_the_engine_process_has_no_torch(simulated: ServerProcess) -> None:
    maps = Path(f"/proc/{simulated.engine_pid()}/maps").read_text()
    assert "torch" not in maps
    assert psutil.Process(simulated.engine_pid()).memory_info().rss < 500 * 2**20


def test_placeholder_text_streams_at_the_pace_of_the_hardware(
    simulated: ServerProcess, config: SimulatedConfig
) -> None:
    before = simulated.metrics()
    began = time.perf_counter()
    stream = simulated.client().completions.create(
        model=MODEL, prompt=[7] * 200, max_tokens=120, stream=True
    )
    text = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
    wall_s = time.perf_counter() - began
    assert text.startswith("This is a placeholder: no model runs here.")
    (pool,) = config.pools
    (expected,) = simulate([Ask(0.0, 200, 120)], pool.scheduler, pool.step_time).requests
    after = simulated.metrics()
    assert after[STEPS] - before[STEPS] in (120, 121)  # one more to drop the sequence
    # What the engine says must agree closely; what the clock says has HTTP and this machine in it.
    assert after[SECONDS] - before[SECONDS] == pytest.approx(expected.last_token_s, rel=0.01)
    assert 0.98 * expected.last_token_s < wall_s < 1.5 * expected.last_token_s + 0.5


def test_a_crowd_takes_as_long_as_the_planner_says(
    simulated: ServerProcess, config: SimulatedConfig
) -> None:
    asks = [Ask(0.0, 100 + 10 * i, 60) for i in range(16)]

    async def ask(number: int, one: Ask) -> int:
        answer = await simulated.async_client().completions.create(
            model=MODEL, prompt=[20 + number] * one.input_tokens, max_tokens=one.output_tokens
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens

    async def crowd() -> list[int]:
        return await asyncio.gather(*(ask(i, one) for i, one in enumerate(asks)))

    before = simulated.metrics()
    assert asyncio.run(crowd()) == [60] * 16
    simulated.wait_until_idle()
    after = simulated.metrics()
    (pool,) = config.pools
    expected = simulate(asks, pool.scheduler, pool.step_time)
    # They do not arrive at quite the same moment, which costs a few steps more.
    seconds = after[SECONDS] - before[SECONDS]
    assert expected.busy_s * 0.99 < seconds < expected.busy_s * 1.5
    # What is simulated takes as long as the step-time model says.
    for phase in ("prefill", "decode", "mixed"):
        of_phase = f"_sum{{phase={phase}}}"
        predicted = after[f"ridgeline_step_duration_predicted_seconds{of_phase}"]
        assert after[f"ridgeline_step_duration_seconds{of_phase}"] == pytest.approx(predicted)
        assert predicted > 0


def test_the_front_door_is_the_same(simulated: ServerProcess) -> None:
    client = simulated.client()
    messages = [{"role": "user", "content": "Hello?"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, n=2)  # type: ignore[arg-type,call-overload]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.choices[0].message.content.endswith("the stream and the metrics.\n")
    stopped = client.chat.completions.create(
        model=MODEL,
        messages=messages,  # type: ignore[arg-type]
        max_tokens=500,
        stop=["no model"],
    )
    assert stopped.choices[0].message.content == "This is a placeholder: "
    assert stopped.choices[0].finish_reason == "stop"
    simulated.wait_until_idle()


def test_a_client_that_goes_away_frees_its_blocks(simulated: ServerProcess) -> None:
    stream = simulated.client().completions.create(
        model=MODEL, prompt="Hello", max_tokens=5000, stream=True
    )
    next(iter(stream))
    stream.close()
    simulated.wait_until_idle()


def test_a_plan_file_can_be_rehearsed(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    command = ("plan", "Llama-3.1-8B", "--on", "1xH100-SXM+2xL40S", "--output", str(path))
    subprocess.run([sys.executable, "-m", "server.cli", *command], check=True, capture_output=True)
    blocks = sum(pool.plan.num_kv_blocks * pool.plan.replicas for pool in read_plan(path).pools)
    with serving(tmp_path / "log", "--plan", str(path), "--engine", "simulated") as process:
        process.wait_until_ready()
        metrics = process.metrics()
        assert metrics["ridgeline_kv_blocks{state=free}"] == blocks
        plans = [name for name in metrics if name.startswith("ridgeline_plan_info{")]
        assert [sum(f"hardware={on}" in p for p in plans) for on in ("1xH100", "2xL40S")] == [1, 1]
        (model,) = process.client().models.list().data
        assert model.id == MODEL
        assert "1xH100-SXM+2xL40S, simulated" in process.log.read_text()
