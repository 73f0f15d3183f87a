"""What the README tells a new user to paste, pasted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.server_process import ServerProcess

README = (Path(__file__).parents[2] / "README.md").read_text()
README_URL = "http://127.0.0.1:8000"


def pasted(text: str, server: ServerProcess) -> str:
    assert README_URL in text
    return text.replace(README_URL, server.base_url)


def test_the_curl_line_answers(server: ServerProcess) -> None:
    (line,) = re.findall(r"^ *\$ (curl .*)$", README, re.MULTILINE)
    result = subprocess.run(
        ["bash", "-c", pasted(line, server)], capture_output=True, text=True, check=True, timeout=60
    )
    answer = json.loads(result.stdout)["choices"][0]["message"]["content"]
    assert answer in README


def test_the_python_snippet_answers(server: ServerProcess) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-c", pasted(snippet, server)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout == "3, 4, 5, 6, 7, 8, 9, 10, 11, 12\n"
