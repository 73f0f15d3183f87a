# ruff: noqa: SIM905 - word lists read best as text
"""Weekdays, months, calendar facts, date formats and neighbouring dates."""

from __future__ import annotations

import calendar
import datetime
import random

from training.conversations.base import Draw, Problem, dress, expand

WEEKDAYS = list(calendar.day_name)
MONTHS = list(calendar.month_name)[1:]
_ORDINALS = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh
twelfth""".split()
_NUMBERS = "one two three four five six seven eight nine ten".split()

_DAY = "[what|which] [day|weekday|day of the week|day]"


def weekday(rng: random.Random) -> Problem:
    """Day after or before, today and tomorrow. Closed: the phrasing is part of the problem."""
    today = rng.randrange(7)
    shift, core = rng.choice(
        (
            (
                1,
                (
                    f"[{_DAY} [comes|is|comes right|is right] after $d|what is the [day|next day|"
                    "weekday] after $d|the day after $d|which day follows $d|what comes after $d|"
                    "next day after $d]"
                ),
            ),
            (
                -1,
                (
                    f"[{_DAY} [comes|is|comes right|is right] before $d|what is the [day|weekday] "
                    "before $d|the day before $d|what comes before $d|which day precedes $d]"
                ),
            ),
            (
                1,
                (
                    f"[if |]today is $d[,|. |] [{_DAY} is [it |]tomorrow|what is tomorrow|what day "
                    "will it be tomorrow]"
                ),
            ),
            (-1, f"[if |]today is $d[,|. |] [{_DAY} was [it |]yesterday|what was yesterday]"),
            (2, f"yesterday was $d. {_DAY} is tomorrow"),
            (-1, f"if tomorrow is $d[,|] {_DAY} is [today|it today]"),
            (1, f"if yesterday was $d[,|] {_DAY} is [today|it today]"),
            (2, f"[if |]today is $d[,|. |] {_DAY} is the day after tomorrow"),
        )
    )
    answer = WEEKDAYS[(today + shift) % 7]
    core = expand(rng, core, d=WEEKDAYS[today])
    return Problem(f"weekday:{core}", dress(rng, core, free_case=True), answer, answer)


def days_later(rng: random.Random) -> Problem:
    """The weekday n days away. Closed: the phrasing is part of the problem."""
    today, days = rng.randrange(7), rng.randint(2, rng.choice((7, 7, 10)))
    later = rng.random() < 0.65
    said = str(days) if days > 10 or rng.random() < 0.75 else _NUMBERS[days - 1]
    core = expand(
        rng,
        f"[{_DAY} [is|comes|will it be|is it] $n days [after|from] $d|[if |]today is "
        f"$d[,|. |] {_DAY} [is it|will it be|is] in $n days|"
        f"[if |]today is $d[,|. |] {_DAY} [is it|will it be|is] $n days [from now|"
        "later]|what is $n days after $d|$n days after $d|$d plus $n days|"
        f"it is $d. {_DAY} [is it|will it be] in $n days]"
        if later
        else (
            f"[{_DAY} [is|was|was it|comes] $n days before $d|[if |]today is $d[,|. |] "
            f"{_DAY} was [it |]$n days ago|what is $n days before $d|$n days before $d|$d "
            "minus $n days]"
        ),
        d=WEEKDAYS[today],
        n=said,
    )
    answer = WEEKDAYS[(today + (days if later else -days)) % 7]
    return Problem(f"weekday:{core}", dress(rng, core, free_case=True), answer, answer)


def month(rng: random.Random) -> Problem:
    """Order and numbers of the months. Closed: the phrasing is part of the problem."""
    index = rng.randrange(12)
    name = MONTHS[index]
    choice = rng.randrange(5)
    core, answer = (
        (
            (
                "[[what|which] month [comes|is|comes right] after $m|what is the [month|next "
                "month] after $m|the month after $m|which month follows $m|what comes after "
                "$m]"
            ),
            MONTHS[(index + 1) % 12],
        ),
        (
            (
                "[[what|which] month [comes|is|comes right] before $m|what is the month before "
                "$m|the month before $m|what comes before $m]"
            ),
            MONTHS[index - 1],
        ),
        (
            (
                "[[what|which] month is [number $i|month $i]|what is the $o month[ of the year|"
                "]|[which|what] is the $o month[| of the year| in a year]|name the $o month[| "
                "of the year]|month number $i]"
            ),
            name,
        ),
        (
            (
                "[what number [is|does] [the month |]$m[| have]|which number is [the month |"
                "]$m|what month number is $m|what is the number of [the month |]$m|$m is which "
                "month number]"
            ),
            str(index + 1),
        ),
        (
            (
                "[how many days [are|are there|] in $m|how many days does $m have|how many "
                "days has $m|number of days in $m|days in $m|how long is $m|how many days [are "
                "in|does] [the month of|the month] $m[| have]]"
            ),
            "",
        ),
    )[choice]
    core = expand(rng, core, m=name, i=index + 1, o=_ORDINALS[index])
    if choice == 4:
        days = calendar.monthrange(2023, index + 1)[1]
        answer = f"{name} has {days} days" + (", or 29 in a leap year." if index == 1 else ".")
        return Problem(f"month:{core}", dress(rng, core, free_case=True), answer, str(days))
    return Problem(f"month:{core}", dress(rng, core, free_case=True), answer, answer)


_FACTS = (
    ("days [are|are there|] in a week", "A week has 7 days.", "7"),
    ("days [are|are there|] in a year", "A year has 365 days, or 366 in a leap year.", "365"),
    ("days [are|are there|] in a leap year", "A leap year has 366 days.", "366"),
    ("months [are|are there|] in a year", "A year has 12 months.", "12"),
    ("weeks [are|are there|] in a year", "A year has 52 weeks.", "52"),
    ("hours [are|are there|] in a day", "A day has 24 hours.", "24"),
    ("minutes [are|are there|] in an hour", "An hour has 60 minutes.", "60"),
    ("seconds [are|are there|] in a minute", "A minute has 60 seconds.", "60"),
)


def calendar_fact(rng: random.Random) -> Problem:
    """How many days a week has, and its like. Closed: the phrasing is part of the problem."""
    tail, answer, short = rng.choice(_FACTS)
    noun, _, whole = tail.partition(" [are|are there|] in ")
    core = expand(
        rng,
        (
            f"[how many {tail}|how many {noun} does {whole} have|how many {noun} has "
            f"{whole}|number of {noun} in {whole}|what is the number of {noun} in {whole}]"
        ),
    )
    prompt = dress(rng, core, free_case=True)
    return Problem(f"calendar:{prompt.lower()}", prompt, answer, short)


def in_order(rng: random.Random) -> Problem:
    """All weekdays or months. Closed: the phrasing is part of the problem."""
    noun, names = rng.choice((("days of the week", WEEKDAYS), ("months of the year", MONTHS)))
    if noun.startswith("m") and rng.random() < 0.3:
        noun = "months"
    if noun.startswith("d") and rng.random() < 0.3:
        noun = "weekdays"
    core = expand(
        rng,
        (
            "[list|name|what are|tell me|give me|write|say|write down|show me|enumerate|"
            "can you list|please list] [the|all|all the] $n[| in order]"
        ),
        n=noun,
    )
    prompt = dress(rng, core, free_case=True)
    return Problem(f"order:{prompt.lower()}", prompt, ", ".join(names))


def leap_year(rng: random.Random) -> Problem:
    """Whether a year is a leap year."""
    year = rng.randint(1950, 2060)
    core = expand(rng, "[is|was|is the year|was the year] $y a leap year[| or not]", y=year)
    verdict = "Yes" if calendar.isleap(year) else "No"
    answer = f"{verdict}, {year} is {'' if verdict == 'Yes' else 'not '}a leap year."
    return Problem(f"leap:{year}", dress(rng, core, free_case=True), answer, verdict)


def random_date(rng: random.Random) -> datetime.date:
    """A date from 1950 to 2049; ends of months more often than chance."""
    date = datetime.date(rng.randint(1950, 2049), rng.randint(1, 12), rng.randint(1, 28))
    if rng.random() < 0.02:
        return date.replace(month=12, day=31)
    if rng.random() < 0.2:
        days = calendar.monthrange(date.year, date.month)[1]
        return date.replace(day=rng.randint(28, days))
    return date


def long_form(date: datetime.date) -> str:
    """5 March 2024."""
    return f"{date.day} {MONTHS[date.month - 1]} {date.year}"


def any_form(rng: random.Random, date: datetime.date) -> str:
    """A date as people write it."""
    name = MONTHS[date.month - 1]
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(date.day % 10, "th")
    if 10 < date.day < 20:
        suffix = "th"
    return rng.choice(
        (
            long_form(date),
            long_form(date),
            f"{name} {date.day}, {date.year}",
            f"{name} {date.day}, {date.year}",
            f"{date.day}{suffix} of {name} {date.year}",
            f"{name} {date.day}{suffix}, {date.year}",
            f"{date.day}. {name} {date.year}",
            f"the {date.day}{suffix} of {name} {date.year}",
            f"{name} {date.day} {date.year}",
        )
    )


def date_format(rng: random.Random) -> Problem:
    """Between ISO and the long form."""
    date = random_date(rng)
    if rng.random() < 0.6:
        core = expand(
            rng,
            (
                "[[write|convert|format|give me|put|change|turn] $d [in ISO format|to ISO "
                "format|as an ISO date|as ISO|in the format YYYY-MM-DD|to YYYY-MM-DD|as "
                "YYYY-MM-DD|into ISO format]|what is $d in [ISO format|YYYY-MM-DD|ISO]|$d [in "
                "ISO format|as ISO date|as YYYY-MM-DD]]"
            ),
            d=any_form(rng, date),
        )
        answer = date.isoformat()
    else:
        core = expand(
            rng,
            (
                "[[write|say|express|spell out] $d [in words|in long form|with the month name|"
                "with the name of the month|in full]|what [date is|is] $d[ in words| in long "
                "form|]|which date is $d|convert $d to [long form|words]|$d in words]"
            ),
            d=date.isoformat(),
        )
        answer = long_form(date)
    return Problem(f"date:{date.isoformat()}", dress(rng, core), answer, answer)


def next_date(rng: random.Random) -> Problem:
    """The date after or before a date, in the form it was given in."""
    date, after = random_date(rng), rng.random() < 0.65
    iso = rng.random() < 0.5
    target = date + datetime.timedelta(days=1 if after else -1)
    word = "after" if after else "before"
    core = expand(
        rng,
        f"[[what|which] [date|day] [comes|is|comes right] {word} $d|what is the [date|"
        f"day] {word} $d|"
        f"the [date|day] {word} $d|what comes {word} $d|what date is the day {word} $d|"
        f"tell me the date {word} $d]",
        d=date.isoformat() if iso else rng.choice((long_form(date), any_form(rng, date))),
    )
    answer = target.isoformat() if iso else long_form(target)
    return Problem(f"date:{date.isoformat()}", dress(rng, core), answer, answer)


DRAWS: dict[Draw, float] = {
    weekday: 3,
    days_later: 7,
    month: 3,
    calendar_fact: 1,
    in_order: 0.6,
    leap_year: 1,
    date_format: 4,
    next_date: 5,
}
