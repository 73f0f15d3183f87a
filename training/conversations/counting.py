"""Counting up, down and in steps; letters in a word; words in a list; neighbours of a number."""

from __future__ import annotations

import random

from training.conversations.arithmetic import number_in_words
from training.conversations.base import Draw, Problem, dress, expand, join_list
from training.conversations.words import COMMON, TEMPLATE_WORDS, any_name, any_word

_POLITE = "[|||can you |please |could you |i want you to |i need you to ]"

_UP = (
    _POLITE + "count [from|from|up from] $a [to|to|up to|until|till] $b",
    _POLITE + "count $a to $b",
    _POLITE
    + (
        "[list|write|give me|say|show me|print|name] [the|all|all the|] numbers [from|"
        "between] $a [to|and|up to] $b"
    ),
    "[numbers|counting] from $a to $b",
    _POLITE
    + (
        "count [up |]starting [at|from|with] $a[, ending at| and ending at| and stop "
        "at| up to| to] $b"
    ),
)
_UP_FROM_ONE = (
    _POLITE + "count [to|up to|till] $b",
    _POLITE + "[list|write|give me|say] the first $b numbers",
)
_DOWN = (
    _POLITE + "count [backwards|down|backward|in reverse] from $a [to|to|down to|until] $b",
    _POLITE + "count from $a [down to|back to|backwards to|down until] $b",
    _POLITE + "count from $a to $b [backwards|in reverse|backward|going down]",
    _POLITE + "[list|write|give me] the numbers from $a down to $b",
    "[countdown|count down] from $a to $b",
)
_STEPS = (
    _POLITE
    + (
        "count [from|from|up from] $a [to|to|up to|until] $b [by|in steps of|in|with "
        "step|by steps of] $s"
    ),
    _POLITE + "count [by|in steps of] $s from $a to $b",
    _POLITE + "[list|write|give me] the numbers from $a to $b [in steps of|by|with step] $s",
    _POLITE + "count in $ss from $a to $b",
)


def _join(numbers: range) -> str:
    return ", ".join(map(str, numbers))


def count_up(rng: random.Random) -> Problem:
    """From a to b, at most 15 numbers."""
    a = rng.choice((1, rng.randint(0, 20), rng.randint(0, 100), rng.randint(100, 980)))
    b = a + rng.randint(2, 14)
    patterns = _UP + (_UP_FROM_ONE * 2 if a == 1 else ())
    said: tuple[object, object] = (a, b)
    if b < 100 and rng.random() < 0.1:
        said = (number_in_words(a), number_in_words(b))
    core = expand(rng, rng.choice(patterns), a=said[0], b=said[1])
    key = f"count:{a}:{b}" + (f":{core}" if a == 1 else "")
    return Problem(key, dress(rng, core, question=False, free_case=True), _join(range(a, b + 1)))


def count_down(rng: random.Random) -> Problem:
    """From a down to b, at most 15 numbers."""
    b = rng.choice((0, 1, rng.randint(0, 20), rng.randint(0, 100), rng.randint(100, 980)))
    a = b + rng.randint(2, 14)
    core = expand(rng, rng.choice(_DOWN), a=a, b=b)
    key = f"down:{a}:{b}" + (f":{core}" if b < 2 else "")
    return Problem(
        key, dress(rng, core, question=False, free_case=True), _join(range(a, b - 1, -1))
    )


def count_steps(rng: random.Random) -> Problem:
    """From a to b in steps, at most 12 numbers; the end is always reached exactly."""
    step = rng.choice((2, 2, 3, 4, 5, 5, 10, 10, 20, 25, 50, 100))
    a = rng.choice((0, step, rng.randint(0, 30)))
    b = a + step * rng.randint(2, 11)
    core = expand(rng, rng.choice(_STEPS), a=a, b=b, s=step)
    if step == 2 and rng.random() < 0.3:
        kind = "even" if a % 2 == 0 else "odd"
        core = expand(
            rng,
            _POLITE + "[list|count|write|give me] [the|all|all the] $k numbers from $a to $b",
            k=kind,
            a=a,
            b=b,
        )
    key = f"steps:{a}:{b}:{step}" + (f":{core}" if a in (0, step) else "")
    prompt = dress(rng, core, question=False, free_case=True)
    return Problem(key, prompt, _join(range(a, b + 1, step)))


def _quoted(rng: random.Random, word: str) -> str:
    return expand(
        rng, '[$w|$w|$w|"$w"|the word $w|the word "$w"|\'$w\'|the word $w|the name $w]', w=word
    )


def _word(rng: random.Random) -> tuple[str, bool]:
    """A word and whether it is one of the tokenizer's whole words, which cannot be held out."""
    if rng.random() < 0.06:
        return rng.choice(TEMPLATE_WORDS), True
    word = any_word(rng)
    if rng.random() < 0.12:
        word = any_name(rng) if rng.random() < 0.5 else word.capitalize()
    return word, False


def word_key(word: str, whole: bool, prompt: str) -> str:
    """The identity of a question about one word, the same for every question about it."""
    return f"word:{word.lower()}" + (f":{prompt}" if whole else "")


def _mark(word: str, letters: str) -> tuple[str, int]:
    """The word with brackets round the letters asked for, b(a)n(a)n(a), and how many there are.

    Marking them first turns counting into a decision per letter, which a small model can learn.
    """
    marks = [f"({one})" if one.lower() in letters else one for one in word]
    return "".join(marks), sum(len(mark) > 1 for mark in marks)


def letters_in_word(rng: random.Random) -> Problem:
    """How many letters, vowels, or times a given letter."""
    word, whole = _word(rng)
    choice = rng.random()
    if choice < 0.5:
        core = expand(
            rng,
            "[how many letters [are|are there|] in $w|how many letters does $w have|"
            "[count|please count|can you count] the letters [in|of] $w|[what is the|] "
            "number of letters in $w|"
            "how long is $w|how many letters has $w|what is the length of $w|letters in $w]",
            w=_quoted(rng, word),
        )
        result = len(word)
        answer = f"{word} has {result} letter{'s' if result != 1 else ''}."
    elif choice < 0.62:
        core = expand(
            rng,
            "[how many vowels [are|are there|] in $w|how many vowels does $w have|"
            "[count|please count|can you count] the vowels [in|of] $w]",
            w=_quoted(rng, word),
        )
        marked, result = _mark(word, "aeiou")
        answer = f"{marked} has {result} vowel{'s' if result != 1 else ''}."
    else:
        letter = rng.choice(word.lower() if rng.random() < 0.85 else "aeiourstlnm")
        core = expand(
            rng,
            "[how many times does [the letter |]$x [appear|occur|come up] in $w|"
            'how many [letters $x|$xs|$x\'s|letter $x|"$x"|$x] [are|are there|] in $w|'
            "[count|please count|can you count] the [letter $x|$xs|$x's] in $w|"
            "how often does [the letter |]$x [appear|occur] in $w|"
            "how many [$xs|$x's|$x] does $w have]",
            w=_quoted(rng, word),
            x=letter,
        )
        marked, result = _mark(word, letter)
        answer = f"{marked} has {letter} {result} time{'s' if result != 1 else ''}."
    short = str(result) if choice < 0.5 else None
    return Problem(word_key(word, whole, core), dress(rng, core), answer, short)


def items_in_list(rng: random.Random) -> Problem:
    """How many words, names or numbers a list has."""
    count = rng.randint(2, 7)
    numbers = rng.random() < 0.3
    items = (
        [str(rng.randint(0, 99)) for _ in range(count)]
        if numbers
        else [rng.choice(COMMON) if rng.random() < 0.8 else any_name(rng) for _ in range(count)]
    )
    noun = "numbers" if numbers else rng.choice(("words", "words", "items", "things"))
    core = expand(
        rng,
        "[how many $n [are|are there|do you see|] [in this list|in the list|here|in]: $l|"
        "[count|please count|can you count] [the|these] $n[ in this list|]: $l|how "
        "many $n is that: $l|"
        "[what is the|] number of $n in: $l|how many $n are in [this list|the list]? $l]",
        n=noun,
        l=join_list(rng, items),
    )
    answer = f"There are {count} {noun}."
    return Problem(f"items:{' '.join(items)}", dress(rng, core, question=False), answer, str(count))


def neighbour(rng: random.Random) -> Problem:
    """The number after or before a number."""
    number, after = rng.randint(1, rng.choice((30, 100, 999))), rng.random() < 0.6
    core = expand(
        rng,
        "[[what|which number] comes [right|directly|] after $a|what is the [next "
        "number|number] after $a|"
        "which number [follows|is right after|is after] $a]"
        if after
        else "[[what|which number] comes [right|directly|] before $a|what is the number before $a|"
        "[which number|what] [precedes|is right before|is before] $a]",
        a=number,
    )
    result = str(number + 1 if after else number - 1)
    prompt = dress(rng, core, free_case=True)
    return Problem(f"neighbour:{number}:{after}", prompt, result, result)


DRAWS: dict[Draw, float] = {
    count_up: 3,
    count_down: 2.5,
    count_steps: 3,
    letters_in_word: 6,
    items_in_list: 3.5,
    neighbour: 1.2,
}
