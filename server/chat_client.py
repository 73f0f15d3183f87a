"""``ridgeline chat``: talking to a server from the terminal."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console

HELP = """\
/reset          forget the conversation
/system TEXT    set the system prompt (and forget the conversation)
/exit           leave (so does Ctrl-D); Ctrl-C stops an answer"""


class ChatError(Exception):
    """The conversation cannot go on; the message is one line for the user."""


class RefusedError(Exception):
    """The server refused this message; the conversation may go on without it."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    base_url: str
    model: str | None = None
    api_key: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None


@dataclass(slots=True)
class Conversation:
    """What has been said; grows by a question and its answer at a time."""

    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.turns, {"role": "user", "content": question}]

    def add(self, question: str, answer: str) -> None:
        self.turns.append({"role": "user", "content": question})
        self.turns.append({"role": "assistant", "content": answer})


def request_body(options: ChatOptions, messages: list[dict[str, str]]) -> dict[str, Any]:
    optional = {
        "model": options.model,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
    }
    said = {name: value for name, value in optional.items() if value is not None}
    return {"messages": messages, "stream": True, **said}


def run_chat(options: ChatOptions) -> int:
    """Chats until the user leaves; returns the process's exit status.

    From a pipe each line is a message, and only the answers are printed.

    Raises:
        ChatError: no server answers, or it refuses a message that came from a pipe.
    """
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    try:
        with httpx.Client(
            base_url=options.base_url, headers=headers, timeout=httpx.Timeout(10, read=None)
        ) as client:
            name = _model_name(client)
            if sys.stdin.isatty():
                _talk(client, options, name)
            else:
                _answer_pipe(client, options)
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        reason = str(error) or type(error).__name__
        raise ChatError(f"no server at {options.base_url}: {reason}") from error
    except RefusedError as error:
        raise ChatError(str(error)) from error
    return 0


def _model_name(client: httpx.Client) -> str:
    response = client.get("/v1/models")
    if response.status_code != httpx.codes.OK:
        raise RefusedError(_error_message(response))
    name: str = response.json()["data"][0]["id"]
    return name


def _answer_pipe(client: httpx.Client, options: ChatOptions) -> None:
    conversation = Conversation()
    for line in sys.stdin:
        question = line.strip()
        if not question:
            continue
        pieces = []
        for piece in stream_answer(client, options, conversation.messages(question)):
            pieces.append(piece)
            print(piece, end="", flush=True)
        print(flush=True)
        conversation.add(question, "".join(pieces))


def _talk(client: httpx.Client, options: ChatOptions, model: str) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{options.model or model}[/bold] [dim]at {options.base_url} · /help[/dim]")
    conversation = Conversation()
    while True:
        try:
            line = _read_line()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            continue
        if line.startswith("/"):
            if not _command(line, conversation, console):
                return
        elif line:
            _ask(client, options, conversation, line, console)


def _read_line() -> str:
    # Imported for its effect: arrow keys and history in input().
    import readline  # noqa: F401

    return input("\n> ").strip()


def _command(line: str, conversation: Conversation, console: Console) -> bool:
    """Obeys a line that begins with a slash; False means leave."""
    name, _, argument = line.partition(" ")
    match name:
        case "/exit" | "/quit":
            return False
        case "/reset":
            conversation.turns.clear()
            console.print("[dim]forgotten[/dim]")
        case "/system":
            conversation.system = argument.strip()
            conversation.turns.clear()
            console.print("[dim]system prompt set[/dim]" if argument else "[dim]removed[/dim]")
        case _:
            console.print(HELP, markup=False)
    return True


def _ask(
    client: httpx.Client,
    options: ChatOptions,
    conversation: Conversation,
    question: str,
    console: Console,
) -> None:
    pieces: list[str] = []
    try:
        # Closed at once when interrupted, so that the server stops too.
        with closing(stream_answer(client, options, conversation.messages(question))) as answer:
            for piece in answer:
                pieces.append(piece)
                console.out(printable(piece), end="")
                console.file.flush()
    except KeyboardInterrupt:
        console.print(" [dim](stopped)[/dim]", end="")
    except RefusedError as error:
        console.print(str(error), style="red", markup=False)
        return
    console.print()
    if pieces:
        conversation.add(question, "".join(pieces))


def stream_answer(
    client: httpx.Client, options: ChatOptions, messages: list[dict[str, str]]
) -> Generator[str, None, None]:
    """The pieces of the answer's text; closing the iterator closes the connection.

    Raises:
        RefusedError: the server answers with an error, at once or in the middle.
    """
    body = request_body(options, messages)
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            response.read()
            raise RefusedError(_error_message(response))
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if data == line or data == "[DONE]":
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise RefusedError(chunk["error"]["message"])
            for choice in chunk["choices"]:
                yield choice["delta"].get("content") or ""


def printable(text: str) -> str:
    """Without control characters, with which a model could drive the user's terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _error_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {response.status_code}"
