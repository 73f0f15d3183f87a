"""Which kernel does which kind of attention: measured once for each device, and remembered.

Kernels round differently: what was chosen is kept between starts, so that a restarted engine
continues in the bits that it began in.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBackend
from engine.native.attention.dispatch import DispatchedAttention
from engine.native.attention.flash_attn import FLASH_ATTN
from engine.native.attention.flashinfer import FLASHINFER
from engine.native.attention.kernel import AttentionKernel, AttentionNeeds, Candidate, Work
from engine.native.attention.sdpa import SDPA
from engine.native.attention.triton_backend import TritonAttention
from engine.native.attention.tuning import CHUNK, DECODE, Clock, device_key, on_cuda
from engine.native.attention.workload import Workload, attention_work
from engine.native.remembered import recall, remember

logger = logging.getLogger(__name__)

CANDIDATES = (SDPA, FLASH_ATTN, FLASHINFER)
OURS = "triton"

WORKLOADS: Mapping[Work, Sequence[Workload]] = {
    Work.DECODE: (Workload(num_seqs=1, context_len=4096, num_new=1), DECODE),
    Work.CHUNK: (CHUNK, Workload(num_seqs=8, context_len=2048, num_new=256)),
    Work.SHORT_PROMPT: (Workload(1, 256, 256), Workload(16, 128, 128)),
    Work.LONG_PROMPT: (Workload(1, 4096, 4096), Workload(4, 1024, 1024)),
}
_PLAINLY_FASTER = 0.95
"""Of our kernel's time: less of a difference may be noise."""
_LARGEST_ERROR = 0.02
"""Relative to the whole output: bfloat16 makes some thousandths, a wrong block about 1."""
_FILE = "attention_kernels.json"

Usable = Mapping[Work, Sequence[Candidate]]


def usable_candidates(
    needs: AttentionNeeds, versions: Mapping[str, str], candidates: Iterable[Candidate] = CANDIDATES
) -> Usable:
    """Those that can do each kind of work; ``versions`` are the installed packages'."""
    present = [c for c in candidates if c.package is None or c.package in versions]
    return {work: [c for c in present if c.why_not(work, needs) is None] for work in Work}


def installed_versions(candidates: Iterable[Candidate] = CANDIDATES) -> dict[str, str]:
    """Of the candidates' packages, those that are here."""
    versions = {}
    for package in (c.package for c in candidates if c.package is not None):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def fastest(seconds: Mapping[str, Sequence[float]]) -> str:
    """Who has the shortest times in the geometric mean, which no long workload rules.

    ``seconds`` are those of the same workloads for everyone. Our own kernel has to be beaten
    plainly.
    """
    means = {name: math.prod(times) ** (1 / len(times)) for name, times in seconds.items()}
    best = min(means, key=lambda name: means[name])
    return best if means[best] < _PLAINLY_FASTER * means[OURS] else OURS


def chosen_attention(
    triton: TritonAttention, needs: AttentionNeeds, device: torch.device
) -> TritonAttention | DispatchedAttention:
    """The fastest kernels on this CUDA device, measured now or at an earlier start."""
    versions = installed_versions()
    usable = usable_candidates(needs, versions)
    installed = " ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    key = (
        f"{device_key(device)} {installed} {needs.dtype} {needs.cache_dtype} {needs.shape} "
        f"graphs {needs.cuda_graphs}"
    )
    names = recall(_FILE, key)
    if names is None:
        decode_clock = on_cuda_graph if needs.cuda_graphs else on_cuda
        clocks = {work: decode_clock if work is Work.DECODE else on_cuda for work in Work}
        names = measure_choice(triton, needs, usable, device, clocks)
        remember(_FILE, key, names)
        torch.cuda.empty_cache()
    return dispatched(triton, usable, names, device)


def measure_choice(
    triton: TritonAttention,
    needs: AttentionNeeds,
    usable: Usable,
    device: torch.device,
    clocks: Mapping[Work, Clock],
    workloads: Mapping[Work, Sequence[Workload]] = WORKLOADS,
) -> dict[str, str]:
    """The name of the fastest for each kind of work that there is a choice for."""
    return {
        work: fastest(
            measure_work(triton, needs, candidates, work, device, clocks[work], workloads[work])
        )
        for work, candidates in usable.items()
        if candidates
    }


def measure_work(
    triton: TritonAttention,
    needs: AttentionNeeds,
    candidates: Iterable[Candidate],
    work: Work,
    device: torch.device,
    clock: Clock,
    workloads: Sequence[Workload],
) -> dict[str, list[float]]:
    """Seconds of each workload, by our kernel and by all candidates that do the same."""

    def runs(backend: AttentionBackend) -> Iterator[tuple[Callable[[], Tensor], Tensor]]:
        # One at a time: a backend is prepared for one batch.
        for workload in workloads:
            call = attention_work(backend, needs.dtype, workload, device, shape=needs.shape)
            yield call, call()

    seconds: dict[str, list[float]] = {OURS: []}
    expected = []
    for call, output in runs(triton):
        expected.append(output)
        seconds[OURS].append(clock(call))
    for candidate in candidates:
        times = []
        try:
            backend = DispatchedAttention(triton, {work: candidate.make(work, device)})
            for (call, output), ours in zip(runs(backend), expected, strict=True):
                if not agree(output, ours):
                    raise ValueError("it computes something else than ours")
                times.append(clock(call))
        except Exception as error:
            # Other people's packages fail in their own ways, for instance for want of a compiler;
            # whoever does is no choice.
            logger.warning("%s is left out for %s attention: %s", candidate.name, work, error)
        else:
            seconds[candidate.name] = times
    return seconds


def agree(actual: Tensor, expected: Tensor) -> bool:
    """Whether two outputs differ by no more than roundings in 16 bits."""
    error = (actual.float() - expected.float()).norm()
    return bool(error < _LARGEST_ERROR * expected.float().norm())


def dispatched(
    triton: TritonAttention, usable: Usable, names: Mapping[str, str], device: torch.device
) -> TritonAttention | DispatchedAttention:
    """The backend in which the named candidates do their kinds of work, and Triton the others."""
    kernels: dict[Work, AttentionKernel] = {
        work: candidate.make(work, device)
        for work, candidates in usable.items()
        for candidate in candidates
        if candidate.name == names.get(work)
    }
    words = ", ".join(f"{work} by {kernels.get(work, triton).name}" for work in Work)
    logger.info("attention: %s", words)
    return DispatchedAttention(triton, kernels) if kernels else triton


def forced_attention(
    name: str, triton: TritonAttention, needs: AttentionNeeds, device: torch.device
) -> TritonAttention | DispatchedAttention:
    """The named candidate wherever it can work, and Triton elsewhere.

    Raises:
        ValueError: its package is missing, or it can do no kind of work.
    """
    (candidate,) = (c for c in CANDIDATES if c.name == name)
    versions = installed_versions((candidate,))
    if candidate.package is not None and candidate.package not in versions:
        raise ValueError(f"attention_backend {name!r} needs the package {candidate.package}")
    usable = usable_candidates(needs, versions, (candidate,))
    names: dict[str, str] = {work: name for work, candidates in usable.items() if candidates}
    if not names:
        reasons = dict.fromkeys(candidate.why_not(work, needs) for work in Work)
        raise ValueError(
            f"attention_backend {name!r} cannot be used here: it {', '.join(map(str, reasons))}"
        )
    return dispatched(triton, usable, names, device)


def on_cuda_graph(work: Callable[[], object]) -> float:
    """``on_cuda`` of the work captured as a graph, as decode steps are repeated.

    Raises:
        RuntimeError: it cannot be captured.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()  # compiles what is compiled at first use, which a capture cannot hold
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return on_cuda(graph.replay)
