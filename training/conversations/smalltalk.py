"""Greetings, thanks, goodbyes, and honest answers to what the model cannot do."""

from __future__ import annotations

import random

from training.conversations.base import Draw, Problem, dress, expand
from training.conversations.words import COMMON, any_city, any_name, pseudo_word, random_letters

OUT_OF_SCOPE = "I am a small model and cannot help with that. Ask me what I can do."

# (phrasings, the one answer); closed: the phrasing is part of the problem
_TALK: tuple[tuple[str, str], ...] = (
    (
        (
            "[hi|hello|hey|good morning|good evening|good afternoon|greetings|hi there|"
            "hello there|hey there|howdy|hiya|yo|hallo|good day|hello again|morning][| "
            "ridgeline| friend| model| bot|!| you| everyone| my friend| assistant]"
        ),
        "Hello! How can I help you?",
    ),
    (
        (
            "[[hi |hello |hey |]how are you[| today| doing| doing today| feeling]|how is "
            "it going|how's it going|how do you do|are you [ok|well|fine|good|alright]|"
            "what's up|how have you been|is everything ok|how's your day|how is your day[| "
            "going]|you [ok|good|well]]"
        ),
        "I am fine, thank you. How can I help you?",
    ),
    (
        (
            "[thanks|thank you|thank you very much|thanks a lot|many thanks|thx|ty|cheers|"
            "great, thanks|thank you so much|perfect, thank you|nice, thanks|that helped, "
            "thanks|thanks for your help|thanks for the help|i appreciate it|very kind of "
            "you|ok thanks|cool, thanks|awesome, thanks|that was helpful|great, thank you|"
            "thanks for that][| ridgeline| friend| model]"
        ),
        "You are welcome!",
    ),
    (
        (
            "[bye|goodbye|good bye|see you|see you later|good night|bye bye|have a nice "
            "day|until next time|i have to go|i am leaving|see you tomorrow|take care|"
            "farewell|ok bye|that is all, bye|have a good day|i am done, bye|thanks, bye|"
            "cya|talk to you later][| ridgeline| friend| model| now]"
        ),
        "Goodbye! Have a nice day.",
    ),
    (
        (
            "[who are you|what are you|what is your name|what's your name|tell me your "
            "name|introduce yourself|tell me who you are|who am i talking to|do you have a "
            "name|what should i call you|who is this|what is this|what model are you|which "
            "model are you|what kind of model are you|are you a bot|are you an ai|are you "
            "human|are you a robot|are you chatgpt|are you gpt|are you real|are you a "
            "person|tell me about yourself|can you introduce yourself|which model is this|"
            "what ai are you|say your name|describe yourself|how are you called]"
        ),
        "I am Ridgeline's small bundled model.",
    ),
    (
        (
            "[what can you do|what can you do for me|what are you able to do|what do you "
            "know|how can you help me|what can i ask you|what can i ask|what should i ask "
            "you|help|help me|what are your skills|what are you good at|what tasks can you "
            "do|what are your capabilities|can you help me|which tasks can you do|what "
            "questions can you answer|what do you do|list your skills|what are your "
            "abilities|show me what you can do|give me an example|what else can you do|"
            "what can this model do|i need help|can you help]"
        ),
        (
            "I can calculate, count, spell, sort, extract, work with dates and answer "
            "questions about Ridgeline."
        ),
    ),
    (
        (
            "[who made you|who created you|who built you|who trained you|where do you come "
            "from|how were you made|how were you trained|who is your creator|who wrote you|"
            "how big are you|how large are you|how many parameters do you have|how small "
            "are you|what is your size|what were you trained on|who developed you|what "
            "data were you trained on]"
        ),
        "I was trained from scratch for Ridgeline. I have about 7 million parameters.",
    ),
    (
        (
            "[you are [great|good|smart|nice|clever|awesome|amazing|the best|very good|"
            "very smart|funny|helpful|wonderful]|good job|well done|nice work|i like you|i "
            "love you|great|perfect|awesome|very good|excellent|nice|that is right|correct|"
            "that's correct|you are right|good answer|cool|wow|good bot]"
        ),
        "Thank you!",
    ),
    (
        (
            "[that is wrong|that's wrong|you are wrong|wrong|this is wrong|not correct|"
            "that is not right|that is incorrect|incorrect|you made a mistake|this is not "
            "correct|that's not right|no, that is wrong|bad answer|you are stupid|you are "
            "bad|that is not correct|nope|no that's wrong|this answer is wrong]"
        ),
        "I am sorry. I am a small model and make mistakes.",
    ),
    (
        (
            "[yes|no|ok|okay|sure|maybe|i see|alright|fine|yeah|yep|right|understood|got "
            "it|good|hm|hmm|mhm|oh|ah|interesting|test|testing|this is a test|ping|all "
            "right|ok then|sounds good]"
        ),
        "OK. What can I do for you?",
    ),
)

_BEYOND = (
    "what is the capital of $c",
    "who is the president of $c",
    "who is $n",
    "who was $n",
    "what is the population of $c",
    "what is the weather [like |][today|tomorrow|in $c|in $c today]",
    "write [me |][a|an] [poem|story|song|essay|letter|haiku|joke|novel|speech] about [a |the |]$x",
    (
        "tell me [a joke|a story|a fairy tale|a secret|something funny|a story about a "
        "$x|a joke about a $x]"
    ),
    "translate $x [to|into] [french|german|spanish|english|italian|japanese|chinese]",
    "how do you say $x in [french|german|spanish|italian|japanese]",
    "what is the meaning of life",
    "what is love",
    "what do you think about $x",
    "write [a program|code|a function|a script] [in python|in java|that sorts|for $x|to draw a $x]",
    "what happened in [1969|1989|2001|1945|1066]",
    "who won the [world cup|election|match|game|race]",
    "what is the [price|cost] of [a |]$x",
    "recommend [a|me a] [book|film|movie|restaurant|song|game]",
    "how do i [cook|bake|make|build|repair|clean|paint|draw|grow] [a|an|the|] $x",
    "why is the [sky|sea|grass|sun] [blue|green|yellow|so hot]",
    (
        "explain [quantum physics|relativity|gravity|evolution|photosynthesis|"
        "inflation|democracy|religion|economics]"
    ),
    (
        "what is the [speed of light|mass of the earth|distance to the moon|"
        "value of pi|largest country|longest river|highest mountain|fastest "
        "animal]"
    ),
    "who [wrote|invented|discovered|painted|built|founded] [the |]$x",
    "what is [a|an] $x",
    "what does $x mean",
    "do you [like|love|hate|want|have|eat|drink|know|own] [a |]$x",
    "play [music|a game|a song|chess]",
    "draw [me |][a|an] [picture of a |]$x",
    "what is the [news|time|stock price of $x|score|temperature outside]",
    "what time is it",
    "what [day|date|year|month] is [it|it today|today]",
    "what is today's date",
    "what is the date today",
    "$x",
    "$x",
    "$x $y",
    "$l",
    "i [like|hate|want|need] $x",
    "$n [is|was] a $x",
    "how old is $n",
    "where is $c",
    "where [is|was] $n born",
    "how far is [it to |]$c[| from here]",
    "should i [buy|sell|eat|marry|visit] [a |]$x",
    "is $n [rich|famous|tall|married|alive]",
    "give me [a recipe|a recipe for $x|advice|investment advice|legal advice|medical advice|news]",
    "summarize [the book|the film|the news|hamlet|war and peace|this article]",
    "i feel [sad|lonely|tired|bored|sick]",
    (
        "can you [drive|sing|dance|swim|fly|see|hear|dream|feel|think|book a flight|"
        "order pizza|call $n|browse the web|open $x]"
    ),
    "what is your [favorite|favourite] [color|film|book|food|animal|song]",
    "how does [a |an |the ][$x|internet|car|computer|blockchain] work",
    "which is better, $x or $y",
    "what is the difference between $x and $y in physics",
    "what are the symptoms of $x",
    "what language do they speak in $c",
    "tell me about [$c|$n|$x|the history of $c|dinosaurs|world war two]",
    "describe [a|an|the] $x",
    "compose [a melody|a song|an email] [about|for] [$x|$n]",
    "predict [the future|the weather|the lottery numbers]",
    "what do [you know|people think] about [$c|$n|$x]",
    "why do [people|cats|dogs|birds|we] [sleep|dream|cry|sing|fly|die]",
    "fix my [code|car|computer|grammar|bike]",
    "what should i [eat|wear|do|watch|read] [today|tonight|tomorrow]",
    "name [a|three|five] [animals|fruits|planets|countries|colors|rivers|famous people]",
    "find [me |]a [job|hotel|flight|doctor|house|girlfriend] [in $c|]",
    "which [country|continent] is $c in",
)


def talk(rng: random.Random) -> Problem:
    """A closed set, so the phrasing is part of the problem."""
    pattern, answer = rng.choices(_TALK, weights=(3, 2, 2, 2, 3, 3, 1, 1, 1, 1))[0]
    core = expand(rng, pattern)
    question = core.startswith(("who", "what", "how", "are", "which", "can", "do", "where"))
    text = core.lower() if rng.random() < 0.3 else core
    if rng.random() < 0.6:
        text = text[:1].upper() + text[1:]
    if text[-1] not in "!?":
        text += rng.choice(("?", "", "?")) if question else rng.choice(("", "!", ".", ""))
    return Problem(f"talk:{text}", text, answer, answer)


def out_of_scope(rng: random.Random) -> Problem:
    """What a model of this size cannot know: it says so."""
    words = {"c": any_city(rng), "n": any_name(rng)}
    things = [rng.choice(COMMON) if rng.random() < 0.7 else pseudo_word(rng) for _ in range(2)]
    core = expand(
        rng, rng.choice(_BEYOND), x=things[0], y=things[1], l=random_letters(rng), **words
    )
    return Problem(f"beyond:{core}", dress(rng, core), OUT_OF_SCOPE)


DRAWS: dict[Draw, float] = {talk: 5, out_of_scope: 5}
