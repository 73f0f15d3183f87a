"""API keys: who may ask, on every route but the probes."""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from itertools import takewhile
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.error_shape import error_response
from server.openai.errors import ApiError
from server.rate_limits import NO_LIMITS, Rates
from server.record import RequestRecord

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready"})
_LOOK_EVERY_S = 1.0
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_COUNT = re.compile(r"[1-9][0-9]{0,11}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key is known by its digest: the key itself is not kept."""

    digest: bytes
    name: str
    """For logs and limits."""
    rates: Rates = NO_LIMITS

    @classmethod
    def of(cls, key: str, name: str, rates: Rates = NO_LIMITS) -> ApiKey:
        return cls(sha256(key.encode()).digest(), name, rates)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """A key a line, which ``name=…``, ``requests=…`` and ``tokens=…`` (a minute) may follow.

    Several keys may have one name, of which the limits are then. A ``#`` at the start of a word
    begins a comment.

    Raises:
        ValueError: one clear line; it quotes nothing, since what is out of place may be a key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    keys: list[ApiKey] = []
    for number, line in enumerate(lines, 1):
        words = list(takewhile(lambda word: not word.startswith("#"), line.split()))
        if not words:
            continue
        where = f"{path}, line {number}"
        key = _parse_key(*words, where=where, name=f"line-{number}")
        if any(key.digest == other.digest for other in keys):
            raise ValueError(f"{where}: the key has been there before")
        if any(key.name == other.name and key.rates != other.rates for other in keys):
            raise ValueError(f"{where}: other limits than those of a key of the same name")
        keys.append(key)
    if not keys:
        raise ValueError(f"{path} holds no key")
    return tuple(keys)


def _parse_key(key: str, *fields: str, where: str, name: str) -> ApiKey:
    said = {word: value for word, _, value in (field.partition("=") for field in fields)}
    if said.keys() - {"name", "requests", "tokens"}:
        raise ValueError(f"{where}: only name=…, requests=… and tokens=… may follow a key")
    if not _NAME.fullmatch(said.setdefault("name", name)):
        raise ValueError(f"{where}: a name is made of letters, digits, dots, dashes and underlines")
    counts = {}
    for kind in ("requests", "tokens"):
        text = said.get(kind)
        if text is not None and not _COUNT.fullmatch(text):
            raise ValueError(f"{where}: {kind} must be a number above 0")
        counts[kind] = None if text is None else int(text)
    return ApiKey.of(_checked(key, where), said["name"], Rates(**counts))


def _checked(key: str, where: str) -> str:
    """An empty key would let in whoever sends none; others could not be sent in a header."""
    if not (key.isascii() and key.isprintable() and key and " " not in key):
        raise ValueError(f"{where}: a key is made of ASCII characters, without spaces")
    return key


class ApiKeys:
    """The keys of the command line and those of a file, which is read again when it changes."""

    def __init__(self, keys: Iterable[str] = (), file: Path | None = None) -> None:
        """
        Raises:
            ValueError: a key is none, or the file cannot be read; one line.
        """
        self._own = tuple(
            ApiKey.of(_checked(key, "--api-key"), f"key-{i}") for i, key in enumerate(keys, 1)
        )
        self._file = file
        self._stamp = self._read_stamp()
        self._of_file: tuple[ApiKey, ...] = () if file is None else read_keys(file)
        self._looked_at_s = time.monotonic()

    def __bool__(self) -> bool:
        return bool(self._own or self._of_file)

    def find(self, given: str) -> ApiKey | None:
        """The key that was given, compared with each in constant time."""
        self._look_again()
        digest = sha256(given.strip().encode("latin-1", "replace")).digest()
        found = None
        for key in (*self._own, *self._of_file):
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def _look_again(self) -> None:
        now_s = time.monotonic()
        if self._file is None or now_s - self._looked_at_s < _LOOK_EVERY_S:
            return
        self._looked_at_s = now_s
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._of_file = read_keys(self._file)
        except ValueError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("%d keys read from %s", len(self._of_file), self._file)

    def _read_stamp(self) -> tuple[int, ...] | None:
        if self._file is None:
            return None
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


class ApiKeyMiddleware:
    """Takes a key as ``Authorization: Bearer KEY`` or ``X-Api-Key: KEY``."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        key = self._keys.find(_given(Headers(scope=scope)))
        record: RequestRecord = scope["state"]["record"]
        if key is not None:
            record.caller, record.rates = key.name, key.rates
            await self._app(scope, receive, send)
            return
        error = ApiError(
            HTTPStatus.UNAUTHORIZED,
            "Incorrect or missing API key. Send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        record.failed(error.status, error.reason)
        await error_response(error, scope)(scope, receive, send)


def _given(headers: Headers) -> str:
    """Empty if none was; that no key is."""
    given = headers.get("x-api-key")
    if given is not None:
        return given
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given if scheme.lower() == "bearer" else ""
