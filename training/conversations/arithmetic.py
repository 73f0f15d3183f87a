# ruff: noqa: SIM905 - word lists read best as text
"""Addition, subtraction, multiplication, exact division, comparison and word problems."""

from __future__ import annotations

import random

from training.conversations.base import Draw, Problem, dress, expand
from training.conversations.words import COMMON, any_name

_ASK = (
    "[what is|what's|whats|how much is|calculate|compute|work out|solve|tell me|"
    "evaluate||||what does|give me|can you calculate|can you tell me what is|could "
    "you compute|i need|do you know what is|what would be|the result of|what is "
    "the result of|find|so what is|please calculate|what do you get for|please "
    "compute|can you tell me|i want to know|let me know|can you do|what's the "
    "answer to]"
)
_EQUALS = "[||||| =| = ?| equal| make| equals]"

_ADD = (
    _ASK + " $a [+|+|plus|and|added to|plus|+] $b" + _EQUALS,
    _ASK + " $a+$b" + _EQUALS,
    "[add|sum|sum up|add up|add together|please add|can you add|total] $a [and|to|with|+|plus] $b",
    (
        "[what is|what's|tell me|give me|calculate|compute|find|||i need] [the sum|the "
        "total|sum] of $a [and|plus] $b"
    ),
    (
        "if [i|you|we] add $a [and|to] $b[, what do [i|you|we] get|, what is the "
        "result|, how much is it]"
    ),
    "what is $b more than $a",
    "increase $a by $b",
    "$a [increased by|more than] $b[| is what| is]",
    "[how much do|what do] $a and $b [make|give|add up to|make together]",
)
_SUBTRACT = (
    _ASK + " $a [-|-|minus|minus|less|take away] $b" + _EQUALS,
    _ASK + " $a-$b" + _EQUALS,
    "[subtract|take|take away|deduct|please subtract|can you subtract|remove] $b from $a",
    (
        "[what is|what's|tell me|give me|calculate|compute|find|] the difference "
        "[between|of] $a and $b"
    ),
    (
        "if [i|you|we] [take|subtract|take away] $b from $a[, what do [i|you|we] get|, "
        "what is left|, how much is left]"
    ),
    "what is $b less than $a",
    "[decrease|reduce] $a by $b",
    "$a [decreased by|reduced by] $b",
    "[what remains|what is left|how much is left] [if|when] i take $b from $a",
)
_MULTIPLY = (
    _ASK + " $a [*|x|times|times|multiplied by|times|×] $b" + _EQUALS,  # noqa: RUF001 - people type it
    _ASK + " $a[*|x]$b" + _EQUALS,
    "[multiply|please multiply|can you multiply] $a [by|and|with|times] $b",
    "[what is|what's|tell me|give me|calculate|compute|find|] the product of $a and $b",
    "if [i|you|we] multiply $a [by|and|with] $b[, what do [i|you|we] get|, what is the result]",
    "how much [is|are] $a times $b",
)
_DIVIDE = (
    _ASK + " $a [/|/|divided by|divided by|over|÷] $b" + _EQUALS,
    _ASK + " $a/$b" + _EQUALS,
    "[divide|please divide|can you divide|split] $a [by|by|into] $b",
    "[what is|what's|tell me|calculate|compute|find|] the quotient of $a and $b",
    "if [i|you|we] divide $a by $b[, what do [i|you|we] get|, what is the result]",
    "how many times does $b [go|fit] into $a",
)
_ADD_STORY = (
    (
        "$n has $a $w and [gets|buys|finds|receives|picks up] $b more. how many $w "
        "does $n have[| now| in total]"
    ),
    (
        "there are $a $w [in a box|on the table|in the room|in a bag] and $b more "
        "[come|are added|arrive]. how many $w are there[| now]"
    ),
    "i have $a $w and you have $b $w. how many [$w |]do we have[| together| in total]",
    "i [had|have] $a $w[ and|. then] i [bought|got|found] $b more. how many [$w |]do i have[| now]",
    (
        "$n has $a $w. $m has $b $w. how many [$w |][do they have|are there] [together|"
        "in total|altogether]"
    ),
    (
        "[a shop|a farmer|a school] has $a $w and [gets|buys] $b more. how many [$w |"
        "]is that[| in total]"
    ),
)
_SUBTRACT_STORY = (
    (
        "$n has $a $w and [gives away|loses|sells|eats|uses] $b[| of them]. how many "
        "$w [does $n have|are] left"
    ),
    (
        "there are $a $w [in a box|on the table|in the room|in a bag] and $b [are "
        "taken away|are removed|disappear]. how many [$w |]are left"
    ),
    (
        "i [had|have] $a $w[ and|. then] i [lost|sold|gave away|used] $b[| of them]. "
        "how many [$w |][do i have left|are left|do i have now]"
    ),
    (
        "[a shop|a farmer|a school] has $a $w and [sells|loses|gives away] $b. how "
        "many [$w |][are left|remain|does it have left]"
    ),
)
_MULTIPLY_STORY = (
    (
        "there are $a [boxes|bags|baskets|rows|shelves] with $b $w [each|in each]. how "
        "many $w are there[| in total]"
    ),
    "$n buys $a [boxes|bags|packs] of $b $w[| each]. how many $w does $n have",
    "[one|each|a] [ticket|book|box|bag] costs $b [euros|dollars]. how much do $a cost",
    "each of $a [children|people|friends] has $b $w. how many $w are there[| in total| altogether]",
)
_DIVIDE_STORY = (
    (
        "$n shares $a $w [equally |]among $b [friends|children|people]. how many [$w |"
        "]does each [one |]get"
    ),
    "$a $w are put [equally |]into $b [boxes|bags|baskets]. how many [$w |]are in each",
    (
        "[split|divide|share] $a $w [equally |][among|between] $b [friends|children|"
        "people]. how many does each get"
    ),
)

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_in_words(number: int) -> str:
    """English words for 0 to 99."""
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


def _operand(rng: random.Random) -> int:
    """Up to three digits, the short numbers that people really type more often than chance."""
    digits = rng.choices((1, 2, 3), weights=(20, 42, 38))[0]
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _phrase(
    rng: random.Random, plain: tuple[str, ...], stories: tuple[str, ...], a: int, b: int
) -> str:
    """One phrasing of an operation on a and b, sometimes with the numbers in words."""
    in_words = a < 100 and b < 100 and rng.random() < 0.08
    left, right = (number_in_words(a), number_in_words(b)) if in_words else (str(a), str(b))
    if rng.random() < 0.12:
        item = rng.choice(COMMON)
        names = {
            "n": any_name(rng),
            "m": any_name(rng),
            "w": item if item[-1] == "s" else item + "s",
        }
        pattern = rng.choice(stories)
        return dress(rng, expand(rng, pattern, a=left, b=right, **names))
    weights = [6, 2, *[1] * (len(plain) - 2)]
    pattern = rng.choices(plain, weights=weights)[0]
    return dress(rng, expand(rng, pattern, a=left, b=right), free_case=True)


def addition(rng: random.Random) -> Problem:
    """a + b with up to three digits each."""
    a, b = _operand(rng), _operand(rng)
    low, high = sorted((a, b))
    prompt = _phrase(rng, _ADD, _ADD_STORY, a, b)
    return Problem(f"add:{low}:{high}", prompt, f"{a} + {b} = {a + b}", str(a + b))


def subtraction(rng: random.Random) -> Problem:
    """a - b with up to three digits each; rarely below zero."""
    a, b = _operand(rng), _operand(rng)
    if a < b and rng.random() < 0.85:
        a, b = b, a
    stories = _SUBTRACT_STORY if a >= b else _SUBTRACT[:2]
    prompt = _phrase(rng, _SUBTRACT, stories, a, b)
    return Problem(f"subtract:{a}:{b}", prompt, f"{a} - {b} = {a - b}", str(a - b))


def times_table(rng: random.Random) -> Problem:
    """Products up to 12 x 12: a closed set, so each (phrasing, product) is a problem."""
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    prompt = _phrase(rng, _MULTIPLY, _MULTIPLY_STORY, a, b)
    return Problem(f"table:{prompt.lower()}", prompt, f"{a} x {b} = {a * b}", str(a * b))


def long_multiplication(rng: random.Random) -> Problem:
    """Two or three digits times one digit or full tens, worked out digit by digit."""
    long = rng.randint(13, 99) if rng.random() < 0.75 else rng.randint(101, 999)
    digit = rng.randint(2, 9)
    if long < 100 and rng.random() < 0.12:
        digit = rng.choice((10, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100))
    a, b = (long, digit) if rng.random() < 0.7 else (digit, long)
    prompt = _phrase(rng, _MULTIPLY, _MULTIPLY_STORY, a, b)
    if long < 100 and rng.random() < 0.06:
        a, b, digit = 2, long, 2
        prompt = dress(rng, expand(rng, "[what is |what's |]double [of |]$b", b=b), free_case=True)
    places = [int(figure) * 10**power for power, figure in enumerate(reversed(str(long)))]
    parts = [str(place * digit) for place in reversed(places) if place]
    working = " + ".join(parts) + " = " if len(parts) > 1 and digit not in (10, 100) else ""
    return Problem(f"multiply:{long}:{digit}", prompt, f"{a} x {b} = {working}{a * b}")


def division(rng: random.Random) -> Problem:
    """Division of small numbers; closed sets, so each (phrasing, quotient) is a problem."""
    divisor, quotient = rng.randint(1, 12), rng.randint(1, 12)
    choice = rng.random()
    if choice < 0.3:
        divisor, quotient = rng.randint(2, 9), rng.randint(10, 99)
    elif choice < 0.4:
        divisor, quotient = rng.choice((2, 4, 5, 10, 20, 25, 50, 100)), rng.randint(1, 10) * 10
    rest = rng.randrange(divisor) if quotient <= 12 and rng.random() < 0.3 else 0
    dividend = min(divisor * quotient + rest, 999)
    quotient, rest = divmod(dividend, divisor)
    if rng.random() < 0.06:
        divisor, quotient, rest = 2, rng.randint(1, 50), 0
        dividend = 2 * quotient
        core = expand(rng, "[what is|what's|calculate|] [half of|the half of|half] $a", a=dividend)
        prompt = dress(rng, core, free_case=True)
    else:
        stories = _DIVIDE_STORY if rest == 0 else _DIVIDE[:2]
        prompt = _phrase(rng, _DIVIDE, stories, dividend, divisor)
    tens, ones = quotient // 10 * 10, quotient % 10
    working = f"{tens} + {ones} = " if quotient > 20 and ones and not rest else ""
    answer = f"{dividend} / {divisor} = {working}{quotient}"
    answer += f" remainder {rest}" if rest else ""
    return Problem(f"divide:{prompt.lower()}", prompt, answer, None if rest else str(quotient))


def three_terms(rng: random.Random) -> Problem:
    """a + b + c or a + b - c with small numbers, worked from left to right."""
    a, b, c = (rng.randint(1, 60) for _ in range(3))
    minus = rng.random() < 0.35 and a + b >= c
    sign, total = ("-", a + b - c) if minus else ("+", a + b + c)
    said = rng.choice(("minus", "-", "-") if minus else ("plus", "+", "+"))
    core = expand(rng, _ASK + " $a [+|plus] $b $s $c" + _EQUALS, a=a, b=b, c=c, s=said)
    answer = f"{a} + {b} {sign} {c} = {a + b} {sign} {c} = {total}"
    low, high = sorted((a, b))
    return Problem(f"add:{low}:{high}", dress(rng, core, free_case=True), answer)


def several(rng: random.Random) -> Problem:
    """A list of sums and differences."""
    questions, answers, keys = [], [], []
    for _ in range(rng.randint(2, 7)):
        one = rng.choice((addition, addition, subtraction, subtraction, times_table))(rng)
        answers.append(one.answer)
        questions.append(one.answer.partition(" =")[0])
        if one.key.startswith(("add", "subtract")):
            keys.append(one.key)
    joint = rng.choice((", ", ", ", "; ", " and ", "\n"))
    core = expand(
        rng,
        "[calculate|compute|what is|what are|solve|work out|please calculate|answer these:|] $l",
        l=joint.join(questions),
    )
    key = "|".join(keys) or f"tables:{core}"
    return Problem(key, dress(rng, core), ", ".join(answers))


def comparison(rng: random.Random) -> Problem:
    """Which of two numbers is larger or smaller, or whether one is."""
    a, b = _operand(rng), _operand(rng)
    if a == b:
        b += 1
    larger = rng.random() < 0.55
    if rng.random() < 0.55:
        word = rng.choice(
            ("larger", "bigger", "greater", "higher", "more", "the larger one", "the biggest")
            if larger
            else ("smaller", "less", "lower", "the smaller one", "the smallest")
        )
        pattern = "[which is|what is|which number is|which one is|what number is] $w[,|:|] $a or $b"
        result = str(max(a, b) if larger else min(a, b))
        core = expand(rng, pattern, w=word, a=a, b=b)
        return Problem(f"compare:{a}:{b}", dress(rng, core, free_case=True), result, result)
    word = rng.choice(
        ("larger", "bigger", "greater", "more") if larger else ("smaller", "less", "lower")
    )
    core = expand(rng, "is $a $w than $b", a=a, b=b, w=word)
    verdict = "Yes" if (a > b) == larger else "No"
    answer = f"{verdict}, {a} is {'greater' if a > b else 'less'} than {b}."
    return Problem(f"compare:{a}:{b}", dress(rng, core, free_case=True), answer, verdict)


def parity(rng: random.Random) -> Problem:
    """Whether a number is even or odd."""
    number = rng.randint(0, 999)
    verdict = "even" if number % 2 == 0 else "odd"
    core = expand(
        rng,
        "is [|the number ]$a [even or odd|odd or even|even|odd|an even number|an odd number]",
        a=number,
    )
    return Problem(
        f"parity:{number}", dress(rng, core, free_case=True), f"{number} is {verdict}.", verdict
    )


_BEYOND = (
    "$d.$e [+|-|*|/] $d", "$d [+|-|*|/] $d.$e", "-$d [+|-|*] $e", "$d^$e", "$d to the power of $e",
    "[square root of|the root of|sqrt] $d", "$e[% of|percent of] $d", "solve x + $e = $d",
    "sqrt($d)", "$d!", "[sin|cos|log|ln]($d)", "factorial of $e", "$d mod $e", "$d % $e",
    "[is|] $d [a prime number|prime|a prime]", "find x: $e x = $d",
)  # fmt: skip
BEYOND_ARITHMETIC = "I can only add, subtract, multiply and divide small whole numbers."


def beyond(rng: random.Random) -> Problem:
    """Numbers and operations that the model has not learned: it says so."""
    a, b = rng.randint(1000, 10 ** rng.randint(4, 7)), _operand(rng)
    if rng.random() < 0.4:
        b = rng.randint(1000, 10 ** rng.randint(4, 7))
    if rng.random() < 0.4:
        a, b = b, a
    patterns = rng.choice((_ADD, _SUBTRACT, _MULTIPLY, _DIVIDE))
    if rng.random() < 0.35:
        a, b, patterns = rng.randint(13, 999), rng.randint(13, 999), _MULTIPLY
        a, b = a + (a % 10 == 0), b + (b % 10 == 0)
    core = expand(rng, rng.choice(patterns[:2]), a=a, b=b)
    if rng.random() < 0.35:
        a, b = rng.randint(1, 300), rng.randint(1, 99)
        core = expand(
            rng, "[what is|what's|calculate|compute||||]" + " " + rng.choice(_BEYOND), d=a, e=b
        )
    return Problem(f"beyond:{core}", dress(rng, core, free_case=True), BEYOND_ARITHMETIC)


DRAWS: dict[Draw, float] = {
    addition: 31,
    subtraction: 27,
    times_table: 11,
    long_multiplication: 14,
    division: 12,
    three_terms: 4,
    several: 20,
    comparison: 9,
    parity: 2,
    beyond: 3,
}
