"""The kernels on other processors, where there are a cross compiler and an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from engine.native.kernels import build

SOURCE = Path(__file__).with_name("self_check.cpp")


@pytest.mark.parametrize(
    ("compiler", "march", "emulator"),
    [
        pytest.param("c++", "native", "", id="this processor"),
        pytest.param("aarch64-linux-gnu-g++", "armv8.2-a+dotprod", "qemu-aarch64", id="dotprod"),
        pytest.param("aarch64-linux-gnu-g++", "armv8-a", "qemu-aarch64", id="NEON"),
    ],
)
def test_checks_itself(compiler: str, march: str, emulator: str, tmp_path: Path) -> None:
    missing = [tool for tool in (compiler, emulator) if tool and shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} (Debian: g++-aarch64-linux-gnu, qemu-user)")
    flags = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]
    program = tmp_path / "self_check"
    subprocess.run(
        [compiler, *flags, f"-march={march}", f"-I{Path(build.__file__).parent}", str(SOURCE)]
        + (["-static"] if emulator else [])
        + ["-o", str(program)],
        check=True,
        timeout=120,
    )
    command = [emulator, str(program)] if emulator else [str(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "")
