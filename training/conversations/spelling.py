"""Spelling, reversing, single letters of a word, capitals."""

from __future__ import annotations

import random

from training.conversations.base import Draw, Problem, dress, expand
from training.conversations.counting import word_key
from training.conversations.words import TEMPLATE_WORDS, any_name, any_word

_POLITE = "[||||can you |please |could you |i want you to |would you |how do you |can you please ]"
_WORD = (
    '[$w|$w|$w|$w|"$w"|the word $w|the word $w|the word "$w"|\'$w\'|the word: $w|'
    "this word: $w|: $w]"
)

SPELL = (
    _POLITE + "spell " + _WORD,
    _POLITE + "spell [out |]" + _WORD + "[| letter by letter]",
    "how [do i spell|would you spell|to spell|can i spell] " + _WORD,
    "how is " + _WORD + " spelled",
    "[what are the|list the|give me the|write the|show the|tell me the] letters [of|in] " + _WORD,
    "[spelling of|the spelling of|what is the spelling of] " + _WORD,
    "$w, [spell it|letter by letter|spelled out][ please|]",
)
REVERSE = (
    _POLITE + "[reverse|turn around|flip] " + _WORD,
    _POLITE
    + "[write|say|spell|type|give me|print] "
    + _WORD
    + " [backwards|in reverse|backward|reversed|from back to front]",
    "[what is|what's|how do you write|how do you say|tell me] "
    + _WORD
    + " [backwards|in reverse|reversed|backward|spelled backwards]",
    "reverse [the letters of|the letters in|the order of the letters in] " + _WORD,
    "$w [backwards|reversed|in reverse]",
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
LETTER = (
    "[what is|what's|tell me|give me|which is|name|] the $o letter [of|in|of] " + _WORD,
    "what [letter|letter] is $o in " + _WORD,
)
FIRST = (
    "[what|which] letter does " + _WORD + " [start|begin] with",
    "[what does|which letter does] " + _WORD + " [start|begin] with",
)
LAST = ("[what|which] letter does " + _WORD + " end [with|in]", "what does " + _WORD + " end with")
UPPER = (
    _POLITE
    + "[write|put|convert|turn|change|type|print|make|say] "
    + _WORD
    + (
        " [in capitals|in uppercase|in capital letters|to uppercase|in upper case|all "
        "caps|in all caps|into uppercase]"
    ),
    "[uppercase|capitals|upper case]: $w",
    "[uppercase|what is the uppercase of|make uppercase|what is uppercase for] " + _WORD,
    "$w in [uppercase|capital letters|capitals]",
)
LOWER = (
    _POLITE
    + "[write|put|convert|turn|change|type|print|make] "
    + _WORD
    + " [in lowercase|in small letters|to lowercase|in lower case|into lowercase]",
    "[lowercase|what is the lowercase of|make lowercase] " + _WORD,
    "$w in [lowercase|small letters|lower case]",
)


def spelled(word: str) -> str:
    """The letters of a word joined by hyphens."""
    return "-".join(word)


def _word(rng: random.Random) -> tuple[str, bool]:
    if rng.random() < 0.06:
        return rng.choice(TEMPLATE_WORDS), True
    word = any_word(rng)
    choice = rng.random()
    if choice < 0.1:
        return any_name(rng), False
    if choice < 0.16:
        return word.capitalize(), False
    return (word.upper() if choice < 0.19 else word), False


def _problem(
    rng: random.Random, patterns: tuple[str, ...], word: str, whole: bool, result: str, **more: str
) -> Problem:
    pattern = rng.choice(patterns)
    core = expand(rng, pattern, w=word, **more)
    prompt = dress(rng, core, keep_start=pattern.startswith("$"))
    return Problem(word_key(word, whole, core), prompt, result, result)


def spell(rng: random.Random) -> Problem:
    """b-a-n-a-n-a."""
    word, whole = _word(rng)
    return _problem(rng, SPELL, word, whole, spelled(word))


def reverse(rng: random.Random) -> Problem:
    """ananab."""
    word, whole = _word(rng)
    return _problem(rng, REVERSE, word, whole, word[::-1])


def single_letter(rng: random.Random) -> Problem:
    """The first, last or n-th letter."""
    word, whole = _word(rng)
    choice = rng.random()
    if choice < 0.35:
        patterns, letter, ordinal = LETTER, word[-1], "last"
    elif choice < 0.45:
        patterns, letter, ordinal = FIRST, word[0], "first"
    elif choice < 0.52:
        patterns, letter, ordinal = LAST, word[-1], "last"
    else:
        index = rng.choice((0, 0, 0, 0, 1, 1, 2, 3, 4))
        index = min(index, len(word) - 1)
        patterns, letter, ordinal = LETTER, word[index], _ORDINALS[index]
    return _problem(rng, patterns, word, whole, letter, o=ordinal)


def change_case(rng: random.Random) -> Problem:
    """BANANA or banana."""
    word, whole = _word(rng)
    if rng.random() < 0.65:
        return _problem(rng, UPPER, word, whole, word.upper())
    given = rng.choice((word.upper(), word.upper(), word.capitalize()))
    return _problem(rng, LOWER, given, whole, given.lower())


DRAWS: dict[Draw, float] = {spell: 5, reverse: 5, single_letter: 3, change_case: 2.5}
