# ruff: noqa: SIM905 - word lists read best as text
"""The tools that conversations offer: everyday ones under several names, and made-up ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from training.conversations.base import expand
from training.conversations.dates import random_date
from training.conversations.words import COMMON, any_city, any_name, any_word, pseudo_word

Value = str | int | bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a tool and how its values are drawn."""

    name: str
    draw: Callable[[random.Random], Value]
    description: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolKind:
    """A tool, requests for it (`$` fields are parameters by position: $a, $b, $c), and results."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]
    results: tuple[tuple[str, Callable[[random.Random], Value]], ...]


def random_number(rng: random.Random) -> int:
    return rng.randint(0, rng.choice((20, 99, 999)))


def _digits(rng: random.Random) -> str:
    """A number that the schema calls a string, so that it is quoted in the call."""
    return str(random_number(rng))


def few_words(rng: random.Random) -> str:
    return " ".join(rng.choice(COMMON) for _ in range(rng.randint(1, 3)))


def _email(rng: random.Random) -> str:
    return f"{any_name(rng).lower()}@{any_word(rng)}.{rng.choice(('com', 'org', 'net'))}"


def _date(rng: random.Random) -> str:
    return random_date(rng).isoformat()


def _clock(rng: random.Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.choice((0, 15, 30, 45, rng.randint(0, 59))):02d}"


def _room(rng: random.Random) -> str:
    rooms = ("kitchen", "bedroom", "bathroom", "garage", "office", "hall", "cellar", "living room")
    return rng.choice(rooms) if rng.random() < 0.7 else any_word(rng)


def _one_of(*choices: str) -> Callable[[random.Random], Value]:
    return lambda rng: rng.choice(choices)


_CITY = Parameter("[city|city|location|place|town]", any_city, "Name of the city")
_ASK = "[|||please |can you |could you |i want to |i need to ]"
UNITS = ("celsius", "fahrenheit")

KNOWN: tuple[ToolKind, ...] = (
    ToolKind(
        "[get_weather|weather|get_current_weather|fetch_weather|getWeather]",
        "Get the [current |]weather [in|of|for] a [city|location|place]",
        (_CITY,),
        (
            (
                "[what is|what's|how is|tell me|get] the weather [like |][today |now |right "
                "now |]in $a"
            ),
            "weather in $a",
            "is it [raining|warm|cold|sunny] in $a",
            "how [warm|cold|hot] is it in $a",
            "do i need an umbrella in $a",
        ),
        (
            ("temperature", lambda rng: rng.randint(-9, 39)),
            ("sky", _one_of("sunny", "cloudy", "rain", "snow", "clear")),
        ),
    ),
    ToolKind(
        "[get_weather|weather|get_current_weather|current_weather]",
        "Get the weather",
        (_CITY, Parameter("[unit|units]", _one_of(*UNITS), "", UNITS)),
        (
            "[what is|what's|how is|tell me] the weather in $a in $b",
            "weather in $a in $b",
            "[temperature|weather] in $a, in $b[ please|]",
            "how [warm|cold|hot] is it in $a[,|] in $b",
            "what is the temperature in $a in $b",
        ),
        (("temperature", lambda rng: rng.randint(-9, 99)),),
    ),
    ToolKind(
        "[add|sum|add_numbers|plus]",
        "[Add|Sum] two numbers",
        (Parameter("a", random_number), Parameter("b", random_number)),
        (
            "[what is|what's|calculate|compute|] $a [plus|+|and] $b",
            "add $a [and|to] $b",
            "[the sum of|sum of] $a and $b",
            "how much is $a [plus|+] $b",
        ),
        (("result", random_number),),
    ),
    ToolKind(
        "[multiply|multiply_numbers|product]",
        "Multiply two numbers",
        (Parameter("a", random_number), Parameter("b", random_number)),
        (
            "[what is|what's|calculate|compute|] $a [times|x|*|multiplied by] $b",
            "multiply $a [by|with] $b",
            "the product of $a and $b",
        ),
        (("result", random_number),),
    ),
    ToolKind(
        "[search|web_search|search_web|google|lookup]",
        "[Search the web|Search the internet|Look something up]",
        (Parameter("[query|q|text|term]", few_words, "What to search for"),),
        (
            _ASK + "[search|look|google] for $a",
            _ASK + "search [the web |the internet |online |]for $a",
            _ASK + "[find|look up] $a [online|on the web|on the internet]",
            "web search: $a",
            "look up $a",
        ),
        (("title", few_words), ("results", random_number)),
    ),
    ToolKind(
        "[get_time|current_time|get_current_time|clock]",
        "Get the [current |]time in a [time zone|city|place]",
        (Parameter("[timezone|zone|city|location]", any_city),),
        (
            "what time is it in $a",
            "[what is|what's|tell me] the [current |]time in $a",
            "current time in $a",
            "time in $a",
            "how late is it in $a",
        ),
        (("time", _clock),),
    ),
    ToolKind(
        "[send_email|email|send_mail|sendEmail]",
        "Send an [email|e-mail]",
        (
            Parameter("[to|recipient|address]", _email, "Address"),
            Parameter("[subject|topic]", few_words),
        ),
        (
            _ASK
            + (
                "[send|write] an [email|e-mail] to $a [about|with subject|with the subject|"
                "with subject:] $b"
            ),
            _ASK + "email $a about $b",
            _ASK + "[send|mail] $a [an email|a mail] about $b",
        ),
        (("status", _one_of("sent", "queued")),),
    ),
    ToolKind(
        "[set_timer|timer|start_timer]",
        "[Set|Start] a timer",
        (Parameter("[minutes|minutes|duration]", lambda rng: rng.randint(1, 90)),),
        (
            _ASK + "set a timer [for|of|to] $a minutes",
            "timer $a minutes",
            "[wake me|remind me|ring] in $a minutes",
            _ASK + "start a $a minute timer",
        ),
        (("status", _one_of("started", "running")),),
    ),
    ToolKind(
        "[create_event|add_event|calendar]",
        "Add an event to the calendar",
        (Parameter("[title|name]", few_words), Parameter("[date|day]", _date)),
        (
            _ASK + "[create|add|make|plan|schedule] an event [called|named|titled|] $a on $b",
            _ASK + "[put|add] $a [in|to] my calendar on $b",
            _ASK + "schedule $a [on|for] $b",
        ),
        (("status", _one_of("created", "saved")),),
    ),
    ToolKind(
        "translate",
        "Translate a text into a language",
        (
            Parameter("text", few_words),
            Parameter(
                "language", _one_of("French", "German", "Spanish", "Italian", "Dutch", "Polish")
            ),
        ),
        (
            _ASK + "translate $a [to|into] $b",
            "what is $a in $b",
            "how do you say $a in $b",
            _ASK + "say $a in $b",
        ),
        (("translation", any_word),),
    ),
    ToolKind(
        "[get_stock_price|stock_price|stock]",
        "Get the price of a stock",
        (Parameter("[symbol|ticker]", lambda rng: pseudo_word(rng, 1).upper()[:4]),),
        (
            "[what is|what's|tell me] the [stock |]price of $a",
            "[stock price of|price of|stock] $a",
            "how much is [the|a|one] $a stock",
            "how is $a [stock |]doing",
        ),
        (("price", random_number), ("currency", _one_of("USD", "EUR"))),
    ),
    ToolKind(
        "book_table",
        "Reserve a table in a restaurant",
        (
            Parameter("restaurant", any_name),
            Parameter("people", lambda rng: rng.randint(1, 12)),
            Parameter("time", _clock),
        ),
        (
            _ASK + "[book|reserve|get] a table [at|in] $a for $b people at $c",
            _ASK + "[book|reserve] a table for $b [people |]at $c [at|in] $a",
        ),
        (("status", _one_of("confirmed", "full")),),
    ),
    ToolKind(
        "[play_music|play_song|play]",
        "Play a song",
        (Parameter("[song|title]", few_words),),
        (
            _ASK + "play [the song |]$a",
            _ASK + "play $a [for me|now|please]",
            _ASK + "put on [the song |]$a",
            "i want to hear $a",
        ),
        (("status", _one_of("playing", "not available")),),
    ),
    ToolKind(
        "[turn_on_light|light_on|switch_light]",
        "Turn on the light in a room",
        (Parameter("room", _room),),
        (
            _ASK + "turn on the [light|lights] in the $a",
            _ASK + "[switch on|turn on] the $a [light|lights]",
            "light in the $a[ please|]",
            "[it is dark|too dark] in the $a",
        ),
        (("status", _one_of("on", "broken")),),
    ),
    ToolKind(
        "convert_currency",
        "Convert money between currencies",
        (
            Parameter("amount", random_number),
            Parameter("from", _one_of("USD", "EUR", "GBP", "JPY")),
            Parameter("to", _one_of("CHF", "CAD", "SEK", "PLN")),
        ),
        (
            _ASK + "convert $a $b [to|into] $c",
            "how much is $a $b in $c",
            "[what is|what's] $a $b in $c",
            "$a $b in $c",
        ),
        (("amount", random_number),),
    ),
    ToolKind(
        "[list_files|ls|show_files]",
        "List the files of a [folder|directory]",
        (Parameter("[folder|path|directory]", any_word),),
        (
            _ASK + "list [the |all |all the |]files in [the folder |]$a",
            "[what|which] files are in [the folder |]$a",
            "show [me |]the files in [the folder |]$a",
            "what is in the folder $a",
        ),
        (("files", random_number),),
    ),
    ToolKind(
        "get_date",
        "Get today's date",
        (),
        (
            "what [date|day] is [it |]today",
            "what is the date[ today|]",
            "[today's date|current date]",
            "which [day|date] is it",
            "tell me [the date|today's date]",
        ),
        (("date", _date),),
    ),
    ToolKind(
        "detect_hardware",
        "Detect the hardware of this machine",
        (),
        (
            "what hardware [do i have|is here|does this machine have]",
            "detect [my|the] hardware",
            "which gpu do i have",
            "[show|tell] me my hardware",
        ),
        (
            ("accelerator", _one_of("H100", "L40S", "A100", "none")),
            ("count", lambda rng: rng.randint(1, 8)),
        ),
    ),
)

_VERBS = """get find create delete update check open close start stop read count load save move
lock""".split()


def invented(rng: random.Random) -> ToolKind:
    """A made-up tool whose description says what to ask it for."""
    verb = rng.choice(_VERBS)
    noun = rng.choice(COMMON) if rng.random() < 0.6 else pseudo_word(rng)
    thing = rng.choice(COMMON) if rng.random() < 0.6 else pseudo_word(rng)
    name = rng.choice(
        (f"{verb}_{noun}", f"{verb}_{noun}", f"{verb}{noun.capitalize()}", f"{noun}_{verb}")
    )
    count = rng.choices((0, 1, 2, 3), weights=(1, 6, 4, 1))[0]
    names: list[str] = []
    while len(names) < count:
        label = rng.choice(
            (
                "name",
                "id",
                "city",
                "value",
                "text",
                "level",
                "color",
                "key",
                "size",
                "user",
                any_word(rng),
                pseudo_word(rng, 2),
            )
        )
        if label not in names:
            names.append(label)
    draws: tuple[Callable[[random.Random], Value], ...] = (
        any_word,
        random_number,
        any_name,
        any_city,
        random_number,
        _digits,
    )
    parameters = tuple(Parameter(label, rng.choice(draws)) for label in names)
    article = rng.choice(("the", "the", "a"))
    purpose = f"{verb} {article} {noun}" + (f" of a {thing}" if rng.random() < 0.4 else "")
    fields = [f"${'abc'[i]}" for i in range(count)]
    with_names = " and ".join(
        f"{label} {field}" for label, field in zip(names, fields, strict=True)
    )
    with_equals = ", ".join(f"{label}={field}" for label, field in zip(names, fields, strict=True))
    requests: tuple[str, ...]
    if count == 0:
        requests = (_ASK + purpose, purpose + " now", f"use {name}", f"call {name}", f"run {name}")
    elif count == 1:
        requests = (
            _ASK + f"{purpose} [with|for|for|in|using] {fields[0]}",
            _ASK + f"{purpose} {fields[0]}",
            _ASK + f"{purpose} [with|where] {with_names}",
            f"[use|call|run] {name} [with|for|on] {fields[0]}",
            f"[use|call|run] {name} with {with_equals}",
        )
    else:
        requests = (
            _ASK + f"{purpose} [with|for|using] {with_names}",
            _ASK + f"{purpose}, {with_names}",
            f"[use|call|run] {name} with {with_equals}",
            _ASK + f"{purpose} ({with_equals})",
        )
    key = rng.choice(("status", "result", "value", noun, any_word(rng), "total"))
    outcome = rng.choice((random_number, any_word, any_word))
    return ToolKind(
        name, purpose[:1].upper() + purpose[1:], parameters, requests, ((key, outcome),)
    )


def variant(rng: random.Random, tool: ToolKind) -> ToolKind:
    """The tool under one of its names, its parameters under one of theirs."""
    parameters = tuple(
        Parameter(expand(rng, one.name), one.draw, one.description, one.choices)
        for one in tool.parameters
    )
    name, description = expand(rng, tool.name), expand(rng, tool.description)
    return ToolKind(name, description, parameters, tool.requests, tool.results)
