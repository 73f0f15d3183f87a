from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.server_process import ServerProcess, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The bundled model, shared by all tests that leave the server as they found it."""
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(log) as process:
        process.wait_until_ready()
        yield process
