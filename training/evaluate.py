"""Held-out evaluation of the bundled model, over HTTP or on local files.

python -m training.evaluate --base-url http://127.0.0.1:8000/v1
python -m training.evaluate --local server/bundled_model
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from training.conversations import KINDS, held_out_cases
from training.conversations.base import Message, Tool

SEED = 30_000
CASES_PER_KIND = 150
LONGEST_ANSWER = 192

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
Calls = list[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """One held-out prompt and its canonical answer: a text, or else tool calls."""

    kind: str
    messages: list[Message]
    tools: list[Tool]
    text: str
    calls: Calls


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered; `error` is set where no answer came."""

    text: str
    calls: Calls
    error: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case with the reply to it."""

    case: Case
    reply: Reply

    @property
    def correct(self) -> bool:
        """Exact match of the text, or of the names and parsed arguments of the calls."""
        if self.reply.error:
            return False
        if self.case.calls or self.reply.calls:
            return self.reply.calls == self.case.calls
        return self.reply.text.strip() == self.case.text.strip()


def load_cases(kinds: list[str], per_kind: int) -> list[Case]:
    """The evaluation set; always the same for the same arguments."""
    cases = []
    for kind in kinds:
        for asked, answer in held_out_cases(kind, per_kind, SEED):
            calls = [
                (call["function"]["name"], call["function"]["arguments"])
                for call in answer.get("tool_calls", [])
            ]
            messages = [_over_the_wire(message) for message in asked.messages]
            cases.append(Case(kind, messages, asked.tools, answer["content"], calls))
    return cases


def _over_the_wire(message: Message) -> Message:
    """A message as the OpenAI API wants it: call ids, arguments as a JSON string."""
    if message["role"] == "tool":
        return {**message, "tool_call_id": "call_0"}
    if not message.get("tool_calls"):
        return message
    calls = [
        {
            "id": "call_0",
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def read_reply(text: str, tool_calls: list[dict[str, Any]] | None = None) -> Reply:
    """Calls from the API's `tool_calls`, else from `<tool_call>` blocks in the text."""
    try:
        if tool_calls:
            functions = [call["function"] for call in tool_calls]
            pairs = [(one["name"], json.loads(one["arguments"] or "{}")) for one in functions]
            return Reply(text, pairs)
        blocks = [json.loads(block) for block in _CALL.findall(text)]
        return Reply(text, [(block["name"], block["arguments"]) for block in blocks])
    except (ValueError, KeyError, TypeError) as error:
        return Reply(text, [], f"unreadable tool call: {error}")


async def ask_server(
    cases: list[Case], base_url: str, *, model: str | None, api_key: str | None, concurrency: int
) -> list[Outcome]:
    """Ask every case of an OpenAI-compatible server, at most `concurrency` at a time."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limit = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=300.0) as client:
        if model is None:
            listed = (await client.get("models")).raise_for_status().json()
            model = str(listed["data"][0]["id"])

        async def ask(case: Case) -> Outcome:
            body: dict[str, Any] = {
                "model": model,
                "messages": case.messages,
                "temperature": 0,
                "max_tokens": LONGEST_ANSWER,
            }
            if case.tools:
                body["tools"] = case.tools
            async with limit:
                try:
                    response = await client.post("chat/completions", json=body)
                    answer = response.raise_for_status().json()["choices"][0]["message"]
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    return Outcome(case, Reply("", [], f"{type(error).__name__}: {error}"))
            return Outcome(case, read_reply(answer.get("content") or "", answer.get("tool_calls")))

        return list(await asyncio.gather(*map(ask, cases)))


def ask_local(
    cases: list[Case], directory: Path, dtype: str, batch_size: int = 64
) -> list[Outcome]:
    """Decode every case greedily by transformers, in batches of prompts of like length."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))

    def render(case: Case) -> str:
        tools: Any = case.tools or None
        return str(
            tokenizer.apply_chat_template(
                case.messages, tools=tools, add_generation_prompt=True, tokenize=False
            )
        )

    pending = sorted(((render(case), case) for case in cases), key=lambda one: len(one[0]))
    outcomes = []
    for start in range(0, len(pending), batch_size):
        batch = pending[start : start + batch_size]
        inputs = tokenizer(
            [text for text, _ in batch], return_tensors="pt", padding=True, padding_side="left"
        )
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        answers = tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        outcomes += [
            Outcome(case, read_reply(answer))
            for (_, case), answer in zip(batch, answers, strict=True)
        ]
    return outcomes


def summarize(outcomes: list[Outcome]) -> dict[str, Any]:
    """Correct and total per kind and overall."""
    kinds: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(outcome.case.kind for outcome in outcomes):
        marks = [outcome.correct for outcome in outcomes if outcome.case.kind == kind]
        kinds[kind] = _score(marks)
    errors = sum(bool(outcome.reply.error) for outcome in outcomes)
    overall = _score([outcome.correct for outcome in outcomes])
    return {"kinds": kinds, "overall": overall, "errors": errors}


def _score(marks: list[bool]) -> dict[str, float]:
    return {"correct": sum(marks), "total": len(marks), "exact_match": sum(marks) / len(marks)}


def show(console: Console, summary: dict[str, Any], outcomes: list[Outcome], failures: int) -> None:
    """The table, and the first `failures` wrong answers of each kind."""
    table = Table("kind", "correct", "prompts", "exact match", title="Held-out evaluation")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, score in [*summary["kinds"].items(), ("overall", summary["overall"])]:
        share = f"{100 * score['exact_match']:.1f} %"
        table.add_row(kind, str(score["correct"]), str(score["total"]), share)
    console.print(table)
    if summary["errors"]:
        first = next(outcome.reply.error for outcome in outcomes if outcome.reply.error)
        console.print(f"{summary['errors']} without a readable answer, first: {first}")
    for kind in summary["kinds"]:
        wrong = [one for one in outcomes if one.case.kind == kind and not one.correct]
        for outcome in wrong[:failures]:
            said = outcome.case.messages[-1]["content"]
            console.print(
                f"{kind}: {said!r}\n  want {outcome.case.text or outcome.case.calls!r}\n"
                f"  got  {outcome.reply.text!r} {outcome.reply.calls or ''}",
                markup=False,
            )


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--base-url", help="an OpenAI-compatible server, with its /v1")
    where.add_argument("--local", type=Path, help="a model directory, run by transformers")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--per-kind", type=int, default=CASES_PER_KIND)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--model", help="model name to ask for; default: the first listed")
    parser.add_argument("--api-key")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--failures", type=int, default=0, help="wrong answers to print per kind")
    parser.add_argument("--json", type=Path, help="write the scores and all answers here")
    return parser.parse_args(arguments)


def _to_json(outcome: Outcome) -> dict[str, Any]:
    case, reply = outcome.case, outcome.reply
    return {
        "kind": case.kind,
        "messages": case.messages,
        "tools": case.tools,
        "expected": case.text or case.calls,
        "answer": reply.text,
        "calls": reply.calls,
        "error": reply.error,
        "correct": outcome.correct,
    }


def main(arguments: list[str]) -> int:
    """Run the evaluation; non-zero when some prompt got no answer at all."""
    options = parse(arguments)
    console = Console()
    cases = load_cases(options.kinds, options.per_kind)
    started = time.monotonic()
    if options.local:
        outcomes = ask_local(cases, options.local, options.dtype)
    else:
        base_url = options.base_url.rstrip("/") + "/"
        try:
            outcomes = asyncio.run(
                ask_server(
                    cases,
                    base_url,
                    model=options.model,
                    api_key=options.api_key,
                    concurrency=options.concurrency,
                )
            )
        except httpx.HTTPError as error:
            console.print(f"cannot reach {base_url}: {error}", markup=False)
            return 1
    summary = summarize(outcomes)
    show(console, summary, outcomes, options.failures)
    console.print(f"{len(cases)} prompts in {time.monotonic() - started:.0f} s")
    if options.json:
        content = {**summary, "answers": [_to_json(outcome) for outcome in outcomes]}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        options.json.write_text(text, encoding="utf-8")
    return 1 if any(outcome.reply.error and not outcome.reply.text for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
