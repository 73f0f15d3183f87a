from __future__ import annotations

import io
import json
from collections.abc import Generator
from typing import Any

import httpx
import pytest
from rich.console import Console

from server import chat_client
from server.chat_client import ChatOptions, Conversation, RefusedError, request_body, stream_answer

OPTIONS = ChatOptions("http://test")


def chunk(content: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": content}}]}).encode() + b"\n\n"


def client(*chunks: bytes, asked: list[Any] | None = None, status: int = 200) -> httpx.Client:
    end = b"data: [DONE]\n\n" if status == 200 else b""

    def handle(request: httpx.Request) -> httpx.Response:
        if asked is not None:
            asked.append(json.loads(request.content))
        return httpx.Response(status, content=b"".join(chunks) + end)

    return httpx.Client(base_url="http://test", transport=httpx.MockTransport(handle))


def test_only_what_was_chosen_is_sent() -> None:
    assert request_body(OPTIONS, []) == {"messages": [], "stream": True}
    options = ChatOptions("http://test", model="m", max_tokens=5, temperature=0.0)
    assert request_body(options, []) == {
        "messages": [],
        "stream": True,
        "model": "m",
        "max_tokens": 5,
        "temperature": 0.0,
    }


def test_an_answer_is_streamed() -> None:
    pieces = list(stream_answer(client(chunk("It "), chunk("is 4.")), OPTIONS, []))
    assert pieces == ["It ", "is 4."]


def test_errors_are_told_in_the_servers_words() -> None:
    error = b'{"error": {"message": "too long"}}'
    with pytest.raises(RefusedError, match="too long"):
        list(stream_answer(client(error, status=400), OPTIONS, []))
    with pytest.raises(RefusedError, match="too long"):
        list(stream_answer(client(b"data: " + error + b"\n\n"), OPTIONS, []))
    with pytest.raises(RefusedError, match="502"):
        list(stream_answer(client(b"<html>", status=502), OPTIONS, []))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the user types; an exception is a key."""
    lines: list[Any] = []

    def read() -> str:
        line = lines.pop(0) if lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return str(line)

    monkeypatch.setattr(chat_client, "_read_line", read)
    return lines


def talk(session: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> str:
    output = io.StringIO()
    monkeypatch.setattr(chat_client, "Console", lambda **_: Console(file=output))
    chat_client._talk(session, OPTIONS, "tiny")
    return output.getvalue()


def test_turns_add_up_until_they_are_forgotten(
    typed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    typed += ["One", "Two", "/reset", "Three", "/system Be kind.", "Four", KeyboardInterrupt()]
    typed += ["/what", "", "/exit", "never"]
    output = talk(client(chunk("ok"), asked=asked), monkeypatch)
    contents = [[message["content"] for message in body["messages"]] for body in asked]
    assert contents == [["One"], ["One", "ok", "Two"], ["Three"], ["Be kind.", "Four"]]
    assert output.count("ok") == 4
    assert "/system TEXT" in output
    assert typed == ["never"]


def test_ctrl_c_stops_the_answer_and_keeps_the_session(
    typed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations: list[list[dict[str, str]]] = []

    def interrupted(_: Any, __: Any, messages: list[dict[str, str]]) -> Generator[str, None, None]:
        conversations.append(messages)
        yield "half an"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_client, "stream_answer", interrupted)
    typed += ["One", "Two"]
    output = talk(client(), monkeypatch)
    assert output.count("half an (stopped)") == 2
    assert [message["content"] for message in conversations[1]] == ["One", "half an", "Two"]


def test_a_refused_message_is_forgotten(typed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    typed += ["One", "Two"]
    session = client(b'{"error": {"message": "no"}}', asked=asked, status=400)
    assert talk(session, monkeypatch).count("no\n") == 2
    assert len(asked[1]["messages"]) == 1


def test_an_answer_cannot_drive_the_terminal() -> None:
    assert chat_client.printable("a\x1b[2J\x07\tb\n\x9b👩‍👧é") == "a[2J\tb\n👩‍👧é"


def test_the_system_prompt_comes_first() -> None:
    conversation = Conversation(system="Be kind.")
    conversation.add("Hi", "Hello")
    roles = [message["role"] for message in conversation.messages("Bye")]
    assert roles == ["system", "user", "assistant", "user"]
