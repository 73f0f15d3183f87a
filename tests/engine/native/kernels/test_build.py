from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.native.attention.native_backend import NativeAttention
from engine.native.kernels.build import KernelBuildError, compiler_available, load_kernel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ridgeline" / "kernels"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text('#include <omp.h>\nextern "C" int answer() { return 42 + omp_in_parallel(); }')
    return path


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def test_compiles_once_and_again_when_the_source_changes(cache: Path, source: Path) -> None:
    assert load_kernel(source).answer() == 42
    (first,) = libraries(cache)
    written = first.stat().st_mtime_ns
    load_kernel(source)
    assert libraries(cache) == [first]
    assert first.stat().st_mtime_ns == written
    source.write_text(source.read_text().replace("42", "43"))
    assert load_kernel(source).answer() == 43
    assert len(libraries(cache)) == 2


def start_loading(source: Path) -> subprocess.Popen[bytes]:
    """Loads the kernel in a process of its own."""
    code = "import sys, pathlib; from engine.native.kernels.build import load_kernel; "
    code += "sys.exit(load_kernel(pathlib.Path(sys.argv[1])).answer() != 42)"
    return subprocess.Popen([sys.executable, "-c", code, str(source)])


def test_a_broken_entry_is_rebuilt(
    cache: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Another process fills the cache: a library once loaded here would stay what it is.
    assert start_loading(source).wait() == 0
    (library,) = libraries(cache)
    library.write_bytes(library.read_bytes()[:1000])
    assert load_kernel(source).answer() == 42
    assert "broken" in caplog.text
    assert libraries(cache) == [library]


def test_processes_may_race(cache: Path, source: Path) -> None:
    processes = [start_loading(source) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(libraries(cache)) == 1


def test_the_compiler_may_carry_arguments(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_text('extern "C" int answer() { return ANSWER; }')
    monkeypatch.setenv("CXX", "c++ -DANSWER=7")
    assert load_kernel(source).answer() == 7


def test_errors_are_one_line(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("this is no C++")
    with pytest.raises(KernelBuildError, match=r"cannot compile answer.cpp: .*error") as caught:
        load_kernel(source)
    assert "\n" not in str(caught.value)
    assert libraries(cache) == []
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelBuildError, match=r"no C\+\+ compiler: \$CXX \(no-such-compiler\)"):
        load_kernel(source)


def test_a_compiler_is_looked_for_without_loading_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    code = "import sys; from engine.native.kernels.build import compiler_available; "
    code += "sys.exit(not compiler_available() or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiler_available()


def test_one_openmp_runtime_serves_torch_and_the_kernel() -> None:
    NativeAttention()
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path(line.split(maxsplit=5)[-1]) for line in maps}
    names = ("libgomp", "libomp", "libiomp")
    assert len({path for path in paths if path.name.startswith(names)}) == 1
