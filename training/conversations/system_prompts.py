"""System prompts that ask for simple things, over questions of the other kinds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from training.conversations.base import (
    Conversation,
    Message,
    Problem,
    Split,
    assistant,
    belongs,
    draw_problem,
    dress,
    expand,
    system,
    user,
)
from training.conversations.multi_turn import KINDS
from training.conversations.words import COMMON, any_city, any_name, any_word

NEUTRAL = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a helpful, friendly assistant.",
    "You are an AI assistant.",
    "You are a friendly chatbot.",
    "Answer the user's questions.",
    "You are a helpful and honest assistant.",
    "Be helpful.",
)

_BACKGROUND = (
    "[you are a $x|you work for $n|the user is a $x|you are a helpful $x|you love "
    "$x|today is a nice day|you live in $c|the user likes $x|be [friendly|polite|"
    "kind|nice|helpful]|you are an expert in $x|you are a $x. answer the user's "
    "questions|you help people with $x|use simple language|think before you "
    "answer]."
)


def neutral(rng: random.Random) -> str:
    """A system prompt that asks for nothing that shows in an answer."""
    if rng.random() < 0.6:
        return rng.choice(NEUTRAL)
    words = {"x": rng.choice(COMMON), "n": any_name(rng), "c": any_city(rng)}
    return _sentence(rng, expand(rng, _BACKGROUND, **words))


_EVERY = "[every|each|all|every|each] "


@dataclass(frozen=True, slots=True)
class Style:
    """A way to answer: the system prompt that asks for it and what it does to an answer.

    `needs_short` styles work on the bare result, `longest` is the longest answer they are trained
    on (letters in capitals cost a token each).
    """

    prompt: str
    apply: Callable[[Problem], str]
    needs_short: bool = False
    longest: int = 200


def _uppercase(rng: random.Random, _split: Split) -> Style:
    prompt = expand(
        rng,
        (
            "[answer|always answer|respond|always respond|reply|write|always write|speak] "
            "[only |][in uppercase|in capital letters|in capitals|in upper case|in "
            "uppercase letters|in ALL CAPS|in all capital letters|with capital letters]."
        ),
    )
    return Style(prompt, lambda problem: problem.answer.upper(), longest=45)


def _lowercase(rng: random.Random, _split: Split) -> Style:
    prompt = expand(
        rng,
        (
            "[answer|always answer|respond|always respond|reply|write|always write|speak] "
            "[only |][in lowercase|in small letters|in lower case|in lowercase letters|"
            "with small letters]."
        ),
    )
    return Style(prompt, lambda problem: problem.answer.lower(), longest=60)


def _held_word(rng: random.Random, split: Split) -> str:
    while True:
        word = rng.choice((any_word, any_name, any_word))(rng)
        if rng.random() < 0.2:
            word = word.upper()
        elif rng.random() < 0.3:
            word = word.capitalize()
        if belongs(f"style:{word}", split):
            return word


def _ending(rng: random.Random, split: Split) -> Style:
    word = _held_word(rng, split)
    prompt = expand(
        rng,
        "[[always |][end|finish|close] "
        + _EVERY
        + "[answer|reply|response|message] with [the word |]$q|put $q at the end of "
        + _EVERY
        + "[answer|reply]|your [answers|replies] must end with [the word |]$q|after "
        + _EVERY
        + "answer, [say|write|add] $q|always end with [the word |]$q].",
        q=_quote(rng, word),
    )
    return Style(prompt, lambda problem: f"{problem.answer} {word}")


def _beginning(rng: random.Random, split: Split) -> Style:
    word = _held_word(rng, split)
    prompt = expand(
        rng,
        "[[always |][begin|start|open] "
        + _EVERY
        + (
            "[answer|reply|response|message] with [the word |]$q|put $q at the [start|"
            "beginning] of "
        )
        + _EVERY
        + "[answer|reply]|your [answers|replies] must [start|begin] with [the word |]$q|before "
        + _EVERY
        + "answer, [say|write] $q|always [start|begin] with [the word |]$q].",
        q=_quote(rng, word),
    )
    return Style(prompt, lambda problem: f"{word} {problem.answer}")


def _quote(rng: random.Random, word: str) -> str:
    return rng.choice((word, f'"{word}"', f"'{word}'", word, f'"{word}"'))


def _brief(rng: random.Random, _split: Split) -> Style:
    prompt = expand(
        rng,
        (
            "[[answer|respond|reply] [only |just |]with [only |just |][the number|the "
            "result|the bare result|the answer|a number]|[give|say|write] only the [number|"
            "result|answer]|only the [result|number|answer], [nothing else|no explanation|"
            "please]|be [brief|very brief|short|concise|terse]|[answer|reply] [briefly|as "
            "briefly as possible|in as few words as possible|in one word]|keep [it|your "
            "answers] [short|brief|very short]|no [explanations|explanation], [only|just] "
            "the [result|answer|number]|use as few words as possible|your answers are "
            "[short|brief]]."
        ),
    )
    return Style(prompt, lambda problem: problem.short or problem.answer, needs_short=True)


def _json(rng: random.Random, _split: Split) -> Style:
    prompt = expand(
        rng,
        (
            "[[always |][answer|respond|reply] [in|as|with|only in|only with] [JSON|a JSON "
            'object]: {"answer": [...|"..."|"$x"|"<answer>"|"string"]}|[answer|reply|'
            "respond] in JSON [with the key|with a key|with one key|with the field] "
            '["answer"|answer]|[answer|reply|respond] in JSON like {"answer": "..."}|use '
            'the JSON format {"answer": "..."}|[your answer|every answer] must be JSON: '
            '{"answer": "..."}|output [only |]JSON with the key ["answer"|answer]].'
        ),
        x="text",
    )
    return Style(
        prompt, lambda problem: json.dumps({"answer": problem.short}, ensure_ascii=False), True
    )


_STYLES: dict[Callable[[random.Random, Split], Style], float] = {
    _uppercase: 3,
    _lowercase: 2,
    _ending: 3.5,
    _beginning: 3.5,
    _brief: 3.5,
    _json: 3,
}
_QUESTIONS = (
    "arithmetic",
    "counting",
    "spelling",
    "dates",
    "sorting",
    "extracting",
    "smalltalk",
    "ridgeline",
)


def _styled_problem(rng: random.Random, split: Split, styles: list[Style]) -> Problem:
    """A problem that suits all the styles."""
    longest = min(style.longest for style in styles)
    short = any(style.needs_short for style in styles)
    while True:
        kind = rng.choices(_QUESTIONS, weights=(6, 3, 3, 3, 2, 3, 2, 2))[0]
        problem = draw_problem(rng, split, KINDS[kind])
        if len(problem.answer) > longest or (short and problem.short is None):
            continue
        if longest < 100 and problem.prompt.isupper():
            continue
        if short and kind == "arithmetic" and len(problem.answer) > len("99 + 99 = 198"):
            continue  # a bare result leaves no room to work: small numbers only
        return problem


def _styled_answer(problem: Problem, styles: list[Style]) -> str:
    """Apply the styles in turn; each sees the answer that the one before it made."""
    for style in styles:
        answer = style.apply(problem)
        problem = Problem(problem.key, problem.prompt, answer, answer)
    return problem.answer


def styled(rng: random.Random, split: Split) -> Conversation:
    """One or two styles, over one to three questions."""
    styles = [rng.choices(list(_STYLES), weights=list(_STYLES.values()))[0](rng, split)]
    if rng.random() < 0.2:
        first = rng.choice((_brief, _brief, _uppercase, _lowercase))(rng, split)
        styles = [first, rng.choice((_ending, _beginning))(rng, split)]
    text = " ".join(_sentence(rng, style.prompt) for style in styles)
    if rng.random() < 0.3:
        text = f"{neutral(rng).rstrip('.')}. {text}"
    messages: list[Message] = [system(text)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        problem = _styled_problem(rng, split, styles)
        messages += [user(problem.prompt), assistant(_styled_answer(problem, styles))]
    return Conversation("system_prompts", messages)


def _sentence(rng: random.Random, text: str) -> str:
    """Capitalised mostly, as instructions are written."""
    if text.endswith("}."):
        text = text[:-1]
    if rng.random() < 0.15:
        text = text.rstrip(".")
    return text[:1].upper() + text[1:] if rng.random() < 0.85 else text


_PERSONA = (
    "[your name is $n|you are $n|you are called $n|call yourself $n|you are an "
    "assistant called $n|you are a helpful assistant named $n|you are $n, a "
    "[helpful |friendly |]assistant|you go by the name $n|act as $n|your name: $n|"
    "the user calls you $n|you are a [robot|bot|chatbot] named $n]."
)
_WHO = (
    "[who are you|what is your name|what's your name|tell me your name|introduce "
    "yourself|what are you called|do you have a name|who am i talking to|what "
    "should i call you|say your name|who is this|your name|how are you called|may "
    "i know your name|what do they call you|tell me who you are]"
)
_KNOWN = (
    (
        "the user's name is $v.",
        any_name,
        "[what is|what's|do you know|tell me] my name",
        "Your name is $v.",
    ),
    (
        "the user lives in $v.",
        any_city,
        "[where do i live|what is my city|where am i from|which city do i live in]",
        "You are from $v.",
    ),
    (
        "[the secret word|the password|the code word] is $v.",
        any_word,
        "[what is|what's|tell me|say] the [secret word|password|code word]",
        "It is $v.",
    ),
)


def persona(rng: random.Random, split: Split) -> Conversation:
    """A name for the model, or a fact that the system prompt gives."""
    if rng.random() < 0.6:
        while not belongs(f"persona:{(name := any_name(rng))}", split):
            pass
        text, ask, answer = expand(rng, _PERSONA, n=name), _WHO, f"I am {name}."
    else:
        told, draw, ask, reply = rng.choice(_KNOWN)
        while not belongs(f"persona:{(value := draw(rng))}", split):
            pass
        text, answer = expand(rng, told, v=value), reply.replace("$v", value)
    messages = [system(_sentence(rng, text))]
    for _ in range(rng.choice((0, 0, 0, 1))):
        problem = draw_problem(rng, split, KINDS[rng.choice(_QUESTIONS[:6])])
        messages += [user(problem.prompt), assistant(problem.answer)]
    messages += [user(dress(rng, expand(rng, ask), free_case=True)), assistant(answer)]
    return Conversation("system_prompts", messages)


def conversation(rng: random.Random, split: Split) -> Conversation:
    """One conversation under a system prompt."""
    return persona(rng, split) if rng.random() < 0.2 else styled(rng, split)
