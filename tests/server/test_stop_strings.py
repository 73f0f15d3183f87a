from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.stop_strings import StopStringMatcher


def run(stop: list[str], pieces: list[str], *, include: bool = False) -> tuple[str, str | None]:
    matcher = StopStringMatcher(stop, include_in_output=include)
    text = "".join([*map(matcher.push, pieces), matcher.flush()])
    return text, matcher.matched


def test_without_stop_strings_text_passes_unchanged() -> None:
    assert run([], ["a", "", "b"]) == ("ab", None)


def test_match_across_pieces_is_removed() -> None:
    assert run(["END"], ["one E", "N", "D two"]) == ("one ", "END")


def test_match_can_be_kept() -> None:
    assert run(["END"], ["one E", "ND two"], include=True) == ("one END", "END")


def test_partial_match_is_held_back_only_while_it_is_possible() -> None:
    matcher = StopStringMatcher(["abc"])
    assert matcher.push("xab") == "x"
    assert matcher.push("a") == "ab"
    assert matcher.push("bd") == "abd"
    assert matcher.flush() == ""


def test_partial_match_comes_out_at_the_end() -> None:
    assert run(["abc"], ["xab"]) == ("xab", None)


def test_the_match_completed_first_wins() -> None:
    assert run(["abcd", "bc"], ["abcd"]) == ("a", "bc")
    assert run(["d", "b"], ["abcd"]) == ("a", "b")


def test_of_two_completed_together_the_longer_wins() -> None:
    assert run(["c", "bc"], ["abcd"]) == ("a", "bc")


def test_nothing_follows_a_match() -> None:
    matcher = StopStringMatcher(["b"])
    assert matcher.push("ab") == "a"
    assert matcher.push("cd") == ""
    assert matcher.flush() == ""


def first_match(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The reference: try every end."""
    for end in range(1, len(text) + 1):
        ending = [string for string in stop if text[:end].endswith(string)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    st.lists(st.text("ab", max_size=5), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_agrees_with_the_reference_however_text_is_cut(pieces: list[str], stop: list[str]) -> None:
    assert run(stop, pieces) == first_match("".join(pieces), stop)


@given(
    st.lists(st.text("ab", max_size=5), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_never_holds_back_more_than_a_partial_match(pieces: list[str], stop: list[str]) -> None:
    matcher = StopStringMatcher(stop)
    seen = sent = ""
    for piece in pieces:
        seen += piece
        sent += matcher.push(piece)
        if matcher.matched is not None:
            break
        held = seen[len(sent) :]
        longest = next(
            (k for k in range(len(seen), 0, -1) if any(s.startswith(seen[-k:]) for s in stop)), 0
        )
        assert len(held) == longest
