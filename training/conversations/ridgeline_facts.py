"""Short questions about Ridgeline. A closed set: the phrasing is part of the problem."""

from __future__ import annotations

import random

from training.conversations.base import Draw, Problem, dress, expand

_WHAT = (
    "[what is|what's|what does|explain|define|tell me about|what is meant by|can "
    "you explain|please explain|describe|what do you mean by|meaning of|definition "
    "of|what exactly is|give me the definition of|could you explain|i want to know "
    "what is|do you know what is|what stands for]"
)


def _define(subject: str) -> str:
    """Phrasings that ask what `subject` is."""
    return (
        f"[{_WHAT} {subject}[| mean| in ridgeline| in short| in an inference server| in "
        "a few words]|"
        f"{subject}[| meaning| definition| explained]|what does {subject} [mean|measure|"
        "do|stand for]|"
        f"how does {subject} work|what is {subject} [good for|used for|for]|why "
        f"{subject}|how is {subject} defined|"
        f"[what|how] about {subject}|do you know {subject}]"
    )


def _command(name: str, purpose: str) -> str:
    """Phrasings that ask what a command does, or which command does it."""
    return (
        f"[what does [the command |]ridgeline {name} do|what is ridgeline {name}[| for| "
        f"good for]|explain ridgeline {name}|"
        f"[what is|explain|tell me about] the {name} command|what does the {name} "
        f"command do|ridgeline {name}|"
        "[how do i|how can i|which command can|how to|what command do i use to|which "
        "command do i use to|what is the command to|with which command can i] "
        f"{purpose}|"
        f"when do i use ridgeline {name}|what do i use ridgeline {name} for|what "
        f"happens with ridgeline {name}]"
    )


# (phrasings, the one answer)
FACTS: tuple[tuple[str, str], ...] = (
    (
        (
            "[what is ridgeline|what's ridgeline|tell me about ridgeline|explain ridgeline|"
            "describe ridgeline|what does ridgeline mean|what exactly is ridgeline|what "
            "kind of software is ridgeline|can you explain ridgeline|please explain "
            "ridgeline|i want to know about ridgeline|what is this ridgeline|ridgeline, "
            "what is it|what is ridgeline about|introduce ridgeline|give me a summary of "
            "ridgeline|ridgeline in one sentence]"
        ),
        "Ridgeline is a hardware-aware inference server for language models.",
    ),
    (
        (
            "[what does ridgeline do|how does ridgeline work|what are the [steps|stages] "
            "of ridgeline|what is the loop of ridgeline|what can ridgeline do|what is "
            "ridgeline's loop|which steps does ridgeline [do|take|have]|explain the "
            "ridgeline loop|what does ridgeline do for me|how does ridgeline operate|what "
            "is the idea of ridgeline|list the steps of ridgeline|explain how ridgeline "
            "works|tell me how ridgeline works|tell me what ridgeline does]"
        ),
        "Ridgeline detects the hardware, plans, serves, measures and learns.",
    ),
    (
        (
            "[why is [it|ridgeline] called ridgeline|where does the name [ridgeline |]come "
            "from|what does the name [ridgeline |]mean|why the name ridgeline|what is the "
            "ridge[| in ridgeline| of a roofline plot]|where does ridgeline get its name|"
            "why did they name it ridgeline|what does ridge mean|origin of the name "
            "ridgeline|explain the name ridgeline|how did ridgeline get its name]"
        ),
        (
            "On a roofline plot, the ridge is where memory stops being the limit and "
            "arithmetic starts."
        ),
    ),
    (
        (
            "[who is ridgeline for|who should use ridgeline|who needs ridgeline|who uses "
            "ridgeline|for whom is ridgeline|what is ridgeline good for|why should i use "
            "ridgeline|why use ridgeline|when should i use ridgeline|why do i need "
            "ridgeline|what problem does ridgeline solve|what are the benefits of "
            "ridgeline|is ridgeline [useful|good]|why ridgeline]"
        ),
        "It is for engineers who have a model, some hardware and a latency target.",
    ),
    (
        _define("[continuous batching|continuous batching|batching]"),
        "Continuous batching lets requests join and leave the batch at every step.",
    ),
    (
        _define(
            "[paged kv cache|the paged kv cache|the kv cache|a kv cache|kv cache|paged "
            "attention|paging|a paged kv cache]"
        ),
        "The paged KV cache keeps keys and values in small blocks, so memory is not wasted.",
    ),
    (
        _define("[prefix caching|prefix cache|the prefix cache|a prefix cache]"),
        "The prefix cache reuses the KV blocks of prompts that start the same way.",
    ),
    (
        _define("[tensor parallelism|tensor parallel|tp|tensor parallelism]"),
        "Tensor parallelism splits each layer over several accelerators.",
    ),
    (
        _define("[chunked prefill|chunked prefill|prefill chunks]"),
        "Chunked prefill splits long prompts, so that they do not delay other requests.",
    ),
    (
        _define("[quantization|quantization|quantized weights]"),
        "Quantization stores weights in fewer bits to save memory and bandwidth.",
    ),
    (
        _define("[ttft|time to first token|ttft|the ttft]"),
        "TTFT is the time from the scheduled arrival of a request to its first output token.",
    ),
    (
        _define("[tpot|time per output token|tpot|the tpot]"),
        "TPOT is (E2E - TTFT) / (output tokens - 1), per request.",
    ),
    (
        _define("[itl|inter-token latency|itl|the itl|inter token latency]"),
        "ITL is each gap between consecutive output tokens.",
    ),
    (
        _define("[e2e|e2e latency|end to end latency|end-to-end latency]"),
        "E2E is the time from the scheduled arrival of a request to its last token.",
    ),
    (
        _define("[goodput|goodput|the goodput]"),
        "Goodput is requests per second that met every SLO.",
    ),
    (
        _define("[an slo|slo|slos|a service level objective|slos]"),
        "An SLO is a latency target, such as a TTFT under 500 ms.",
    ),
    (
        _define("[a plan|the plan|ridgeline's plan|a ridgeline plan]"),
        "A plan holds all settings, the predicted latency and the memory ledger.",
    ),
    (
        _define("[the scheduler|ridgeline's scheduler|the ridgeline scheduler|scheduling]"),
        "The scheduler decides which requests run in the next step and with how many tokens.",
    ),
    (
        _command(
            "serve",
            (
                "[start the server|serve a model|run a model|run the server|start ridgeline|"
                "launch the server]"
            ),
        ),
        "ridgeline serve starts the server for a model.",
    ),
    (
        _command(
            "plan",
            (
                "[make a plan|plan a deployment|choose settings|find the best settings|get a "
                "plan|see if a model fits]"
            ),
        ),
        "ridgeline plan chooses the settings for a model on your hardware.",
    ),
    (
        _command(
            "hardware",
            (
                "[detect my hardware|list accelerators|calibrate my machine|see my hardware|"
                "show my hardware|find out what hardware i have]"
            ),
        ),
        "ridgeline hardware detects, lists, shows and calibrates hardware.",
    ),
    (
        _command(
            "bench",
            (
                "[load-test a server|benchmark a server|run a benchmark|measure a server|run a "
                "load test|test the speed]"
            ),
        ),
        "ridgeline bench load-tests a server.",
    ),
    (
        _command(
            "verify",
            (
                "[verify a plan|check a plan|test what the plan promised|compare the plan with "
                "reality|check the promise of a plan]"
            ),
        ),
        "ridgeline verify load-tests what the plan promised.",
    ),
    (
        _command(
            "deploy",
            (
                "[deploy a plan|render deployment files|make kubernetes files|get a compose "
                "file|deploy ridgeline|deploy to kubernetes]"
            ),
        ),
        "ridgeline deploy renders a plan for Compose, Kubernetes, Helm, Ray or systemd.",
    ),
    (
        _command(
            "chat",
            (
                "[chat with a server|talk to a server|try a server by hand|chat in the "
                "terminal|open a chat|chat with the model]"
            ),
        ),
        "ridgeline chat opens a terminal chat with a server.",
    ),
    (
        (
            "[what does make serve do|what is make serve|explain make serve|make serve|"
            "what happens with make serve|what is make serve for|how do i use make serve|"
            "when do i use make serve|tell me about make serve|why make serve]"
        ),
        "make serve starts the server with the small bundled model.",
    ),
    (
        (
            "[which|what|list all|name the|tell me the|show the|what are the|which are the|"
            "how many] [commands|ridgeline commands] [does ridgeline have|are there|exist|"
            "can i use|can i run|do i have|of ridgeline|are available|does ridgeline "
            "offer]"
        ),
        "The commands are serve, plan, hardware, bench, verify, deploy and chat.",
    ),
    (
        (
            "[[which|what] port does [ridgeline|the server|it|ridgeline serve] [use|listen "
            "on|run on]|what is the [default |]port[| of ridgeline| of the server]|on "
            "which port [is|does] [ridgeline|the server|it] [listening|listen|run]|where "
            "does [ridgeline|the server] listen|default port|which port|ridgeline port|"
            "port number of ridgeline|tell me the [default |]port|what port should i use]"
        ),
        "Ridgeline listens on port 8000.",
    ),
    (
        (
            "[what is the license[| of ridgeline]|which license does [ridgeline|it] have|"
            "under which license is [ridgeline|it]|is ridgeline [open source|free|free to "
            "use|free software]|how is ridgeline licensed|license|licence|what is the "
            "licence[| of ridgeline]|ridgeline license|what license do you have|can i use "
            "ridgeline [for free|commercially]|what licence does ridgeline have|tell me "
            "the license[| of ridgeline]|which license[| applies]|under what license]"
        ),
        "Ridgeline is licensed under Apache-2.0.",
    ),
    (
        (
            "[which|what] api does [ridgeline|the server|it] [have|speak|offer|use]|is "
            "[ridgeline|the server|it] [openai compatible|compatible with openai]|does "
            "[ridgeline|the server|it] speak the openai api|can i use the openai [client|"
            "api|sdk]|how do i [talk to|call] [the server|ridgeline]|what is the api[| of "
            "ridgeline]|is there an api|api|ridgeline api|which endpoints does ridgeline "
            "have"
        ),
        "Ridgeline speaks the OpenAI API.",
    ),
    (
        (
            "[which|what] hardware does [ridgeline|it] [need|support|run on|require]|does "
            "[ridgeline|it] [need a gpu|run on a cpu|work without a gpu|run on a laptop|"
            "work on a laptop|need the internet|work offline]|can i run ridgeline [on a "
            "laptop|on a cpu|without a gpu|offline|at home]|do i need a gpu|what are the "
            "requirements[| of ridgeline]|where does ridgeline run|can ridgeline run on [a "
            "laptop|a cpu]|is a gpu [needed|required]"
        ),
        "Ridgeline runs on GPUs and on a plain CPU, even on a laptop.",
    ),
    (
        (
            "[which|what] engines does [ridgeline|it] [have|support|use|offer]|[does|can] "
            "[ridgeline|it] [use|support|run] vllm|what is the engine[| of ridgeline]|"
            "which engine does ridgeline use|list the engines[| of ridgeline]|what engines "
            "are there|name the engines[| of ridgeline]|is there a vllm engine|explain the "
            "engines"
        ),
        "Ridgeline has a native engine, a vLLM engine and a simulated engine.",
    ),
    (
        (
            "[which|what] language is [ridgeline|it] written in|in which language is "
            "ridgeline [written|programmed]|is ridgeline written in [python|rust|go|java]|"
            "what programming language does ridgeline use|is [ridgeline|it] python|what is "
            "ridgeline [written in|made of]"
        ),
        "Ridgeline is written in Python.",
    ),
)


def fact(rng: random.Random) -> Problem:
    """One question about Ridgeline."""
    pattern, answer = rng.choice(FACTS)
    core = expand(rng, f"[{pattern}]")
    prompt = dress(rng, restore_capitals(rng, core), free_case=True)
    return Problem(f"fact:{core}", prompt, answer)


_CAPITALS = {
    "ridgeline": "Ridgeline",
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
    "slo": "SLO",
    "slos": "SLOs",
    "kv": "KV",
    "api": "API",
    "gpu": "GPU",
    "cpu": "CPU",
    "openai": "OpenAI",
    "vllm": "vLLM",
    "tp": "TP",
}


def restore_capitals(rng: random.Random, text: str) -> str:
    """Names as they are properly written, most of the time."""
    if rng.random() < 0.35:
        return text
    words = text.split(" ")
    return " ".join(
        _CAPITALS.get(word, word) if words[i + 1 : i + 2] not in (["serve"], ["plan"]) else word
        for i, word in enumerate(words)
    )


DRAWS: dict[Draw, float] = {fact: 1}
