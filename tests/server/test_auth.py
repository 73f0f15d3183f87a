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
    assert "nonsense" not in caplog.text
    other = tmp_path / "other"
    other.write_text("moved".ljust(len("secret-thing nonsense")) + "\n")
    os.utime(other, ns=(1, 1))
    other.replace(file)
    assert keys.find("moved")
    file.unlink()
    assert keys.find("moved")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("a\nb colour=red\n", "line 2: only name=…, requests=… and tokens=… may follow a key"),
        ("alice sk-1\n", "line 1: only name=…, requests=… and tokens=… may follow a key"),
        ("a requests=0\n", "line 1: requests must be a number above 0"),
        ("a tokens=many\n", "line 1: tokens must be a number above 0"),
        ("a tokens=²\n", "line 1: tokens must be a number above 0"),
        ("a name=x/y\n", "line 1: a name is made of"),
        ("a name=\n", "line 1: a name is made of"),
        ("schlüssel\n", "line 1: a key is made of ASCII"),
        ("a\nb\na\n", "line 3: the key has been there before"),
        ("a name=x\nb name=x tokens=5\n", "line 2: other limits than those of a key of the same"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_keys(tmp_path / "keys")
    assert "sk-1" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot read"):
        read_keys(tmp_path / "missing")


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "ключ"])
def test_a_key_that_nobody_could_send_or_everybody_would_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="--api-key: a key is made of ASCII"):
        ApiKeys([key])


def test_a_hash_within_a_key_is_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("ab#cd #ef\n#gh\n")
    keys = ApiKeys((), tmp_path / "keys")
    assert keys.find("ab#cd")
    for other in ("ab", "#ef", "#gh", "gh", ""):
        assert keys.find(other) is None


def test_keys_of_one_name_share_its_limits(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("old name=alice tokens=5\nnew name=alice tokens=5\n")
    keys = ApiKeys((), tmp_path / "keys")
    old, new = keys.find("old"), keys.find("new")
    assert old is not None
    assert new is not None
    assert (old.name, old.rates) == (new.name, new.rates)


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
