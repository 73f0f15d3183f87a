"""The benchmark of speculation: its texts, and one real server compared with itself."""

from __future__ import annotations

import asyncio
import random

import pytest

from benchmarks.speculation import TEXTS, compare
from server.trial import running


@pytest.mark.parametrize("text", TEXTS)
def test_a_seed_gives_the_same_requests_and_no_request_comes_twice(text: str) -> None:
    first, again, other = (TEXTS[text](random.Random(seed), 6) for seed in (1, 1, 2))
    assert first == again
    assert all(body not in first[:i] and body not in other for i, body in enumerate(first))


def test_a_row_says_what_was_accepted() -> None:
    with running(["--threads", "1"]) as url:
        row = asyncio.run(compare(url, url, "copies", concurrency=2, count=4, repeats=1))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["copies", "2"]
    assert float(cells[5]) > 1.2
    accepted, _, drafted = cells[6].partition(" of ")
    assert 0 < int(accepted) <= int(drafted)
