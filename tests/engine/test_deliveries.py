from __future__ import annotations

import asyncio

from engine.deliveries import all_waiting, merged
from scheduler.request import FinishReason
from scheduler.step_plan import OutputDetails, SequenceHistory, SequenceOutput, TokenLogprobs

FIRST = SequenceHistory(1.5, 0)
LIKELY = TokenLogprobs(-0.5, 1, ())


def test_outputs_of_each_continuation_are_joined_in_order() -> None:
    outputs = [
        SequenceOutput("a", 1, (1,), details=OutputDetails(prompt_logprobs=(LIKELY,))),
        SequenceOutput("a", 0, (2,), history=FIRST),
        SequenceOutput("a", 1, (3, 4), details=OutputDetails(logprobs=(LIKELY, LIKELY))),
        SequenceOutput("a", 0, (5,), FinishReason.STOP, num_cached_tokens=3),
        SequenceOutput("a", 1, ()),
    ]
    assert merged(outputs) == [
        SequenceOutput("a", 1, (1, 3, 4), details=OutputDetails((LIKELY, LIKELY), (LIKELY,))),
        SequenceOutput("a", 0, (2, 5), FinishReason.STOP, num_cached_tokens=3, history=FIRST),
    ]
    assert merged(outputs[:1]) == outputs[:1]


async def test_what_waits_comes_together_and_nothing_is_waited_for() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    queue.put_nowait(1)
    queue.put_nowait(2)
    assert await all_waiting(queue) == [1, 2]
    later = asyncio.ensure_future(all_waiting(queue))
    await asyncio.sleep(0)
    assert not later.done()
    queue.put_nowait(3)
    assert await later == [3]
