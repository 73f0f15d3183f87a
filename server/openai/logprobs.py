"""How likely tokens were, in the two shapes of the API."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.step_plan import TokenLogprobs
from server.generation import TextDelta
from server.openai.shapes import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptTokenLogprob,
    TopLogprob,
)
from server.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON cannot say."""


def chat_logprobs(tokenizer: Tokenizer, delta: TextDelta) -> ChatLogprobs:
    """Of the tokens of a delta, the one that ended the text aside."""
    content = []
    for token_id, entry in zip(delta.token_ids, delta.logprobs, strict=False):
        spelled = tokenizer.token_bytes(token_id)
        top = [_top_logprob(tokenizer, *pair) for pair in entry.top]
        content.append(
            ChatTokenLogprob(
                token=spelled.decode(errors="replace"),
                logprob=_clamped(entry.logprob),
                bytes=list(spelled),
                top_logprobs=top,
            )
        )
    return ChatLogprobs(content=content)


def _top_logprob(tokenizer: Tokenizer, token_id: int, logprob: float) -> TopLogprob:
    spelled = tokenizer.token_bytes(token_id)
    return TopLogprob(
        token=spelled.decode(errors="replace"), logprob=_clamped(logprob), bytes=list(spelled)
    )


class EchoedPrompt:
    """A prompt as the beginning of a completion's logprobs."""

    def __init__(
        self, tokenizer: Tokenizer, token_ids: Sequence[int], scores: Sequence[TokenLogprobs]
    ) -> None:
        self.token_ids = token_ids
        self.scores: tuple[TokenLogprobs | None, ...] = (None, *scores)
        """Nothing comes before the first token, so nobody knows how likely it was."""
        self.offsets = tokenizer.offsets(token_ids)


def completion_logprobs(
    tokenizer: Tokenizer,
    delta: TextDelta,
    *,
    shift: int,
    echoed: EchoedPrompt | None = None,
) -> CompletionLogprobs:
    """Of a delta's tokens, whose text begins after ``shift`` characters, and what was echoed."""
    token_ids = [*delta.token_ids[: len(delta.logprobs)]]
    entries: list[TokenLogprobs | None] = [*delta.logprobs]
    offsets = [shift + offset for offset in delta.offsets[: len(token_ids)]]
    if echoed is not None:
        token_ids = [*echoed.token_ids, *token_ids]
        entries = [*echoed.scores, *entries]
        offsets = [*echoed.offsets, *offsets]
    return CompletionLogprobs(
        tokens=[_name(tokenizer, token_id) for token_id in token_ids],
        token_logprobs=[None if e is None else _clamped(e.logprob) for e in entries],
        top_logprobs=[
            None if entry is None else _top_by_name(tokenizer, token_id, entry)
            for token_id, entry in zip(token_ids, entries, strict=True)
        ],
        text_offset=offsets,
    )


def _top_by_name(tokenizer: Tokenizer, token_id: int, entry: TokenLogprobs) -> dict[str, float]:
    """The likeliest tokens, and the one that is there; of equal names the likeliest."""
    top: dict[str, float] = {}
    for other_id, logprob in (*entry.top, (token_id, entry.logprob)):
        top.setdefault(_name(tokenizer, other_id), _clamped(logprob))
    return top


def _name(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; what is not UTF-8 by itself as OpenAI writes it: ``bytes:\\xe2\\x80``."""
    spelled = tokenizer.token_bytes(token_id)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def prompt_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], scores: Sequence[TokenLogprobs]
) -> list[dict[str, PromptTokenLogprob] | None]:
    """In vLLM's shape: by token id, the likeliest tokens and the one that is there."""
    entries: list[dict[str, PromptTokenLogprob] | None] = [None]
    for token_id, score in zip(token_ids[1:], scores, strict=True):
        of_place = {
            str(other_id): PromptTokenLogprob(
                logprob=_clamped(logprob), rank=rank, decoded_token=_name(tokenizer, other_id)
            )
            for rank, (other_id, logprob) in enumerate(score.top, 1)
        }
        of_place[str(token_id)] = PromptTokenLogprob(
            logprob=_clamped(score.logprob),
            rank=score.rank,
            decoded_token=_name(tokenizer, token_id),
        )
        entries.append(of_place)
    return entries


def _clamped(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
