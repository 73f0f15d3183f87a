"""Log lines, for people or for programs, each with the id of its request. Never prompts."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

request_id_var: ContextVar[str] = ContextVar("request_id", default="")


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record):%H:%M:%S} {record.levelname:<7} {record.getMessage()}"
        fields = fields_of(record)
        if fields:
            line += "  " + " ".join(f"{name}={value}" for name, value in fields.items())
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was logged as ``extra={"fields": {...}}``, and the request that it is about."""
    fields: dict[str, Any] = dict(getattr(record, "fields", {}))
    request_id = request_id_var.get()
    return {"request_id": request_id, **fields} if request_id else fields


def configure_logging(form: LogFormat, level: LogLevel) -> None:
    """Sends every logger of the process to standard error in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form is LogFormat.JSON else _TextFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # What these two say at their own INFO level is noise beside the server's own lines.
    for noisy in ("uvicorn", "httpx"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, getattr(logging, level.upper())))


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC).astimezone()
