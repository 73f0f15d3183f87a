from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from server import auth
from server.auth import ApiKeys, read_keys
from server.rate_limits import Rates
from tests.server.conftest import Serve


async def get_models(serve: Serve, keys: ApiKeys, **headers: str) -> int:
    response = await serve(api_keys=keys).client.get("/v1/models", headers=headers)
    return response.status_code


async def test_any_of_several_keys_opens(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-file name=alice requests=5\n\n  other   # a colleague's\n")
    keys = ApiKeys(["one", "two"], file)
    for key in ("one", "two", "from-file", "other"):
        assert await get_models(serve, keys, authorization=f"Bearer {key}") == 200
        assert await get_models(serve, keys, **{"x-api-key": key}) == 200
    for key in ("three", "", "#", "name=alice", "é"):
        headers = {"authorization": f"Bearer {key}".encode("latin-1")}
        response = await serve(api_keys=keys).client.get("/v1/models", headers=headers)
        assert response.status_code == 401
    alice = keys.find("from-file")
    assert alice is not None
    assert (alice.name, alice.rates) == ("alice", Rates(requests=5))
    other = keys.find("other")
    assert other is not None
    assert other.name == "line-4"


async def test_each_key_has_a_minute_of_its_own(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("slow requests=1\nfast\n")
    served = serve("4", api_keys=ApiKeys((), tmp_path / "keys"), rates=Rates(requests=3))

    async def ask(key: str) -> int:
        served.client.headers["authorization"] = f"Bearer {key}"
        return (await served.chat()).status_code

    assert [await ask("slow") for _ in range(2)] == [200, 429]
    assert [await ask("fast") for _ in range(4)] == [200, 200, 200, 429]


def test_a_file_that_changes_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auth, "_LOOK_EVERY_S", 0.0)
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = ApiKeys((), file)
    assert keys.find("old")
    file.write_text("newer\n")
    assert keys.find("newer")
    assert keys.find("old") is None
    file.write_text("secret-thing nonsense\n")
    os.utime(file, ns=(1, 1))
    assert keys.find("newer")  # stays
    assert "the keys stay as they were" in caplog.text
    assert "secret-thing" not in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("a\nb colour=red\n", "line 2: 'colour' is unknown"),
        ("a requests=0\n", "line 1: requests must be a number above 0, not '0'"),
        ("a tokens=many\n", "tokens must be a number above 0, not 'many'"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_keys(tmp_path / "keys")
    with pytest.raises(ValueError, match="cannot read"):
        read_keys(tmp_path / "missing")


async def test_other_pages_may_ask_only_if_they_are_allowed(serve: Serve) -> None:
    asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
    closed = await serve(api_key="k").client.options("/v1/chat/completions", headers=asked)
    assert closed.status_code == 401
    served = serve("4", api_key="k", allowed_origins=("https://page.example",))
    preflight = await served.client.options("/v1/chat/completions", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://page.example"
    served.client.headers.update({"authorization": "Bearer k", "origin": "https://page.example"})
    answer = await served.chat()
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
