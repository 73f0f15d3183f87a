"""A server's life: listen, load, serve, drain on a signal, exit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from engine.protocol import Engine
from server.context import DEFAULT_REQUEST_TIMEOUT_S, ServerContext
from server.http_protocol import bounded_protocol

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Longer than the idle time-outs of common load balancers, which then never meet a closed door."""
FLUSH_S = 5
"""How long answers that are complete may take to reach slow clients at the end."""
LAST_WORDS_S = 1
"""The same when a second signal insists."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What HTTPS takes; see uvicorn's options of these names."""

    certfile: Path
    keyfile: Path | None = None
    """None where the certificate's file holds the key, too."""
    keyfile_password: str | None = None
    ca_certs: Path | None = None
    """Authorities that must have signed what clients show; None asks clients for nothing."""

    def check(self) -> None:
        """
        Raises:
            ValueError: a file is missing, or they do not go together; one line.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        password = self.keyfile_password
        try:
            # An empty answer, where there is no password, spares the question on the terminal.
            context.load_cert_chain(self.certfile, self.keyfile, lambda: password or "")
            if self.ca_certs is not None:
                context.load_verify_locations(self.ca_certs)
        except OSError as error:  # what ssl raises, too
            raise ValueError(f"the certificate cannot be used: {error}") from error


class _HttpServer(uvicorn.Server):
    """uvicorn without signal handlers of its own: signals are ``run_server``'s."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Signals:
    """The first SIGTERM or SIGINT asks to stop, the second insists."""

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.kill = asyncio.Event()
        for number in self.NUMBERS:
            asyncio.get_running_loop().add_signal_handler(number, self._received, number)

    def forget(self) -> None:
        for number in self.NUMBERS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _received(self, number: int) -> None:
        if self.stop.is_set():
            self.kill.set()
        else:
            logger.info("%s: draining", signal.Signals(number).name)
            self.stop.set()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; raises ``OSError`` when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    return listener


async def run_server(
    app: FastAPI,
    engine: Engine,
    listener: socket.socket,
    *,
    shutdown_grace_s: float,
    on_ready: Callable[[], None],
    tls: Tls | None = None,
    request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
) -> int:
    """Serves until a signal; returns the process's exit status.

    The port answers while the engine starts. The first SIGTERM or SIGINT drains: nothing new is
    taken, and what runs has ``shutdown_grace_s`` seconds to finish. A second one ends at once.

    Raises:
        EngineError: the engine cannot start.
    """
    signals = _Signals()
    stop = asyncio.ensure_future(signals.stop.wait())
    kill = asyncio.ensure_future(signals.kill.wait())
    http = _HttpServer(_uvicorn_config(app, tls, request_timeout_s))
    serving = asyncio.ensure_future(http.serve(sockets=[listener]))
    starting = asyncio.ensure_future(engine.start())
    context: ServerContext = app.state.context
    try:
        await _first_of(serving, starting, stop)
        is_ready = starting.done()
        if is_ready:
            starting.result()
            on_ready()
            await _first_of(serving, stop)
        asked_to_stop = stop.done()
        context.draining = True
        if is_ready and asked_to_stop:
            draining = asyncio.ensure_future(engine.drain(shutdown_grace_s))
            await _first_of(draining, kill)
            draining.cancel()
    finally:
        context.draining = True
        for task in (starting, stop):
            task.cancel()
        http.should_exit = True
        await engine.close()  # what still runs gets its error now
        await _first_of(serving, kill)
        if not serving.done():
            http.force_exit = True
            await asyncio.wait({serving}, timeout=LAST_WORDS_S)
        kill.cancel()
        signals.forget()
    return 0 if asked_to_stop and not signals.kill.is_set() else 1


async def _first_of(*tasks: asyncio.Future[Any]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _uvicorn_config(app: FastAPI, tls: Tls | None, request_timeout_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bounded_protocol(request_timeout_s),
        ws="none",
        ssl_keyfile=None if tls is None else tls.keyfile,
        ssl_certfile=None if tls is None else tls.certfile,
        ssl_keyfile_password=None if tls is None else tls.keyfile_password,
        ssl_ca_certs=None if tls is None or tls.ca_certs is None else str(tls.ca_certs),
        ssl_cert_reqs=ssl.CERT_NONE if tls is None or tls.ca_certs is None else ssl.CERT_REQUIRED,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=FLUSH_S,
    )
