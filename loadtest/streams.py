"""When the tokens of a streamed completion came, for servers that count them and those that don't.

Servers differ in what a chunk of a stream says. Some attach the usage so far to every chunk
(``continuous_usage_stats``), some list the token ids, and some send nothing but a piece of text
for each token and the usage once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class CountError(ValueError):
    """What came contradicts the server's own count of tokens; one line."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one event of a stream says about tokens, and when it came."""

    time_s: float
    num_tokens: int
    """New ones: by their ids or, where it has none, one for a text and none for no text."""
    num_tokens_so_far: int | None
    """By the chunk's usage; None where it has none."""


def read_chunk(event: Mapping[str, Any], time_s: float) -> Chunk:
    """Reads an event of ``/v1/completions``; only its first choice counts."""
    choices = event.get("choices") or [{}]
    token_ids, text = choices[0].get("token_ids"), choices[0].get("text")
    num_tokens = len(token_ids) if token_ids is not None else int(bool(text))
    usage = event.get("usage") or {}
    return Chunk(time_s, num_tokens, usage.get("completion_tokens"))


def token_times(chunks: Sequence[Chunk]) -> list[float]:
    """One time for each output token.

    The server's own count is used where every chunk with tokens carries it: such a chunk may
    have several tokens, or none that shows as text. Otherwise the chunks themselves are counted,
    and the usage at the end, where there is one, has to agree: tokens that share a chunk
    unannounced have no times that could be known.

    Raises:
        CountError: the usage at the end says otherwise.
    """
    with_tokens = [chunk for chunk in chunks if chunk.num_tokens]
    times: list[float] = []
    if with_tokens and all(chunk.num_tokens_so_far is not None for chunk in with_tokens):
        for chunk in chunks:
            times += [chunk.time_s] * ((chunk.num_tokens_so_far or 0) - len(times))
    else:
        for chunk in with_tokens:
            times += [chunk.time_s] * chunk.num_tokens
    counts = [c.num_tokens_so_far for c in chunks if c.num_tokens_so_far is not None]
    if counts and counts[-1] != len(times):
        raise CountError(f"the stream shows {len(times)} tokens, its usage counts {counts[-1]}")
    return times
