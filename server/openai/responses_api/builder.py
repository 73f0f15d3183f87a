"""A response that grows with the model's output, and the events that tell of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from msgspec import UnsetType
from msgspec.structs import replace

from server.openai.chat_text import ChatTextDelta
from server.openai.errors import ApiError
from server.openai.output_blocks import (
    Block,
    BlockDelta,
    BlockEvent,
    BlockKind,
    BlockStart,
    BlockStop,
)
from server.openai.responses_api.shapes import (
    IncompleteDetails,
    InputTokensDetails,
    ItemStatus,
    OutputItem,
    OutputPart,
    OutputTokensDetails,
    ResponseArgumentsDeltaEvent,
    ResponseArgumentsDoneEvent,
    ResponseError,
    ResponseEvent,
    ResponseFunctionCall,
    ResponseItemEvent,
    ResponseLifecycleEvent,
    ResponseObject,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponsePartEvent,
    ResponseReasoning,
    ResponseReasoningDeltaEvent,
    ResponseReasoningDoneEvent,
    ResponseReasoningText,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
    ResponseUsage,
)
from server.openai.shapes import Usage

_ID_PREFIX = {BlockKind.TEXT: "msg", BlockKind.REASONING: "rs", BlockKind.CALL: "fc"}
Lifecycle = Literal["created", "queued", "in_progress", "completed", "incomplete", "failed"]


class ResponseBuilder:
    """An ``AnswerBuilder``."""

    def __init__(self, response: ResponseObject) -> None:
        self.response = response
        """As it stands."""
        self._sequence_number = 0
        self._item_id = ""

    @property
    def has_ended(self) -> bool:
        return self.response.status not in ("queued", "in_progress")

    def create(self) -> list[ResponseEvent]:
        """The response exists; in the background it waits for its turn."""
        events = [self._lifecycle("created")]
        if self.response.status == "queued":
            events.append(self._lifecycle("queued"))
        return events

    def begin(self, usage: Usage) -> list[ResponseEvent]:
        self.response = replace(self.response, status="in_progress")
        return [self._lifecycle("in_progress")]

    def push(self, blocks: Iterable[BlockEvent]) -> Iterator[ResponseEvent]:
        for event in blocks:
            match event:
                case BlockStart(block):
                    yield from self._start(block)
                case BlockDelta(block, piece):
                    yield self._delta(block, piece)
                case BlockStop(block, is_cut):
                    yield from self._stop(block, "incomplete" if is_cut else "completed")

    def finish(self, last: ChatTextDelta, usage: Usage) -> list[ResponseEvent]:
        is_cut = last.finish_reason == "length"
        if is_cut:
            details = IncompleteDetails("max_output_tokens")
            self.response = replace(self.response, status="incomplete", incomplete_details=details)
        else:
            now = int(time.time())
            self.response = replace(self.response, status="completed", completed_at=now)
        self.response = replace(self.response, usage=response_usage(usage))
        return [self._lifecycle("incomplete" if is_cut else "completed")]

    def fail(self, error: ApiError) -> list[ResponseEvent]:
        described = ResponseError(code=error.code or "server_error", message=error.message)
        self.response = replace(self.response, status="failed", error=described)
        return [self._lifecycle("failed")]

    def cancel(self) -> None:
        """Streams of a cancelled response just end: the API has no event for it."""
        self.response = replace(self.response, status="cancelled")

    def _start(self, block: Block) -> Iterator[ResponseEvent]:
        self._item_id = f"{_ID_PREFIX[block.kind]}_{uuid.uuid4().hex}"
        yield ResponseItemEvent(
            type="response.output_item.added",
            sequence_number=self._next(),
            output_index=block.index,
            item=self._item(block, "in_progress"),
        )
        if block.kind is not BlockKind.CALL:
            yield self._part_event("response.content_part.added", block, _part(block))

    def _delta(self, block: Block, piece: str) -> ResponseEvent:
        where = {"item_id": self._item_id, "output_index": block.index}
        fields: dict[str, Any] = where | {"sequence_number": self._next(), "delta": piece}
        match block.kind:
            case BlockKind.TEXT:
                return ResponseTextDeltaEvent(**fields)
            case BlockKind.REASONING:
                return ResponseReasoningDeltaEvent(**fields)
            case BlockKind.CALL:
                return ResponseArgumentsDeltaEvent(**fields)

    def _stop(self, block: Block, status: ItemStatus) -> Iterator[ResponseEvent]:
        where = {"item_id": self._item_id, "output_index": block.index}
        fields: dict[str, Any] = where | {"sequence_number": self._next()}
        match block.kind:
            case BlockKind.TEXT:
                yield ResponseTextDoneEvent(**fields, text=block.text)
            case BlockKind.REASONING:
                yield ResponseReasoningDoneEvent(**fields, text=block.text)
            case BlockKind.CALL:
                yield ResponseArgumentsDoneEvent(**fields, name=block.name, arguments=block.text)
        if block.kind is not BlockKind.CALL:
            yield self._part_event("response.content_part.done", block, _part(block, block.text))
        item = self._item(block, status)
        self.response = replace(self.response, output=(*self.response.output, item))
        yield ResponseItemEvent(
            type="response.output_item.done",
            sequence_number=self._next(),
            output_index=block.index,
            item=item,
        )

    def _item(self, block: Block, status: ItemStatus) -> OutputItem:
        """With its text once it is done, without while it is in progress."""
        is_done = status != "in_progress"
        if block.kind is BlockKind.CALL:
            return ResponseFunctionCall(
                id=self._item_id,
                status=status,
                call_id=block.call_id,
                name=block.name,
                arguments=block.text if is_done else "",
            )
        if block.kind is BlockKind.REASONING:
            thoughts = (ResponseReasoningText(block.text),) if is_done else ()
            return ResponseReasoning(id=self._item_id, status=status, content=thoughts)
        text = (ResponseOutputText(block.text),) if is_done else ()
        return ResponseOutputMessage(id=self._item_id, status=status, content=text)

    def _part_event(
        self,
        kind: Literal["response.content_part.added", "response.content_part.done"],
        block: Block,
        part: OutputPart,
    ) -> ResponsePartEvent:
        return ResponsePartEvent(
            type=kind,
            sequence_number=self._next(),
            item_id=self._item_id,
            output_index=block.index,
            part=part,
        )

    def _lifecycle(self, stage: Lifecycle) -> ResponseEvent:
        return ResponseLifecycleEvent(
            type=f"response.{stage}",  # type: ignore[arg-type]
            sequence_number=self._next(),
            response=self.response,
        )

    def _next(self) -> int:
        number = self._sequence_number
        self._sequence_number += 1
        return number


def _part(block: Block, text: str = "") -> OutputPart:
    if block.kind is BlockKind.REASONING:
        return ResponseReasoningText(text)
    return ResponseOutputText(text)


def response_usage(usage: Usage) -> ResponseUsage:
    details = usage.completion_tokens_details
    num_reasoning = 0 if isinstance(details, UnsetType) else details.reasoning_tokens
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(num_reasoning),
        total_tokens=usage.total_tokens,
    )
