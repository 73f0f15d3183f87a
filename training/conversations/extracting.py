"""Finding an email, number, name, city, phone or date in a text; also several as JSON."""

from __future__ import annotations

import json
import random

from training.conversations.base import Draw, Problem, dress, expand
from training.conversations.dates import any_form, random_date
from training.conversations.words import COMMON, LAST_NAMES, any_city, any_name, any_word

_PROVIDERS = ("example.com", "mail.com", "gmail.com", "example.org", "post.net", "work.io")

_FRAGMENTS: dict[str, tuple[str, ...]] = {
    "name": (
        "[my|her|his|the customer's] name is $v",
        "i am $v",
        "this is $v [speaking|writing|]",
        "$v [called|wrote|says hello|ordered a $x|bought a $x|is here|likes $x|has a $x]",
        "the [customer|contact|speaker|author|sender] is $v",
        "[ask|write to|contact|meet] $v",
        "$v is my [boss|friend|teacher|colleague|doctor|brother|neighbor]",
        (
            "[my friend|our colleague|the teacher|my sister|the manager] $v [came|called|"
            "is nice|left early|wrote to us|helped me]"
        ),
        "[regards|best regards|yours|signed], $v",
        "you can ask for $v",
    ),
    "email": (
        "[my|her|his|the] email [address |]is $v",
        (
            "[write to|contact me at|send it to|mail|send an email to|reach me at|email me "
            "at|reply to] $v"
        ),
        "[contact|email|mail]: $v",
        "you can [reach|contact] [me|him|her|us] at $v",
        "[for more information|for questions|if you have questions] [write to|contact|mail] $v",
        "$v is [my|her|his|the] email[ address|]",
    ),
    "city": (
        "[i live|she lives|he lives|we live|they live] in $v",
        "[the meeting|the office|the party|the conference] is in $v",
        "[i am|she is|he is|we are] from $v",
        "[i moved|we travelled|she flew|he went] to $v",
        "[city|place]: $v",
        (
            "[we are flying|we drove|i will travel|she is going] to $v [tomorrow|last week|"
            "next month|soon]"
        ),
        "$v is [a nice city|beautiful|where i live|my home]",
        "the weather in $v is [nice|bad|cold|hot]",
        "[he works|she works|i study|our office is] in $v",
    ),
    "phone": (
        "[my|her|his|the] phone [number |]is $v",
        "[call|call me at|phone|ring|reach me at|dial] $v",
        "you can call [me|us|him|her] [at|on] $v",
        "[phone|tel]: $v",
    ),
    "date": (
        "[the meeting|the party|the exam|the train|the concert] is on $v",
        (
            "[it was sent|it starts|it ends|we meet|she was born|he arrives|the order was "
            "placed] on $v"
        ),
        "[date|due]: $v",
    ),
    "age": (
        "[i am|she is|he is] $v years old",
        "[my|her|his] age is $v",
        "[i turned|she turned|he turned] $v",
    ),
    "number": (
        "[the order|invoice|room|order|ticket] number is $v",
        "[we sold|there are|i bought|she found|it weighs|he has] $v $xs",
        "[room|page|line|gate|platform] $v",
        "it costs $v [euros|dollars]",
    ),
}
_FILLER = (
    "[the $x was nice|we like $x|thank you for the $x|i need a new $x|the $x is late|see you soon|"
    "have a nice day|it was a long day|they talked about $x|the $x is for sale|"
    "please bring the $x]"
)
_ASKED: dict[str, str] = {
    "name": "[name|name|person|person's name|name of the person]",
    "email": "[email|email|email address|e-mail|mail address|e-mail address]",
    "city": "[city|city|place|city name|name of the city]",
    "phone": "[phone number|phone number|phone|telephone number]",
    "date": "[date|date|day]",
    "age": "[age]",
    "number": "[number|number|amount]",
}
_QUESTION = (
    (
        "[extract|find|get|give me|pull out|return|show me|can you find|please extract|"
        "can you extract|tell me|pick out] [the|the|only the] $f [from|in|out of|from "
        "this text|from this|in this sentence|from the text|from the sentence|in the "
        "text|mentioned in]: $t"
    ),
    (
        "[what is|what's|which is] the $f [in|in this text|in this sentence|in the "
        "text|here|mentioned here|in this]: $t"
    ),
    "$t [extract|find|get|give me|return|please extract] the $f",
    "$t what is the $f",
    '[extract|find|get|what is] the $f [from|in] "$u"',
    "$f [from|in|of] this [text|sentence]: $t",
    "[which|what] $f is [in|mentioned in] this [text|sentence]: $t",
)
_NATURAL: dict[str, str] = {
    "city": (
        "[[where|in which city|what city] is [this|it] about|[which|what] city is "
        "mentioned|[which|what] city]"
    ),
    "name": "[who is [this|it]|who is mentioned|what is the person called|who]",
    "email": "[where can i write to|what is the mail address|which email]",
    "phone": "[which number can i call|what is the phone|what number should i call]",
    "date": "[when is [it|this]|on which date|when]",
    "age": "[how old]",
    "number": "[which number is mentioned|what number]",
}


def random_value(rng: random.Random, field: str) -> str:
    """A value for one of the fields."""
    if field == "name":
        return any_name(rng) + (f" {rng.choice(LAST_NAMES)}" if rng.random() < 0.3 else "")
    if field == "city":
        return any_city(rng)
    if field == "email":
        left = any_name(rng).lower() if rng.random() < 0.6 else any_word(rng)
        if rng.random() < 0.4:
            left += rng.choice((".", "_", "-", "")) + (
                rng.choice(LAST_NAMES).lower() if rng.random() < 0.6 else str(rng.randint(1, 99))
            )
        domain = f"{any_word(rng)}.{rng.choice(('com', 'org', 'net', 'io', 'de', 'co.uk', 'eu'))}"
        return f"{left}@{rng.choice(_PROVIDERS) if rng.random() < 0.4 else domain}"
    if field == "phone":
        groups = [rng.randint(10, 999), rng.randint(100, 999), rng.randint(100, 9999)]
        joined = rng.choice(("-", " ", "-")).join(map(str, groups))
        return (f"+{rng.randint(1, 99)} " if rng.random() < 0.35 else "") + joined
    if field == "date":
        date = random_date(rng)
        return date.isoformat() if rng.random() < 0.5 else any_form(rng, date)
    if field == "age":
        return str(rng.randint(2, 99))
    return str(rng.randint(1, rng.choice((99, 999, 99999))))


def _sentence(rng: random.Random, values: dict[str, str]) -> str:
    """A text that mentions every value, in the order of the dictionary."""
    parts = [
        expand(rng, rng.choice(_FRAGMENTS[field]), v=value, x=rng.choice(COMMON))
        for field, value in values.items()
    ]
    if rng.random() < 0.3:
        parts.insert(rng.randint(0, len(parts)), expand(rng, _FILLER, x=rng.choice(COMMON)))
    joint = rng.choice((". ", ", ", " and ", ". "))
    if joint == ". ":
        parts = [part[:1].upper() + part[1:] for part in parts]
    text = joint.join(parts)
    if rng.random() < 0.6:
        text = text[:1].upper() + text[1:]
    return text + ("." if joint == ". " or rng.random() < 0.5 else "")


def _fields(rng: random.Random, count: int) -> list[str]:
    """Different fields that do not shadow each other: a text has one bare number at most."""
    while True:
        fields = rng.sample(list(_FRAGMENTS), count)
        if len({"age", "number", "phone"} & set(fields)) < 2:
            return fields


def draw_text(rng: random.Random, least: int = 1) -> tuple[str, dict[str, str]]:
    """A text and the values in it."""
    fields = _fields(rng, rng.choice((1, 2, 2, 3, 3)) if least == 1 else rng.choice((2, 3, 3)))
    values = {field: random_value(rng, field) for field in fields}
    return _sentence(rng, values), values


def ask_field(rng: random.Random, field: str, text: str) -> str:
    """A question about one field of a text."""
    if rng.random() < 0.15:
        asked = expand(rng, _NATURAL[field])
        ends = text if text[-1] in ".!?" else text + "."
        return rng.choice((f"{ends} {asked[:1].upper()}{asked[1:]}", f"{asked}: {text}"))
    ends = text if text[-1] in ".!?" else text + "."
    pattern = rng.choice(_QUESTION)
    return expand(
        rng, pattern.replace("$f", _ASKED[field]), t=ends if pattern[0] == "$" else text, u=text
    )


def extract_one(rng: random.Random) -> Problem:
    """The bare value of one field."""
    text, values = draw_text(rng)
    field = rng.choice(list(values))
    prompt = dress(rng, ask_field(rng, field, text))
    return Problem(f"extract:{values[field]}", prompt, values[field], values[field])


def extract_missing(rng: random.Random) -> Problem:
    """A field that the text does not have."""
    text, values = draw_text(rng)
    field = rng.choice([one for one in ("email", "phone", "city") if one not in values] or ["age"])
    if field in values:
        return extract_one(rng)
    pattern = rng.choice(_QUESTION[:4])
    core = expand(rng, pattern.replace("$f", _ASKED[field]), t=text, u=text)
    noun = "phone number" if field == "phone" else field
    return Problem(f"extract:{text}", dress(rng, core), f"The text has no {noun}.")


def extract_json(rng: random.Random) -> Problem:
    """One to three fields as a JSON object, keys in the order they are asked for."""
    text, values = draw_text(rng)
    count = rng.randint(1, len(values))
    fields = rng.sample(list(values), count)
    listed = ", ".join(fields[:-1]) + " and " + fields[-1] if count > 1 else fields[0]
    core = expand(
        rng,
        "[[extract|get|find|return|give me|write|please extract] [the|] $f [as JSON|in "
        "JSON|as a JSON object|as json|in JSON format] from: $t|"
        "[return|give me|write] JSON with [the|] $f [from|for|of]: $t|"
        "[extract|get|find] [the|] $f from this [text|sentence] [as JSON|in JSON]: $t|"
        "$t [extract|return|give me] [the|] $f [as JSON|in JSON format|as a JSON object]|"
        "[make|create] a JSON object with [the|] $f from: $t]",
        f=listed,
        t=text if text[-1] in ".!?" else text + ".",
    )
    answer = json.dumps({field: values[field] for field in fields}, ensure_ascii=False)
    key = ":".join(values[field] for field in fields)
    return Problem(f"extract:{key}", dress(rng, core, question=False), answer)


DRAWS: dict[Draw, float] = {extract_one: 8, extract_missing: 0.8, extract_json: 3.5}
