from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from server.openai.tools.scanner import MOST_DEPTH, CallScanner, Progress, ValueScanner
from tests.cuts import SIZES, cut


def scan(*pieces: str) -> tuple[Progress, int]:
    """How it ended, and after how many characters."""
    scanner, place = ValueScanner(), 0
    for piece in pieces:
        taken = scanner.push(piece, 0, len(piece))
        place += taken
        if taken < len(piece):
            break
    return scanner.progress, place


SYMBOLS = [*'{}[],:" \n', "\\", '"a"', '"k":', "\\n", "\\u12aF", "\\u1", "é", "\x01"]
SCALARS = ["0", "-1.5e3", "1.", "01", "true", "null", "nul"]
JSON_LIKE = st.lists(st.sampled_from(SYMBOLS + SCALARS), max_size=12).map("".join)


@given(st.sampled_from('{["'), JSON_LIKE, SIZES)
def test_it_ends_where_pythons_decoder_ends(start: str, rest: str, sizes: list[int]) -> None:
    text = start + rest
    progress, place = scan(text)
    assert scan(*cut(text, sizes)) == (progress, place)
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        assert progress is not Progress.DONE
    else:
        assert (progress, place) == (Progress.DONE, end)
    if progress is Progress.OPEN:
        assert place == len(text)


def test_depth_and_numbers_are_bounded() -> None:
    assert scan("[" * MOST_DEPTH)[0] is Progress.OPEN
    assert scan("[" * (MOST_DEPTH + 1)) == (Progress.FAILED, MOST_DEPTH)
    assert scan("[" + "1" * 10_000)[0] is Progress.FAILED


def test_a_call_is_certain_with_its_name_and_the_beginning_of_its_arguments() -> None:
    scanner = CallScanner(None)
    scanner.push('{"arguments": {"a": 1}, "na')
    assert (scanner.name, scanner.take()) == ("", "")
    scanner.push('me": "f"')
    assert (scanner.name, scanner.take(), scanner.is_whole) == ("f", '{"a": 1}', True)
    assert scanner.push("} x") == 1
    assert scanner.progress is Progress.DONE
