"""Query parameters of ``/v1/responses/{id}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.openai.errors import bad_request
from server.openai.responses_api.schemas import InputItem
from server.openai.responses_api.shapes import InputItemList

MAX_LIMIT = 100
DEFAULT_LIMIT = 20


def first_event(query: Mapping[str, str]) -> int | None:
    """Number of the first event to send; None when the response itself is asked for.

    Raises:
        ApiError: a parameter has no valid value.
    """
    stream = query.get("stream", "false").lower()
    if stream not in ("true", "false"):
        raise bad_request("stream must be true or false.", "stream")
    if stream == "false":
        if "starting_after" in query:
            raise bad_request("starting_after needs stream=true.", "starting_after")
        return None
    return _count(query, "starting_after", 0, 2**31) + 1 if "starting_after" in query else 0


def page_of_items(items: Sequence[InputItem], query: Mapping[str, str]) -> InputItemList:
    """Raises ``ApiError`` when a parameter has no valid value."""
    limit = _count(query, "limit", 1, MAX_LIMIT) if "limit" in query else DEFAULT_LIMIT
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise bad_request("order must be asc or desc.", "order")
    listed = list(items) if order == "asc" else list(reversed(items))
    after = query.get("after")
    if after is not None:
        ids = [item.id for item in listed]
        if after not in ids:
            raise bad_request(f"There is no item {after[:100]!r}.", "after")
        listed = listed[ids.index(after) + 1 :]
    page = listed[:limit]
    return InputItemList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(listed) > len(page),
    )


def _count(query: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = query[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise bad_request(f"{name} must be a whole number.", name)
    value = int(text)
    if not least <= value <= most:
        raise bad_request(f"{name} must be from {least} to {most}.", name)
    return value
