"""Outputs on their way to whoever reads them: those that wait together are delivered together.

A reader that keeps pace gets every output by itself, the first one included; one that does not gets
what has come meanwhile in one piece, so that falling behind makes the work less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from scheduler.step_plan import OutputDetails, SequenceOutput

T = TypeVar("T")


async def all_waiting(queue: asyncio.Queue[T]) -> list[T]:
    """Waits for an item and returns it with all that are behind it."""
    items = [await queue.get()]
    while not queue.empty():
        items.append(queue.get_nowait())
    return items


def merged(outputs: Iterable[SequenceOutput]) -> list[SequenceOutput]:
    """One output for each continuation, in the order of their first ones."""
    by_index: dict[int, SequenceOutput] = {}
    for output in outputs:
        before = by_index.get(output.index)
        by_index[output.index] = output if before is None else _joined(before, output)
    return list(by_index.values())


def _joined(before: SequenceOutput, after: SequenceOutput) -> SequenceOutput:
    details = after.details if before.details is None else _with(before.details, after.details)
    return replace(
        after,
        token_ids=before.token_ids + after.token_ids,
        details=details,
        history=after.history or before.history,
    )


def _with(before: OutputDetails, after: OutputDetails | None) -> OutputDetails:
    if after is None:
        return before
    return OutputDetails(
        logprobs=before.logprobs + after.logprobs,
        prompt_logprobs=before.prompt_logprobs + after.prompt_logprobs,
        embedding=before.embedding or after.embedding,
    )
