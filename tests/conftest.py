"""Settings that must be made before torch is imported, and for every server of the tests."""

import os
import tempfile
from pathlib import Path

import pytest

# As for the engine process (see ``engine.environment``): tests share their cores with servers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Plans must not depend on what was measured on the machine that runs the tests.
os.environ["RIDGELINE_DATA_HOME"] = f"{tempfile.gettempdir()}/ridgeline-tests-{os.getpid()}"

_HAS_GPU = Path("/dev/nvidiactl").exists()
if not _HAS_GPU:
    # Triton's kernels run in its interpreter; it looks for this when it is imported.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not _HAS_GPU:
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
