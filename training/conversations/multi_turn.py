"""Conversations whose later questions refer back to earlier turns."""

from __future__ import annotations

import random
from collections.abc import Callable

from training.conversations import (
    arithmetic,
    counting,
    dates,
    extracting,
    ridgeline_facts,
    smalltalk,
    sorting,
    spelling,
)
from training.conversations.base import (
    Conversation,
    Draw,
    Message,
    Problem,
    Split,
    assistant,
    belongs,
    draw_problem,
    dress,
    expand,
    join_list,
    user,
)
from training.conversations.words import COMMON, any_city, any_name, any_word

KINDS: dict[str, dict[Draw, float]] = {
    "arithmetic": arithmetic.DRAWS,
    "counting": counting.DRAWS,
    "spelling": spelling.DRAWS,
    "dates": dates.DRAWS,
    "sorting": sorting.DRAWS,
    "extracting": extracting.DRAWS,
    "ridgeline": ridgeline_facts.DRAWS,
    "smalltalk": smalltalk.DRAWS,
}

Turn = tuple[str, str]
Story = Callable[[random.Random, Split], list[Turn]]

_AND = "[and|and|now|then|ok, and|what about|and what about|how about|and now|]"


def any_problem(rng: random.Random, split: Split) -> Problem:
    """A single problem of any kind."""
    return draw_problem(rng, split, KINDS[rng.choice(list(KINDS))])


def calculation(rng: random.Random, split: Split) -> list[Turn]:
    """A sum, then more operations on its result."""
    draws: dict[Draw, float] = {
        arithmetic.addition: 3,
        arithmetic.subtraction: 2,
        arithmetic.times_table: 1,
    }
    problem = draw_problem(rng, split, draws)
    while problem.short is None or problem.short.startswith("-"):
        problem = draw_problem(rng, split, draws)
    turns, total = [(problem.prompt, problem.answer)], int(problem.short)
    for _ in range(rng.choice((1, 1, 2, 3))):
        turns.append(_operation(rng, split, total))
        total = int(turns[-1][1].rpartition(" ")[2])
    return turns


def _operation(rng: random.Random, split: Split, total: int) -> Turn:
    """Add to or take from a running result; small doublings too."""
    while True:
        other = rng.randint(1, rng.choice((9, 20, 99)))
        if total <= 12 and rng.random() < 0.3:
            other = rng.randint(2, 9)
            core = expand(
                rng, "[[and|now|then|] times $n|multiply [it|that|the result] by $n]", n=other
            )
            return dress(rng, core), f"{total} x {other} = {total * other}"
        if rng.random() < 0.55 or other > total:
            low, high = sorted((total, other))
            if not belongs(f"add:{low}:{high}", split):
                continue
            core = expand(
                rng,
                (
                    "[[and|now|then|and then|] [plus|add|+|and add|add another|plus another] $n|"
                    "add $n to [it|that|the result]|$n more|what if i add $n|and with $n more|"
                    "increase [it|that] by $n]"
                ),
                n=other,
            )
            return dress(rng, core), f"{total} + {other} = {total + other}"
        if not belongs(f"subtract:{total}:{other}", split):
            continue
        core = expand(
            rng,
            (
                "[[and|now|then|and then|] [minus|subtract|-|take away|less] $n|[subtract|"
                "take] $n from [it|that|the result]|$n less|what if i subtract $n|decrease [it|"
                "that] by $n]"
            ),
            n=other,
        )
        return dress(rng, core), f"{total} - {other} = {total - other}"


def same_question(rng: random.Random, split: Split) -> list[Turn]:
    """The same task with something else: "and kiwi?", "and 12 + 5?"."""
    task = rng.randrange(5)
    while True:
        words = [any_word(rng) for _ in range(rng.choice((2, 2, 3)))]
        if all(belongs(f"word:{word}", split) for word in words):
            break
    if task < 3:
        patterns, act = (
            (spelling.SPELL, spelling.spelled),
            (spelling.REVERSE, lambda word: word[::-1]),
            (spelling.UPPER, str.upper),
        )[task]
        pattern = rng.choice([one for one in patterns if one[0] != "$"])
        turns = [(dress(rng, expand(rng, pattern, w=words[0])), act(words[0]))]
    elif task == 3:
        core = expand(rng, "how many letters [are in|are there in|does] $w", w=words[0])
        turns = [(dress(rng, core + (" have" if " does " in core else "")), _letters(words[0]))]
        act = _letters
    else:
        problems = [draw_problem(rng, split, {arithmetic.addition: 1}) for _ in range(2)]
        first, second = (problem.answer.partition(" =")[0] for problem in problems)
        core = expand(rng, _AND + " $s", s=second)
        return [(dress(rng, first), problems[0].answer), (dress(rng, core), problems[1].answer)]
    for word in words[1:]:
        core = expand(
            rng,
            (
                "[and|and|now|what about|and what about|how about|the same for|also|then|same "
                "with] $w"
            ),
            w=word,
        )
        turns.append((dress(rng, core), act(word)))
    return turns


def _letters(word: str) -> str:
    return f"{word} has {len(word)} letters."


def one_word(rng: random.Random, split: Split) -> list[Turn]:
    """Several questions about one word, which later ones do not repeat."""
    while not belongs(f"word:{(word := any_word(rng))}", split):
        pass
    asks = [
        ("[and |now |]how many letters [does it have|are in it|are there|has it]", _letters(word)),
        ("[and |now |]how many letters [does it have|are there]", _letters(word)),
        (_AND + " [backwards|reversed|in reverse|spelled backwards]", word[::-1]),
        ("[now |and |]reverse [it|the word|that word]", word[::-1]),
        (_AND + " [in capitals|in uppercase|in capital letters]", word.upper()),
        ("[what is|and|what's|tell me] [its|the] first letter", word[0]),
        ("[what is|and|what's|tell me] [its|the] last letter", word[-1]),
        ("[now |and |]spell [it|the word|that]", spelling.spelled(word)),
    ]
    start = rng.choice([one for one in spelling.SPELL + spelling.REVERSE if one[0] != "$"])
    act = spelling.spelled(word) if start in spelling.SPELL else word[::-1]
    turns = [(dress(rng, expand(rng, start, w=word)), act)]
    for pattern, answer in rng.sample(asks, rng.choice((1, 2, 3))):
        turns.append((dress(rng, expand(rng, pattern)), answer))
    return turns


def one_list(rng: random.Random, split: Split) -> list[Turn]:
    """Sort a list, then turn it round, count it, or pick from it."""
    while True:
        numbers = sorting.random_numbers(rng)
        if belongs(f"sort:{sorted(numbers)}", split):
            break
    descending = rng.random() < 0.3
    pattern = rng.choice(sorting.DESCENDING if descending else sorting.ASCENDING)
    core = expand(rng, pattern, l=join_list(rng, list(map(str, numbers))))
    turns = [
        (dress(rng, core, question=False), sorting.commas(sorted(numbers, reverse=descending)))
    ]
    for _ in range(rng.choice((1, 1, 2))):
        asks = (
            (
                _AND
                + (
                    " [descending|in descending order|sort them descending|from largest to "
                    "smallest|the other way round|sorted descending]"
                ),
                sorting.commas(sorted(numbers, reverse=True)),
            ),
            (
                _AND
                + (
                    " [ascending|in ascending order|sort them ascending|from smallest to largest|"
                    "sorted ascending]"
                ),
                sorting.commas(sorted(numbers)),
            ),
            ("[which|and which|which one] is [the largest|the biggest|largest]", str(max(numbers))),
            ("[which|and which|which one] is [the smallest|smallest]", str(min(numbers))),
            (
                "how many [numbers |]are [there|they|these|in the list]",
                f"There are {len(numbers)} numbers.",
            ),
        )
        pattern, answer = rng.choices(
            asks, weights=(0 if descending else 5, 5 if descending else 0, 2, 2, 1)
        )[0]
        if "way round" in pattern:
            descending = True
        turns.append((dress(rng, expand(rng, pattern)), answer))
        descending = "descending" in pattern or (descending and "ascending" not in pattern)
    return turns


_FAVORITES = ("color", "food", "animal", "fruit", "city", "number")


def memory(rng: random.Random, split: Split) -> list[Turn]:
    """Things that the user tells, other questions, then the question for them."""
    while True:
        facts = _personal_facts(rng)
        chosen = rng.sample(facts, rng.choice((1, 1, 2)))
        if chosen[0][0] != "name" and rng.random() < 0.5:
            continue
        if all(belongs(f"memory:{fact[1]}", split) for fact in chosen):
            break
    turns = [
        (dress(rng, expand(rng, told, v=value), question=False), reply)
        for _, value, told, reply, _, _ in chosen
    ]
    between = [(one.prompt, one.answer) for one in _few(rng, split, rng.choice((0, 0, 1, 1, 2)))]
    asked = [(dress(rng, expand(rng, ask)), answer) for *_, ask, answer in chosen]
    rng.shuffle(asked)
    return turns + between + asked


def _personal_facts(rng: random.Random) -> list[tuple[str, str, str, str, str, str]]:
    """Per fact: topic, value, how it is told, the reply, how it is asked for, the answer."""
    name, city, age = any_name(rng), any_city(rng), str(rng.randint(5, 99))
    topic, thing = rng.choice(_FAVORITES), rng.choice(COMMON)
    if topic == "number":
        thing = str(rng.randint(1, 99))
    favorite = expand(rng, "[favorite|favourite]")
    return [
        (
            "name",
            name,
            (
                "[my name is|i am|i'm|call me|my name's|this is|hi, i am|hello, my name is|hi, "
                "my name is] $v"
            ),
            f"Nice to meet you, {name}!",
            (
                "[what is|what's|do you know|do you remember|tell me|remind me of|say] my "
                "name[| again]"
            ),
            f"Your name is {name}.",
        ),
        (
            "city",
            city,
            "[i live in|i am from|my home is|i come from|i'm from|my city is] $v",
            f"Nice! I will remember {city}.",
            (
                "[where do i live|where am i from|what is my city|which city do i live in|what "
                "city am i from|where is my home|do you remember where i live]"
            ),
            f"You are from {city}.",
        ),
        (
            "age",
            age,
            "[i am $v years old|my age is $v|i'm $v years old]",
            f"Nice! I will remember {age}.",
            "[how old am i|what is my age|what's my age|do you know my age|tell me my age]",
            f"You are {age} years old.",
        ),
        (
            "favorite",
            thing,
            f"my {favorite} {topic} is $v",
            f"Nice! I will remember {thing}.",
            f"[what is|what's|do you know|do you remember|tell me] my {favorite} {topic}",
            f"Your {favorite} {topic} is {thing}.",
        ),
    ]


def _few(rng: random.Random, split: Split, count: int) -> list[Problem]:
    return [any_problem(rng, split) for _ in range(count)]


def recall(rng: random.Random, split: Split) -> list[Turn]:
    """What was asked first or last; say that again."""
    turns = [(one.prompt, one.answer) for one in _few(rng, split, rng.choice((1, 2, 2, 3)))]
    while max(len(prompt) for prompt, _ in turns) > 70:
        turns = [(one.prompt, one.answer) for one in _few(rng, split, len(turns))]
    choice = rng.random()
    if choice < 0.4:
        core = (
            "[what did i ask [you |]first|what was my first question|which question did i "
            "ask first|what was the first [thing i asked|question]|repeat my first "
            "question|what did i ask at the beginning|what was my very first question]"
        )
        answer = f"Your first question was: {turns[0][0]}"
    elif choice < 0.6:
        core = (
            "[what did i [just ask|ask before|ask last]|what was my last question|what was "
            "my previous question|repeat my last question]"
        )
        answer = f"Your last question was: {turns[-1][0]}"
    elif choice < 0.8:
        core = (
            "[can you repeat that|repeat that|say that again|again|once more|repeat your "
            "answer|repeat the last answer|what did you say|pardon|sorry, what|say it "
            "again|please repeat]"
        )
        answer = turns[-1][1]
    else:
        core = (
            "[how many questions did i ask|how many questions have i asked|how many "
            "questions was that|count my questions][| so far| before this one]"
        )
        count = len(turns)
        answer = f"You asked {count} question{'s' if count > 1 else ''} before this one."
    return [*turns, (dress(rng, expand(rng, core)), answer)]


def day_by_day(rng: random.Random, split: Split) -> list[Turn]:
    """A date or weekday, then the one after that."""
    if rng.random() < 0.4:
        index, after = rng.randrange(7), rng.random() < 0.6
        step, word = (1, "after") if after else (-1, "before")
        names = [dates.WEEKDAYS[(index + step * i) % 7] for i in range(5)]
        core = expand(rng, f"[what|which] day [comes|is] {word} $d", d=names[0])
        noun = "day"
    else:
        after, word, noun = True, "after", "date"
        while not belongs(f"neighbour:{(start := rng.randint(1, 900))}:True", split):
            pass
        names = [str(start + i) for i in range(5)]
        core = expand(rng, "[what|which number] comes after $d", d=names[0])
        noun = "number"
    turns = [(dress(rng, core, free_case=True), names[1])]
    for i in range(2, rng.choice((3, 4, 5))):
        again = expand(
            rng,
            (
                f"[and {word} that|and the {noun} {word} that|and the next [one|{noun}]|and "
                f"then|what comes {word} that|the {noun} {word} that]"
            )
            if after
            else (
                f"[and {word} that|and the {noun} {word} that|what comes {word} that|the {noun} "
                f"{word} that]"
            ),
        )
        turns.append((dress(rng, again), names[i]))
    return turns


def one_text(rng: random.Random, split: Split) -> list[Turn]:
    """Several fields of one text."""
    while True:
        text, values = extracting.draw_text(rng, least=2)
        if all(belongs(f"extract:{value}", split) for value in values.values()):
            break
    fields = rng.sample(list(values), len(values))
    turns = [(dress(rng, extracting.ask_field(rng, fields[0], text)), values[fields[0]])]
    for field in fields[1:]:
        noun = "phone number" if field == "phone" else field
        core = expand(
            rng,
            f"[and the|and|now the|what about the|what is the|also the|and what is the] {noun}",
        )
        turns.append((dress(rng, core), values[field]))
    return turns


def counting_on(rng: random.Random, split: Split) -> list[Turn]:
    """Count, then backwards or further."""
    while True:
        a, length = rng.choice((1, rng.randint(0, 30), rng.randint(0, 100))), rng.randint(2, 9)
        b = a + length
        if belongs(f"count:{a}:{b}", split):
            break
    up = ", ".join(map(str, range(a, b + 1)))
    core = expand(rng, "[count|can you count|please count] from $a to $b", a=a, b=b)
    turns = [(dress(rng, core, question=False, free_case=True), up)]
    if rng.random() < 0.5:
        core = expand(
            rng,
            "[and|now|ok, and|] [backwards|in reverse|count backwards|count down|the other way]",
        )
        turns.append((dress(rng, core), ", ".join(map(str, range(b, a - 1, -1)))))
    else:
        further = b + rng.randint(2, 8)
        core = expand(
            rng,
            (
                "[continue|go on|now continue|keep counting|carry on|and on|count on] [to|"
                "until|up to] $n"
            ),
            n=further,
        )
        turns.append((dress(rng, core), ", ".join(map(str, range(b + 1, further + 1)))))
    return turns


def unrelated(rng: random.Random, split: Split) -> list[Turn]:
    """Questions in a row that have nothing to do with each other."""
    return [(one.prompt, one.answer) for one in _few(rng, split, rng.choice((2, 2, 3, 4)))]


STORIES: dict[Story, float] = {
    calculation: 5,
    same_question: 3,
    one_word: 3,
    one_list: 5,
    memory: 5,
    recall: 6,
    day_by_day: 2,
    one_text: 2,
    counting_on: 1.5,
    unrelated: 2.5,
}


def story(rng: random.Random, split: Split) -> list[Turn]:
    """The turns of one conversation; sometimes with a greeting before or thanks after it."""
    turns = rng.choices(list(STORIES), weights=list(STORIES.values()))[0](rng, split)
    if rng.random() < 0.08:
        hello = draw_problem(rng, split, {smalltalk.talk: 1})
        turns = [(hello.prompt, hello.answer), *turns]
    return turns


def to_messages(turns: list[Turn]) -> list[Message]:
    """User and assistant messages in turn."""
    return [message for said, reply in turns for message in (user(said), assistant(reply))]


def conversation(rng: random.Random, split: Split) -> Conversation:
    """One conversation of several turns."""
    return Conversation("multi_turn", to_messages(story(rng, split)))


def long_conversation(rng: random.Random, split: Split) -> Conversation:
    """Many stories one after the other, so that far positions are trained too."""
    turns: list[Turn] = []
    for _ in range(rng.randint(4, 11)):
        choice = rng.choices(list(STORIES), weights=list(STORIES.values()))[0]
        if choice not in (recall, memory) or not turns:
            turns += choice(rng, split)
    if rng.random() < 0.3:
        turns.append(("What was my first question?", f"Your first question was: {turns[0][0]}"))
    return Conversation("multi_turn", to_messages(turns))
