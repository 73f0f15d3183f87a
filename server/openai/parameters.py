"""From a request's fields to the engine's parameters. Pure: every decision is here."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TypeVar

from scheduler.request import Request
from scheduler.sampling_params import Grammar, SamplingParams
from server.generation import TextOptions
from server.openai.errors import bad_request, context_length_exceeded
from server.openai.schemas import EmbeddingRequest, GenerationFields
from server.served_model import ServedModel
from server.tokenizer import Tokenizer

T = TypeVar("T")

MAX_STOP_STRINGS = 16
MAX_CHOICES = 2048
"""Continuations in one request: prompts times ``n``."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What chat and completions ask for in different ways."""

    grammar: Grammar | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None


def room_for_output(model: ServedModel, num_prompt_tokens: int, param: str) -> int:
    """Tokens that may follow a prompt; ``param`` is where the prompt came from.

    Raises:
        ApiError: the prompt leaves no room for a single token.
    """
    room = model.max_model_len - num_prompt_tokens
    if room < 1:
        raise context_length_exceeded(model.max_model_len, str(num_prompt_tokens), param)
    return room


def refuse_overlong(tokenizer: Tokenizer, text: str, model: ServedModel, param: str) -> None:
    """Refuses a text that certainly does not fit, without the cost of encoding it."""
    at_least = tokenizer.min_tokens(text)
    if at_least >= model.max_model_len:
        raise context_length_exceeded(model.max_model_len, f"at least {at_least}", param)


def check_token_ids(token_ids: list[int], model: ServedModel, param: str) -> tuple[int, ...]:
    if token_ids and max(token_ids) >= model.vocab_size:
        raise bad_request(
            f"{param} has token id {max(token_ids)}, but the vocabulary has {model.vocab_size} "
            "tokens.",
            param=param,
        )
    return tuple(token_ids)


def sampling_params(
    fields: GenerationFields,
    model: ServedModel,
    *,
    max_tokens: int,
    seed: int,
    wanted: Wanted,
) -> SamplingParams:
    """What the client said, else what the model's authors recommend, else the API's default.

    Raises:
        InvalidParameterError: a value is out of range.
        ApiError: a token id is.
    """
    defaults = model.defaults
    own_stops = check_token_ids(fields.stop_token_ids or [], model, "stop_token_ids")
    # An answer that a grammar has completed has nothing left to say but that it ends.
    ignores_eos = fields.ignore_eos and wanted.grammar is None
    eos = () if ignores_eos else model.eos_token_ids
    top_k = _either(fields.top_k, defaults.top_k)
    return SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        temperature=_either(fields.temperature, defaults.temperature),
        top_k=max(top_k, 0),
        top_p=_either(fields.top_p, defaults.top_p),
        min_p=_either(fields.min_p, defaults.min_p),
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        repetition_penalty=_either(fields.repetition_penalty, defaults.repetition_penalty),
        logit_bias=logit_bias(fields.logit_bias or {}, model),
        min_tokens=fields.min_tokens or 0,
        stop_token_ids=tuple(dict.fromkeys([*own_stops, *eos])),
        allowed_token_ids=check_token_ids(
            fields.allowed_token_ids or [], model, "allowed_token_ids"
        ),
        grammar=wanted.grammar,
        logprobs=wanted.logprobs,
        prompt_logprobs=wanted.prompt_logprobs,
    )


def engine_requests(
    fields: GenerationFields,
    model: ServedModel,
    prompts: list[tuple[int, ...]],
    *,
    request_id: str,
    max_tokens: int | None,
    param: str,
    arrival_time: float,
    wanted: Wanted,
) -> list[Request]:
    """One request of the engine for each prompt; ``max_tokens`` None is the rest of the context.

    Without a seed each request gets its own.
    """
    n = fields.n or 1
    if len(prompts) * n > MAX_CHOICES:
        raise bad_request(
            f"{len(prompts)} prompts with n={n} are more than {MAX_CHOICES} choices.", param=param
        )
    requests = []
    for i, prompt in enumerate(prompts):
        room = room_for_output(model, len(prompt), param)
        seed = secrets.randbits(63) if fields.seed is None else fields.seed
        requests.append(
            Request(
                request_id=f"{request_id}-{i}",
                prompt_token_ids=prompt,
                sampling=sampling_params(
                    fields,
                    model,
                    max_tokens=room if max_tokens is None else min(max_tokens, room),
                    seed=seed,
                    wanted=wanted,
                ),
                arrival_time=arrival_time,
                priority=fields.priority or 0,
                n=n,
                cache_salt=fields.cache_salt or "",
            )
        )
    return requests


def truncated(
    token_ids: tuple[int, ...], fields: GenerationFields | EmbeddingRequest, model: ServedModel
) -> tuple[int, ...]:
    """The prompt's last tokens, or its first, as many as ``truncate_prompt_tokens`` leaves; -1 are
    as many as fit."""
    count = fields.truncate_prompt_tokens
    if count is None:
        return token_ids
    if count == 0:
        raise bad_request("truncate_prompt_tokens leaves nothing.", "truncate_prompt_tokens")
    count = model.max_model_len - 1 if count < 0 else count
    return token_ids[:count] if fields.truncation_side == "right" else token_ids[-count:]


def split_prompts(prompt: str | list[str | int | list[int]], param: str) -> list[str | list[int]]:
    """The prompts that a field holds: it is a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_request(f"{param} must not be empty.", param)
    token_ids = [item for item in prompt if isinstance(item, int)]
    texts: list[str | list[int]] = [item for item in prompt if not isinstance(item, int)]
    if token_ids and texts:
        raise bad_request(f"{param} mixes token ids with texts or lists.", param)
    return [token_ids] if token_ids else texts


def logit_bias(biases: dict[str, float], model: ServedModel) -> tuple[tuple[int, float], ...]:
    """Keys are token ids, written as JSON writes keys."""
    for key in biases:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise bad_request(
                f"logit_bias has the key {key[:40]!r}, which is not a token id.", param="logit_bias"
            )
    check_token_ids([int(key) for key in biases], model, "logit_bias")
    return tuple((int(key), float(bias)) for key, bias in biases.items())


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOP_STRINGS:
        raise bad_request(f"stop has more than {MAX_STOP_STRINGS} strings.", param="stop")
    if "" in strings:
        raise bad_request("stop must not be an empty string.", param="stop")
    return strings


def text_options(
    fields: GenerationFields, *, continues_text: bool, visible: frozenset[int] = frozenset()
) -> TextOptions:
    return TextOptions(
        stop=stop_strings(fields.stop),
        include_stop=bool(fields.include_stop_str_in_output),
        stop_token_ids=frozenset(fields.stop_token_ids or ()),
        skip_special_tokens=fields.skip_special_tokens is not False,
        visible=visible,
        continues_text=continues_text,
    )


def check_stream_options(fields: GenerationFields) -> None:
    if fields.stream_options is not None and not fields.stream:
        raise bad_request(
            "stream_options is only allowed when stream is true.", param="stream_options"
        )


def _either(said: T | None, default: T) -> T:
    return default if said is None else said
