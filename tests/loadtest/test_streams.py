"""Counting the tokens of streams as servers send them."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.streams import CountError, read_chunk, token_times


def times(*events: dict[str, Any]) -> list[float]:
    """Of events that come at 0, 1, 2 …"""
    return token_times([read_chunk(event, float(i)) for i, event in enumerate(events)])


def chunk(text: str = "", **more: Any) -> dict[str, Any]:
    return {"choices": [{"text": text, **more}]}


def used(count: int) -> dict[str, Any]:
    return {"usage": {"completion_tokens": count, "prompt_tokens": 7}}


def test_a_chunk_is_a_token_where_only_the_last_one_counts() -> None:
    llama = [chunk("a"), chunk("b"), chunk("c"), chunk("", finish_reason="length") | used(3)]
    assert times(*llama) == [0, 1, 2]
    openai = [chunk("a") | {"usage": None}, chunk("b") | {"usage": None}, {"choices": []} | used(2)]
    assert times(*openai) == [0, 1]


def test_a_chunk_is_a_token_where_nothing_counts() -> None:
    assert times(chunk("a"), chunk("b"), chunk("", finish_reason="stop")) == [0, 1]
    assert times() == []


def test_usage_in_every_chunk_knows_of_several_tokens_and_of_those_without_text() -> None:
    assert times(chunk("ab") | used(2), chunk() | used(3), chunk("c") | used(4)) == [0, 0, 1, 2]
    assert times(chunk("a") | used(1), chunk("b") | used(2), {"choices": []} | used(2)) == [0, 1]


def test_token_ids_count_before_texts() -> None:
    events = [chunk("", token_ids=[5]), chunk("ab", token_ids=[6, 7]), chunk("c", token_ids=[])]
    assert times(*events, {"choices": []} | used(3)) == [0, 1, 1]


def test_tokens_that_share_a_chunk_unannounced_have_no_times() -> None:
    with pytest.raises(CountError, match="shows 2 tokens, its usage counts 3"):
        times(chunk("ab"), chunk("c"), chunk("") | used(3))


def test_a_count_at_the_end_alone_is_not_taken_for_the_times() -> None:
    with pytest.raises(CountError, match="shows 0 tokens"):
        times(chunk(""), chunk(""), chunk("", finish_reason="length") | used(3))
