"""Which tokens a grammar lets follow, by llguidance (github.com/guidance-ai/llguidance).

A grammar is compiled once and copied for each sequence. That takes a millisecond as a rule, and
llguidance's limits bound it; it can be done in a thread beside the steps.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from scheduler.sampling_params import Grammar, GrammarKind, InvalidParameterError

logger = logging.getLogger(__name__)

MOST_GRAMMAR_CHARACTERS = 2**18

_MOST_KEPT = 256
"""Compiled grammars; each takes some ten kilobytes."""
_MOST_SAID = 500
"""Characters of an error, which may quote the grammar."""
_SILENT = 0
_LIMITS = LLParserLimits(verbose_errors=False)
JSON_OPTIONS: Any = {"whitespace_pattern": r"( |\n[ ]{0,32})?"}
"""Of llguidance, for every JSON schema. At each place a space, or a line break and an indent: what
people and models write, while a model that has nothing more to say cannot go on with white space
for ever."""


class Matcher:
    """Where one sequence stands in its grammar. Ends are the caller's tokens, not the tokenizer's:
    ``end_token_ids`` may follow whatever is a whole text of the grammar."""

    def __init__(
        self, compiled: LLMatcher, tokenizer: LLTokenizer, end_token_ids: Sequence[int]
    ) -> None:
        self._matcher = compiled.deep_copy()
        self._own_ends = tokenizer.eos_tokens
        self._ends = end_token_ids

    @property
    def is_over(self) -> bool:
        """Whether nothing but an end can follow."""
        return self._matcher.is_stopped()

    def allowed(self, vocab_size: int) -> NDArray[np.bool_]:
        """Which tokens may follow: [vocab_size]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[:vocab_size].view(np.bool_)
        allowed[self._own_ends] = False
        if self._matcher.is_accepting() or self.is_over:
            allowed[list(self._ends)] = True
        return allowed

    def take(self, token_ids: Sequence[int]) -> None:
        """Goes on by tokens that were sampled; one that ends the text changes nothing."""
        for token_id in token_ids:
            if self.is_over or token_id in self._ends:
                return
            if not self._matcher.consume_token(token_id):
                logger.warning("a grammar ends early: %s", self._matcher.get_error())


class GrammarCompiler:
    """Compiles grammars for the tokenizer of one model; safe for several threads.

    ``tokenizer_json`` reads its file; nothing is loaded before the first grammar comes.
    """

    def __init__(self, tokenizer_json: Callable[[], str], vocab_size: int) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = Lock()
        self._thread = ThreadPoolExecutor(1, "grammars")

    def prepare(self, grammar: Grammar) -> Future[None]:
        """Compiles in a thread of its own; the result has what ``matcher`` would raise."""
        with self._lock:
            if grammar in self._compiled:
                done: Future[None] = Future()
                done.set_result(None)
                return done
        return self._thread.submit(self._prepare, grammar)

    def _prepare(self, grammar: Grammar) -> None:
        self._compile(grammar)

    def matcher(self, grammar: Grammar, end_token_ids: Sequence[int]) -> Matcher:
        """
        Raises:
            InvalidParameterError: it is no grammar, or too large a one.
        """
        compiled = self._compile(grammar)
        assert self._tokenizer is not None
        return Matcher(compiled, self._tokenizer, end_token_ids)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is None:
                compiled = self._compiled[grammar] = self._compile_anew(grammar)
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > _MOST_KEPT:
                self._compiled.popitem(last=False)
            return compiled

    def _compile_anew(self, grammar: Grammar) -> LLMatcher:
        if len(grammar.text) > MOST_GRAMMAR_CHARACTERS:
            raise InvalidParameterError(
                "grammar", f"is longer than {MOST_GRAMMAR_CHARACTERS} characters"
            )
        if self._tokenizer is None:
            try:
                tokenizer = self._tokenizer_json()
            except OSError as error:
                raise InvalidParameterError("grammar", f"needs a tokenizer: {error}") from None
            self._tokenizer = LLTokenizer(tokenizer, n_vocab=self._vocab_size)
        try:
            source = _source(grammar)
        except ValueError as error:
            raise InvalidParameterError("grammar", f"is not valid: {error}") from None
        compiled = LLMatcher(self._tokenizer, source, log_level=_SILENT, limits=_LIMITS)
        compiled.compute_bitmask()  # some are found out to be too much only here
        if compiled.is_error():
            why = compiled.get_error()[:_MOST_SAID]
            raise InvalidParameterError("grammar", f"is not valid: {why}")
        return compiled


def _source(grammar: Grammar) -> str:
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides=JSON_OPTIONS)
    if grammar.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(grammar.text)
    return LLMatcher.grammar_from_lark(grammar.text)
