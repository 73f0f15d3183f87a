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
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

FLAGS = (
    "-std=c++20",
    "-O3",
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
_DIGEST_BYTES = hashlib.sha256().digest_size


class KernelBuildError(RuntimeError):
    """No kernel library: there is no compiler, or it failed; one line saying which."""


def load_kernel(source: Path, architecture: str = "native") -> ctypes.CDLL:
    """The library of one C++ file and the headers beside it, from the cache or freshly compiled.

    ``architecture`` is the compiler's ``-march``: this machine's, or a lesser one that it can
    run as well.

    The cache (``$XDG_CACHE_HOME/ridgeline/kernels``, by default under ``~/.cache``) is keyed by
    all that decides the machine code. Processes may race: each compiles to a file of its own and
    renames it, so that a library is either absent or whole. An entry that was damaged since is
    compiled again.

    Raises:
        KernelBuildError: there is no compiler, or it failed.
    """
    compiler = _compiler()
    options = [*FLAGS, f"-march={architecture}", *_openmp_runtime()]
    library = cache_directory() / f"{source.stem}-{_key(source, compiler, options)}.so"
    if library.exists():
        # A truncated library does not fail to load, it kills the process: look before loading.
        if _is_whole(library):
            return ctypes.CDLL(str(library))
        logger.warning("compiling %s again: the cached one is broken", library.name)
    _compile(compiler, options, source, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelBuildError(f"{library} was compiled but does not load: {error}") from None


def compiler_available() -> bool:
    """Whether there is a C++ compiler; says nothing of whether it can compile the kernels."""
    try:
        _compiler()
    except KernelBuildError:
        return False
    return True


def _is_whole(library: Path) -> bool:
    content = library.read_bytes()
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return hashlib.sha256(body).digest() == digest


def _compiler() -> list[str]:
    """The command that compiles; ``$CXX`` may carry arguments, as in ``ccache g++``."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]:
        path = shutil.which(command[0])
        if path is not None:
            return [path, *command[1:]]
    wanted = f"$CXX ({chosen[0]})" if chosen else "c++, g++ or clang++"
    raise KernelBuildError(f"no C++ compiler: {wanted} is not on the path")


def _openmp_runtime() -> list[str]:
    """Arguments that link the OpenMP runtime which torch loaded instead of the system's.

    Two runtimes would mean two thread pools, spinning against each other. torch's is known by
    the file that is mapped; standing before ``-lgomp`` it satisfies every symbol, and
    ``--as-needed`` then drops the other. Where torch uses none, or another kind, the system's is
    what remains.
    """
    import torch  # noqa: F401, not called: its runtime is mapped now, before a library needs it

    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    for line in maps.splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith("libgomp"):
            return ["-Wl,--as-needed", path]
    return []


def cache_directory() -> Path:
    """Where compiled kernels are kept, and what was measured of them."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ridgeline" / "kernels"


def _key(source: Path, compiler: list[str], options: list[str]) -> str:
    try:
        version = subprocess.run(
            [*compiler, "--version"], capture_output=True, check=False, timeout=_COMPILE_TIMEOUT_S
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelBuildError(f"{compiler[0]} does not run: {error}") from None
    command = "\0".join([*compiler, *options])
    # -march=native means another machine's code where the home directory is shared.
    sources = [source, *sorted(source.parent.glob("*.h"))]
    parts = [command.encode(), version, _cpu_features().encode()]
    parts += [path.read_bytes() for path in sources]
    return hashlib.sha256(b"\0\0".join(parts)).hexdigest()[:24]


def _cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("flags", "Features", "model name", "CPU part")
    features = {line for line in lines if line.startswith(wanted)}
    return "\n".join([platform.machine(), platform.processor(), *sorted(features)])


def _compile(compiler: list[str], options: list[str], source: Path, library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            built = Path(scratch) / library.name
            # The source before the libraries: the linker takes what is needed so far.
            command = [*compiler, str(source), *options, "-o", str(built)]
            result = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_COMPILE_TIMEOUT_S
            )
            if result.returncode != 0:
                lines = (result.stderr or "no message").strip().splitlines()
                message = next((line for line in lines if "error" in line), lines[0])
                raise KernelBuildError(f"{compiler[0]} cannot compile {source.name}: {message}")
            # What follows the last section of a library is nobody's: a good place for its digest.
            with built.open("ab") as file:
                file.write(hashlib.sha256(built.read_bytes()).digest())
            built.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelBuildError(f"{source.name} cannot be compiled: {error}") from None
