from __future__ import annotations

import asyncio

import pytest

from server.openai.responses_api.schemas import InputItem
from server.openai.responses_api.shapes import ResponseObject
from server.openai.responses_api.store import ResponseStore, StoredResponse


def stored(name: str, size: int = 0, *, is_running: bool = False) -> StoredResponse:
    response = ResponseObject(
        id=name,
        created_at=0,
        status="queued" if is_running else "completed",
        model="m",
        temperature=1.0,
        text={},
        top_p=1.0,
    )
    return StoredResponse(response, (InputItem(content="x" * size),), is_running=is_running)


def kept(store: ResponseStore, names: str) -> str:
    return "".join(name for name in names if store.get(name) is not None)


def test_the_least_recently_used_goes_first() -> None:
    store = ResponseStore(max_responses=3)
    for name in "abc":
        store.add_ended(stored(name))
    store.get("a")
    store.add_ended(stored("d"))
    assert kept(store, "abcd") == "acd"


def test_bytes_are_bounded_too() -> None:
    store = ResponseStore(max_bytes=10_000)
    for name in "abc":
        store.add_ended(stored(name, 4_000))
    assert kept(store, "abc") == "bc"
    store.add_ended(stored("huge", 20_000))
    assert store.get("huge") is None
    assert kept(store, "abc") == "bc"


def test_what_is_removed_makes_room() -> None:
    store = ResponseStore(max_bytes=10_000)
    store.add_ended(stored("a", 4_000))
    store.add_ended(stored("b", 4_000))
    store.remove("a")
    store.remove("a")
    store.add_ended(stored("c", 4_000))
    assert kept(store, "abc") == "bc"


def test_what_is_replaced_counts_once() -> None:
    store = ResponseStore(max_bytes=10_000)
    for _ in range(5):
        store.add_ended(stored("a", 4_000))
    store.add_ended(stored("b", 4_000))
    assert kept(store, "ab") == "ab"


def test_what_runs_is_never_dropped_and_is_bounded_by_itself() -> None:
    store = ResponseStore(max_responses=1, max_running=2)
    for name in "ab":
        assert store.add_running(stored(name, is_running=True))
    assert not store.add_running(stored("e", is_running=True))
    for name in "cd":
        store.add_ended(stored(name))
    assert kept(store, "abcde") == "abd"
    store.add_ended(stored("a"))
    assert kept(store, "abcde") == "ab"
    assert store.add_running(stored("e", is_running=True))


def test_the_bytes_of_what_runs_are_bounded_by_themselves() -> None:
    store = ResponseStore(max_bytes=10_000)
    store.add_ended(stored("a", 6_000))
    assert store.add_running(stored("b", 6_000, is_running=True))
    assert not store.add_running(stored("c", 6_000, is_running=True))
    assert store.add_running(stored("d", 1_000, is_running=True))
    assert kept(store, "abcd") == "abd"
    store.remove("b")
    assert store.add_running(stored("c", 6_000, is_running=True))


async def test_several_readers_follow_one_stream() -> None:
    response = stored("a", is_running=True)
    response.events = []

    async def read(start: int) -> list[bytes]:
        return [event async for event in response.follow(start)]

    readers = [asyncio.create_task(read(start)) for start in (0, 1, 5)]
    for event in (b"0", b"1", b"2"):
        await asyncio.sleep(0)
        response.publish(response.response, [event])
    response.end()
    assert await asyncio.gather(*readers) == [[b"0", b"1", b"2"], [b"1", b"2"], []]
    assert await read(1) == [b"1", b"2"]


@pytest.mark.parametrize("with_events", [False, True])
def test_events_are_part_of_the_size(with_events: bool) -> None:
    plain, full = stored("a"), stored("a")
    full.events = [b"x" * 1000] if with_events else None
    assert full.num_bytes() - plain.num_bytes() == (1000 if with_events else 0)
