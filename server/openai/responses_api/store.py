"""Responses that can be asked for again: in memory, bounded, gone with the process."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import msgspec

from server.openai.responses_api.schemas import InputItem
from server.openai.responses_api.shapes import ResponseObject
from server.rate_limits import ANYBODY

MAX_RESPONSES = 2000
MAX_BYTES = 128 * 2**20
"""Of those that have ended, and as much again of those that run."""
MAX_RUNNING = 256
"""Responses in the background at a time."""


@dataclass(slots=True)
class StoredResponse:
    response: ResponseObject
    items: tuple[InputItem, ...]
    """What the model was given, oldest first: earlier turns and the new input."""
    caller: str = ANYBODY
    """Whose it is; to all others it does not exist."""
    is_running: bool = False
    task: asyncio.Task[None] | None = None
    """What runs it in the background."""
    events: list[bytes] | None = None
    """Of a stream in the background, so that it can be read again."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def publish(self, response: ResponseObject, events: list[bytes]) -> None:
        self.response = response
        if self.events is not None:
            self.events += events
        self._wake()

    def end(self) -> None:
        self.is_running = False
        self._wake()

    async def follow(self, start: int) -> AsyncGenerator[bytes, None]:
        """The events from number ``start`` on, until the response has ended."""
        assert self.events is not None
        while True:
            while start < len(self.events):
                yield self.events[start]
                start += 1
            if not self.is_running:
                return
            await self._news.wait()

    def num_bytes(self) -> int:
        """About what it takes: its size as JSON."""
        items = sum(len(msgspec.json.encode(item)) for item in self.items)
        events = sum(len(event) for event in self.events or ())
        return len(msgspec.json.encode(self.response)) + items + events

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class ResponseStore:
    """Keeps what runs, and of what has ended the most recently used.

    A response too big for the store is not kept.
    """

    def __init__(
        self,
        max_responses: int = MAX_RESPONSES,
        max_bytes: int = MAX_BYTES,
        max_running: int = MAX_RUNNING,
    ) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._max_running = max_running
        self._running: dict[str, tuple[StoredResponse, int]] = {}
        self._ended: OrderedDict[str, tuple[StoredResponse, int]] = OrderedDict()
        self._num_bytes = 0

    def get(self, response_id: str) -> StoredResponse | None:
        if response_id in self._ended:
            self._ended.move_to_end(response_id)
            return self._ended[response_id][0]
        running = self._running.get(response_id)
        return None if running is None else running[0]

    def add_running(self, stored: StoredResponse) -> bool:
        """False, and nothing is kept, when there is no room for it beside those that run.

        It counts with the size it has now: what the model will say is bounded by its context.
        """
        size = stored.num_bytes()
        taken = sum(other for _, other in self._running.values())
        if len(self._running) >= self._max_running or taken + size > self._max_bytes:
            return False
        self._running[stored.response.id] = (stored, size)
        return True

    def add_ended(self, stored: StoredResponse) -> None:
        """Keeps a response that has ended, which may have been running until now."""
        self.remove(stored.response.id)
        size = stored.num_bytes()
        if size > self._max_bytes:
            return
        self._ended[stored.response.id] = (stored, size)
        self._num_bytes += size
        while len(self._ended) > self._max_responses or self._num_bytes > self._max_bytes:
            _, (_, freed) = self._ended.popitem(last=False)
            self._num_bytes -= freed

    def remove(self, response_id: str) -> None:
        self._running.pop(response_id, None)
        if response_id in self._ended:
            self._num_bytes -= self._ended.pop(response_id)[1]
