"""Sorting numbers and words; largest and smallest."""

from __future__ import annotations

import random

from training.conversations.base import Draw, Problem, dress, expand, join_list
from training.conversations.words import COMMON, FIRST_NAMES, pseudo_word

_SORT = (
    "[sort|sort|order|arrange|put in order|please sort|can you sort|could you sort|"
    "rank|sort for me]"
)
_LIST = (
    "[:|| these numbers:| the numbers| these:| the following numbers:| this list:| "
    "the list| these numbers]"
)
ASCENDING = (
    _SORT + _LIST + " $l",
    _SORT
    + _LIST
    + (
        " $l [in ascending order|ascending|from smallest to largest|from small to "
        "large|from low to high|in increasing order|from least to greatest|lowest "
        "first|smallest first]"
    ),
    _SORT
    + (
        " [in ascending order|ascending|from smallest to largest|from low to high|in "
        "increasing order|smallest first|from the smallest to the largest]: $l"
    ),
    "[put|arrange|can you put|please put|write] "
    + "[these numbers in|the numbers in|these in] [order|ascending order|increasing order]: $l",
    "[put|arrange|can you put] $l in [order|ascending order|increasing order|the right order]",
    (
        "$l [sorted|in ascending order|sort ascending|sort these|, sort them|, sorted "
        "from smallest to largest]"
    ),
)
DESCENDING = (
    _SORT
    + _LIST
    + (
        " $l [in descending order|descending|from largest to smallest|from large to "
        "small|from high to low|in decreasing order|from greatest to least|highest "
        "first|largest first|in reverse order]"
    ),
    _SORT
    + (
        " [in descending order|descending|from largest to smallest|from high to low|in "
        "decreasing order|largest first|from the largest to the smallest]: $l"
    ),
    "[put|arrange|can you put|please put|write] "
    + "[these numbers in|the numbers in|these in] [descending order|decreasing order]: $l",
    "[put|arrange|can you put] $l in [descending order|decreasing order]",
    (
        "$l [in descending order|sort descending|, sort them descending|, sorted from "
        "largest to smallest]"
    ),
)
LARGEST = (
    (
        "[what is|what's|which is|find|tell me|give me|show me|] the [largest|biggest|"
        "highest|greatest|maximum|max|largest] [number |][of|in|among|from] $l"
    ),
    (
        "which [number|one|of these] is [the largest|the biggest|largest|the greatest|"
        "the highest][: | in | of |: ]$l"
    ),
    "[largest|biggest|maximum|max|highest|largest number|biggest number] of $l",
    "[largest|biggest|maximum|max|highest]: $l",
)
SMALLEST = (
    (
        "[what is|what's|which is|find|tell me|give me|show me|] the [smallest|lowest|"
        "least|minimum|min|smallest] [number |][of|in|among|from] $l"
    ),
    (
        "which [number|one|of these] is [the smallest|the lowest|smallest|the least][: "
        "| in | of |: ]$l"
    ),
    "[smallest|lowest|minimum|min|smallest number|lowest number] of $l",
    "[smallest|lowest|minimum|min]: $l",
)
ALPHABETICAL = (
    _SORT
    + (
        "[:|| these words:| the words| these:| the following words:| this list:| these "
        "names:| these words] $l [alphabetically|in alphabetical order|by alphabet|"
        "from a to z|a to z]"
    ),
    _SORT + " [alphabetically|in alphabetical order|by alphabet|from a to z]: $l",
    _SORT + "[ these words:| the words| the following words:| these words| words:] $l",
    (
        "[put|arrange|can you put|please put|write] [these words in|the words in|these "
        "in|these names in] alphabetical order: $l"
    ),
    "[put|arrange|can you put] $l in alphabetical order",
    (
        "$l [in alphabetical order|sorted alphabetically|, sort them alphabetically|"
        "from a to z|alphabetically]"
    ),
    "alphabetical order: $l",
)
_REVERSE_ALPHABETICAL = _SORT + "[ these words| the words|] in reverse alphabetical order: $l"


def random_numbers(rng: random.Random) -> list[int]:
    """Two to six different numbers, mostly of one or two digits."""
    count = rng.choices((2, 3, 4, 5, 6), weights=(1, 6, 7, 5, 1.5))[0]
    limit = rng.choices((20, 100, 1000), weights=(4, 6, 2))[0]
    return rng.sample(range(limit), count)


def commas(items: list[int] | list[str]) -> str:
    """Items joined by comma and space."""
    return ", ".join(map(str, items))


def sort_numbers(rng: random.Random) -> Problem:
    """Ascending or descending."""
    numbers = random_numbers(rng)
    descending = rng.random() < 0.42
    patterns = DESCENDING if descending else ASCENDING
    core = expand(rng, rng.choice(patterns), l=join_list(rng, list(map(str, numbers))))
    answer = commas(sorted(numbers, reverse=descending))
    return Problem(f"sort:{sorted(numbers)}", dress(rng, core, question=False), answer, answer)


def extreme(rng: random.Random) -> Problem:
    """The largest or smallest number of a list."""
    numbers = random_numbers(rng)
    largest = rng.random() < 0.55
    patterns = LARGEST if largest else SMALLEST
    core = expand(rng, rng.choice(patterns), l=join_list(rng, list(map(str, numbers))))
    answer = str(max(numbers) if largest else min(numbers))
    return Problem(f"sort:{sorted(numbers)}", dress(rng, core), answer, answer)


def random_words(rng: random.Random) -> list[str]:
    """Two to five different words or names."""
    count = rng.choices((2, 3, 4, 5), weights=(1, 6, 6, 3))[0]
    if rng.random() < 0.15:
        return rng.sample(FIRST_NAMES, count)
    words: list[str] = []
    while len(words) < count:
        word = rng.choice(COMMON) if rng.random() < 0.8 else pseudo_word(rng, 2)
        if word not in words:
            words.append(word)
    return words


def sort_words(rng: random.Random) -> Problem:
    """Alphabetically, rarely in reverse."""
    words = random_words(rng)
    backwards = rng.random() < 0.12
    pattern = _REVERSE_ALPHABETICAL if backwards else rng.choice(ALPHABETICAL)
    core = expand(rng, pattern, l=join_list(rng, words))
    prompt = dress(rng, core, question=False, keep_start=pattern.startswith("$"))
    answer = commas(sorted(words, reverse=backwards))
    return Problem(f"sort:{sorted(words)}", prompt, answer, answer)


DRAWS: dict[Draw, float] = {sort_numbers: 5, extreme: 2.5, sort_words: 4}
