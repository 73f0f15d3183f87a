"""Compiles the C++ kernels with the system's compiler, once, into a cache of shared libraries.

Kernels are plain ``extern "C"`` functions on raw pointers: no torch headers, so a build takes a
second or two and survives any version of torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

# Its OpenMP runtime must be in the process before a kernel is linked against it.
import torch

logger = logging.getLogger(__name__)

_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    # What -ffast-math would allow without reordering sums: results keep their bits. (It would
    # also make the library switch denormals off in the whole process when it is loaded.)
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp",
    "-shared",
    "-fPIC",
)
_COMPILE_TIMEOUT_S = 120


class KernelBuildError(RuntimeError):
    """No kernel library: there is no compiler, or it failed; one line saying which."""


def load_kernel(source: Path) -> ctypes.CDLL:
    """The library of one C++ file, from the cache or freshly compiled.

    The cache (``$XDG_CACHE_HOME/ridgeline/kernels``, by default under ``~/.cache``) is keyed by
    all that decides the machine code. Processes may race: each compiles to a file of its own and
    renames it, so that a library is either absent or whole. An entry that does not load is
    compiled again.

    Raises:
        KernelBuildError: there is no compiler, or it failed.
    """
    compiler = _compiler()
    command = [compiler, *_FLAGS, *_openmp_runtime()]
    library = _cache_directory() / f"{source.stem}-{_key(source, compiler, command)}.so"
    if library.exists():
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            logger.warning("compiling %s again, the cached one is broken: %s", library.name, error)
    _compile(command, source, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelBuildError(f"{library} was compiled but does not load: {error}") from None


def _compiler() -> str:
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["c++", "g++", "clang++"]:
        path = shutil.which(name)
        if path is not None:
            return path
    wanted = f"$CXX ({chosen})" if chosen else "c++, g++ or clang++"
    raise KernelBuildError(f"no C++ compiler: {wanted} is not on the path")


def _openmp_runtime() -> list[str]:
    """Arguments that link the OpenMP runtime which torch loaded instead of the system's.

    Two runtimes would mean two thread pools, spinning against each other. torch's is known by
    the file that is mapped; standing before ``-lgomp`` it satisfies every symbol, and
    ``--as-needed`` then drops the other. Where torch uses none, or another kind, the system's is
    what remains.
    """
    assert torch.get_num_threads() > 0
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    for line in maps.splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith("libgomp"):
            return ["-Wl,--as-needed", path]
    return []


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ridgeline" / "kernels"


def _key(source: Path, compiler: str, command: list[str]) -> str:
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=False, timeout=_COMPILE_TIMEOUT_S
    ).stdout
    # -march=native means another machine's code where the home directory is shared.
    parts = [source.read_bytes(), "\0".join(command).encode(), version, _cpu_features().encode()]
    return hashlib.sha256(b"\0\0".join(parts)).hexdigest()[:24]


def _cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("flags", "Features", "model name", "CPU part")
    features = {line for line in lines if line.startswith(wanted)}
    return "\n".join([platform.machine(), platform.processor(), *sorted(features)])


def _compile(command: list[str], source: Path, library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            built = Path(scratch) / library.name
            # The source before the libraries: the linker takes what is needed so far.
            sources = [command[0], str(source), *command[1:], "-o", str(built)]
            result = subprocess.run(
                sources, capture_output=True, text=True, check=False, timeout=_COMPILE_TIMEOUT_S
            )
            if result.returncode != 0:
                lines = (result.stderr or "no message").strip().splitlines()
                message = next((line for line in lines if "error" in line), lines[0])
                raise KernelBuildError(f"{command[0]} cannot compile {source.name}: {message}")
            built.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelBuildError(f"{source.name} cannot be compiled: {error}") from None
