"""Answers that stop when nobody listens: server-sent events, and waiting for a whole answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.openai.errors import ApiError, as_api_error, is_unforeseen
from server.record import RequestRecord

logger = logging.getLogger(__name__)

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


class ClientDisconnectedError(Exception):
    """The client went away; there is nobody to answer."""


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away.

    The request's body must have been read: what ``receive`` gives next is the disconnect.

    Raises:
        ClientDisconnectedError: the client went away first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnectedError
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def named_event(name: str, data: bytes) -> bytes:
    return f"event: {name}\n".encode() + event(data)


def error_event(error: ApiError) -> bytes:
    return event(error.body())


class EventStreamResponse(Response):
    """Sends events as they come, then ``ending``.

    What goes wrong before the first event is raised, and so becomes an ordinary error answer;
    what goes wrong later becomes the event that ``on_error`` makes of it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        record: RequestRecord,
        *,
        on_error: Callable[[ApiError], bytes] = error_event,
        ending: bytes = DONE,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._record = record
        self._on_error = on_error
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await cancel_on_disconnect(receive, self._send_events(send))
        except ClientDisconnectedError:
            self._record.client_disconnected()

    async def _send_events(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events, b"")
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            await _send_chunk(send, first)
            ending = self._ending
            try:
                async for chunk in events:
                    await _send_chunk(send, chunk)
            except Exception as error:
                ending = self._error_event(error) + self._ending
            await send({"type": "http.response.body", "body": ending, "more_body": False})

    def _error_event(self, error: Exception) -> bytes:
        api_error = as_api_error(error)
        if is_unforeseen(error):
            logger.exception("error in a stream", exc_info=error)
        self._record.failed(api_error.status, api_error.reason)
        return self._on_error(api_error)


async def _send_chunk(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})
