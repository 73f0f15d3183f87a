from collections import defaultdict

import pytest

from engine.loop import EngineLoop
from engine.messages import (
    AbortRequest,
    AddRequest,
    FromEngine,
    Progress,
    RequestRefused,
    decode_from_engine,
    decode_launch,
    decode_to_engine,
    encode,
    encode_launch,
    launch_message,
)
from scheduler.config import SchedulerConfig
from scheduler.scheduler import Scheduler
from tests.engine.test_resolve import resolve
from tests.scheduler.toy_executor import (
    VOCAB_SIZE,
    ToyExecutor,
    expected_output,
    greedy,
    request,
)

CONFIG = SchedulerConfig(num_blocks=32, block_size=4, max_num_seqs=4, max_model_len=64)


@pytest.fixture
def sent() -> list[FromEngine]:
    return []


@pytest.fixture
def loop(sent: list[FromEngine]) -> EngineLoop:
    executor = ToyExecutor(CONFIG.num_blocks, CONFIG.block_size)

    def send(message: FromEngine) -> None:
        sent.append(decode_from_engine(encode(message)))  # over the wire and back

    return EngineLoop(Scheduler(CONFIG), executor, VOCAB_SIZE, send)


def outputs(sent: list[FromEngine]) -> dict[tuple[str, int], list[int]]:
    texts = defaultdict(list)
    for message in sent:
        assert isinstance(message, Progress)
        for output in message.outputs:
            texts[output.request_id, output.index] += output.token_ids
    return dict(texts)


def test_requests_go_in_and_outputs_come_out(loop: EngineLoop, sent: list[FromEngine]) -> None:
    one, two = request("a", range(9)), request("b", range(5), n=2)
    loop.handle([decode_to_engine(encode(AddRequest(r))) for r in (one, two)])
    while loop.has_work:
        loop.step()
    loop.idle()
    assert outputs(sent) == {
        ("a", 0): expected_output(one, 0, 64),
        ("b", 0): expected_output(two, 0, 64),
        ("b", 1): expected_output(two, 1, 64),
    }
    last = sent[-1]
    assert isinstance(last, Progress)
    assert last.stats.num_steps == len(sent) - 1  # and one report when idle
    assert last.stats.scheduler.num_running == 0


def test_an_abort_leaves_nothing_behind(loop: EngineLoop, sent: list[FromEngine]) -> None:
    loop.handle([AddRequest(request("a", range(9)))])
    loop.step()
    loop.handle([AbortRequest("a"), AbortRequest("unknown")])
    loop.step()
    assert not loop.has_work
    last = sent[-1]
    assert isinstance(last, Progress)
    stats = last.stats.scheduler
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks


@pytest.mark.parametrize(
    "bad",
    [
        request("a", [1, VOCAB_SIZE]),
        request("a", [-1]),
        request("a", [1], sampling=greedy(logit_bias=((VOCAB_SIZE, 1.0),))),
        request("a", [1], sampling=greedy(stop_token_ids=(99_999,))),
        request("a", []),
        request("a", [1] * 64),
    ],
)
def test_what_cannot_run_is_refused_and_harms_nobody(
    loop: EngineLoop,
    sent: list[FromEngine],
    bad,  # type: ignore[no-untyped-def]
) -> None:
    good = request("b", [1, 2])
    loop.handle([AddRequest(bad), AddRequest(good)])
    assert isinstance(sent[0], RequestRefused)
    assert sent[0].request_id == "a"
    while loop.has_work:
        loop.step()
    assert outputs(sent[1:])["b", 0] == expected_output(good, 0, 64)


def test_a_launch_survives_the_way_to_another_process() -> None:
    launch = launch_message("ipc:///x", resolve())
    assert decode_launch(encode_launch(launch)) == launch
