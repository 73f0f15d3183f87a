"""HTTP on a connection, with bounds that uvicorn's own protocol lacks.

A client that says nothing, says its headers slowly or without end, or never reads its answer, is
cut off. Reading the body is the routes' to bound (``server.openai.body``).
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.logs import request_id_var
from server.openai.errors import ApiError
from server.request_log import new_request_id

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 2**10
"""Of a request line and its headers; what nginx and others allow is less."""
READ_STALL_S = 60.0
"""How long a client may leave its answer unread while there is more to send."""


class BoundedProtocol(HttpToolsProtocol):
    """``request_timeout_s`` is how long the head of a request may take, from the connection or
    from its first byte."""

    def __init__(self, *arguments: Any, request_timeout_s: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._request_timeout_s = request_timeout_s
        self._num_head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._start_head_timer()
        # What was read with the end of a body counts too: clients that pipeline are rare.
        self._num_head_bytes += len(data)
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"The request's headers are larger than {MAX_HEAD_BYTES} bytes.",
                "headers_too_large",
            )

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(READ_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    # ------------------------------------------------------------------ the parser

    def on_message_begin(self) -> None:
        self._in_head, self._num_head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn answers what is no HTTP, in the API's shape."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg, "invalid_http")

    # ------------------------------------------------------------------ small parts

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._request_timeout_s, self._head_timed_out)

    def _head_timed_out(self) -> None:
        if self._num_head_bytes == 0:
            self.transport.close()
            return
        self._refuse(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The request's headers did not arrive within {self._request_timeout_s:g} seconds.",
            "request_timeout",
        )

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _refuse(self, status: HTTPStatus, message: str, code: str) -> None:
        """Answers what never becomes a request of the application, and hangs up."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # nothing can be said in the middle of another answer
            return
        request_id = new_request_id()
        request_id_var.set(request_id)
        logger.info("hung up: %d %s", status, code)
        body = ApiError(status, message, code=code).body()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def bounded_protocol(request_timeout_s: float) -> Any:
    """What uvicorn calls for each connection."""
    return partial(BoundedProtocol, request_timeout_s=request_timeout_s)
