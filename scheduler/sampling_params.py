"""What a request asks of the sampler and when it wants to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

MOST_LOGPROBS = 20

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class InvalidParameterError(ValueError):
    """A parameter outside its domain; ``parameter`` is its name in the API."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter} {message}")
        self.parameter = parameter


class GrammarKind(StrEnum):
    """How a grammar is written down."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"
    """In llguidance's dialect."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the output must be, from its first character to its last."""

    kind: GrammarKind
    text: str


class Pooling(StrEnum):
    """How the last hidden states of a prompt become its embedding."""

    LAST = "last"
    """That of the last token."""
    MEAN = "mean"
    """The average of all."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling and stopping rules of one request, validated on construction.

    ``stop_token_ids`` holds every token that ends the output, the model's own end-of-sequence
    tokens included: who builds the request decides whether those count (``ignore_eos``).
    ``seed`` is always set; a request without one gets a random seed before it comes here, so
    that there is a single path through the sampler.

    Raises:
        InvalidParameterError: a value is outside the range the OpenAI API gives it.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    """Keep tokens at least this likely relative to the likeliest."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    """Stop tokens are masked until this many output tokens exist."""
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that may be sampled, those that end the output included; empty is all."""
    grammar: Grammar | None = None
    """When it is fulfilled and nothing can follow, only tokens of ``stop_token_ids`` can."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report beside each sampled one, with their logarithmic
    probabilities, before penalties, temperature and all else; None reports nothing."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens, once for all continuations."""
    pooling: Pooling | None = None
    """The prompt's embedding is all that is wanted."""

    def __post_init__(self) -> None:
        least = 1 if self.prompt_logprobs is None else 0
        _require(self.max_tokens >= least, "max_tokens", f"must be at least {least}")
        _require(_INT64_MIN <= self.seed <= _INT64_MAX, "seed", "must fit in 64 bits")
        _require_range("temperature", self.temperature, 0.0, 2.0)
        _require(self.top_k >= 0, "top_k", "must be 0 (off) or positive")
        _require_range("top_p", self.top_p, 0.0, 1.0)
        _require(self.top_p > 0, "top_p", "must be above 0")
        _require_range("min_p", self.min_p, 0.0, 1.0)
        _require_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _require_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _require(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            "must be a finite number above 0",
        )
        for _, bias in self.logit_bias:
            _require_range("logit_bias", bias, -100.0, 100.0)
        _require(self.min_tokens >= 0, "min_tokens", "must not be negative")
        _require(
            self.min_tokens <= self.max_tokens,
            "min_tokens",
            f"({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})",
        )
        for parameter in ("logprobs", "prompt_logprobs"):
            count = getattr(self, parameter)
            _require(
                count is None or 0 <= count <= MOST_LOGPROBS,
                parameter,
                f"must be between 0 and {MOST_LOGPROBS}",
            )

    @property
    def samples_nothing(self) -> bool:
        """Whether the prompt is all that is looked at."""
        return self.pooling is not None or self.max_tokens == 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


def _require(condition: bool, parameter: str, message: str) -> None:
    if not condition:
        raise InvalidParameterError(parameter, message)


def _require_range(parameter: str, value: float, low: float, high: float) -> None:
    # NaN fails both comparisons, so it is refused here too.
    _require(low <= value <= high, parameter, f"must be between {low:g} and {high:g}")
