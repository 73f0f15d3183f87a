"""Which kernels can do what, which is chosen, and what is said when none can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
from torch import Tensor

from engine.native.attention import choice
from engine.native.attention.backend import AttentionBatch, LayerCache
from engine.native.attention.dispatch import DispatchedAttention
from engine.native.attention.flash_attn import FLASH_ATTN
from engine.native.attention.flashinfer import FLASHINFER
from engine.native.attention.kernel import (
    PROMPTS,
    AttentionKernel,
    AttentionNeeds,
    Candidate,
    Work,
    work_of,
)
from engine.native.attention.sdpa import SDPA
from engine.native.attention.select import select_attention_backend
from engine.native.attention.triton_backend import Tiles, TritonAttention
from engine.native.attention.workload import LLAMA_8B, AttentionShape, Workload
from engine.native.remembered import recall, remember
from tests.engine.native.attention.problems import Problem, dense, paged

CPU = torch.device("cpu")
BFLOAT16 = torch.bfloat16
NEEDS = AttentionNeeds(BFLOAT16, BFLOAT16, LLAMA_8B, capability=(9, 0), cuda_graphs=False)
LARGE_BLOCKS = replace(LLAMA_8B, block_size=256)


def works(candidate: Candidate, needs: AttentionNeeds) -> set[Work]:
    return {work for work in Work if candidate.why_not(work, needs) is None}


@pytest.mark.parametrize(
    ("candidate", "needs", "expected"),
    [
        (SDPA, NEEDS, set(PROMPTS)),
        (SDPA, replace(NEEDS, dtype=torch.float32, cache_dtype=torch.float32), set(PROMPTS)),
        (SDPA, replace(NEEDS, shape=replace(LLAMA_8B, has_window=True)), set()),
        (SDPA, replace(NEEDS, cache_dtype=torch.int8), set()),
        (SDPA, replace(NEEDS, shape=replace(LLAMA_8B, head_dim=20)), set()),
        (FLASH_ATTN, NEEDS, set(PROMPTS)),
        (FLASH_ATTN, replace(NEEDS, shape=LARGE_BLOCKS, cuda_graphs=True), set(Work)),
        (FLASH_ATTN, replace(NEEDS, shape=replace(LARGE_BLOCKS, has_window=True)), set()),
        (FLASH_ATTN, replace(NEEDS, cache_dtype=torch.float8_e4m3fn, shape=LARGE_BLOCKS), set()),
        (FLASH_ATTN, replace(NEEDS, dtype=torch.float32, cache_dtype=torch.float32), set()),
        (FLASH_ATTN, replace(NEEDS, shape=replace(LARGE_BLOCKS, head_dim=264)), set()),
        (FLASHINFER, NEEDS, set(Work)),
        (FLASHINFER, replace(NEEDS, shape=replace(LLAMA_8B, has_window=True)), set(Work)),
        (FLASHINFER, replace(NEEDS, cuda_graphs=True), set(Work) - {Work.DECODE}),
        (FLASHINFER, replace(NEEDS, capability=(8, 0)), {Work.DECODE}),
        (FLASHINFER, replace(NEEDS, capability=(10, 0)), {Work.DECODE}),
        (FLASHINFER, replace(NEEDS, cache_dtype=torch.int8), set()),
        (FLASHINFER, replace(NEEDS, dtype=torch.float32, cache_dtype=torch.float32), set()),
        (FLASHINFER, replace(NEEDS, shape=replace(LLAMA_8B, head_dim=80)), set()),
    ],
)
def test_who_can_do_what(candidate: Candidate, needs: AttentionNeeds, expected: set[Work]) -> None:
    assert works(candidate, needs) == expected


def test_only_what_is_installed_is_usable() -> None:
    none = choice.usable_candidates(NEEDS, {})
    assert none[Work.DECODE] == []
    assert none[Work.LONG_PROMPT] == [SDPA]
    both = choice.usable_candidates(NEEDS, {"flash-attn": "2.8.3", "flashinfer-python": "0.7.2"})
    assert both[Work.DECODE] == [FLASHINFER]
    assert both[Work.LONG_PROMPT] == [SDPA, FLASH_ATTN, FLASHINFER]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"triton": [1.0, 1.0]}, "triton"),
        ({"triton": [1.0, 1.0], "sdpa": [0.8, 0.9]}, "sdpa"),
        ({"triton": [1.0, 1.0], "sdpa": [0.97, 0.98]}, "triton"),  # noise
        ({"triton": [1.0, 1.0], "sdpa": [0.8, 0.9], "flash-attn": [0.7, 0.9]}, "flash-attn"),
        # Half the time of a short workload outweighs a quarter more of a long one.
        ({"triton": [0.001, 10.0], "sdpa": [0.0005, 12.5]}, "sdpa"),
        ({"triton": [0.001, 10.0], "sdpa": [0.0005, 25.0]}, "triton"),
    ],
)
def test_the_fastest(seconds: dict[str, list[float]], expected: str) -> None:
    assert choice.fastest(seconds) == expected


SHAPE = AttentionShape(num_heads=2, num_kv_heads=1, head_dim=16, block_size=8)
TINY = {
    Work.DECODE: (Workload(1, 20, 1), Workload(3, 9, 1)),
    Work.CHUNK: (Workload(1, 20, 3), Workload(2, 9, 4)),
    Work.SHORT_PROMPT: (Workload(1, 20, 20), Workload(2, 9, 9)),
    Work.LONG_PROMPT: (Workload(1, 512, 512),),
}
FLOAT32 = torch.float32


def interpreted() -> TritonAttention:
    return TritonAttention(FLOAT32, CPU, Tiles(chunk_rows=32, chunk_tokens=32))


class Zeros:
    name = "wrong"

    def prepare(self, batch: AttentionBatch) -> None:
        pass

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        return torch.zeros_like(query).flatten(1)


def fails(_work: Work, _device: torch.device) -> AttentionKernel:
    raise RuntimeError("no compiler")


@pytest.mark.parametrize("work", Work)
def test_workloads_are_of_the_kind_that_they_measure(work: Work) -> None:
    for workload in (*choice.WORKLOADS[work], *TINY[work]):
        assert work_of(workload.num_new, workload.context_len) is work


def test_measuring_takes_the_fastest_of_those_that_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "engine.native.attention.choice")
    needs = AttentionNeeds(FLOAT32, FLOAT32, SHAPE, (9, 0), cuda_graphs=False)
    broken = Candidate("broken", None, lambda _work, _needs: None, fails)
    wrong = Candidate("wrong", None, lambda _work, _needs: None, lambda _work, _device: Zeros())
    usable = choice.usable_candidates(needs, {}, (SDPA, broken, wrong))
    # Ours, then sdpa's, where it is a candidate: of short prompts, then of long ones.
    times = iter([5.0, 6.0, 5.0, 6.0, 2.0, 2.0, 1.0, 1.0, 2.0, 3.0])

    def clock(work: Callable[[], object]) -> float:
        work()
        return next(times)

    clocks = dict.fromkeys(Work, clock)
    ours = interpreted()
    names = choice.measure_choice(ours, needs, usable, CPU, clocks, TINY)
    assert names == {
        Work.DECODE: "triton",
        Work.CHUNK: "triton",
        Work.SHORT_PROMPT: "sdpa",
        Work.LONG_PROMPT: "triton",
    }
    assert "broken is left out for decode attention: no compiler" in caplog.text
    for work in Work:
        assert f"wrong is left out for {work} attention: it computes something" in caplog.text

    caplog.clear()
    backend = choice.dispatched(ours, usable, names, CPU)
    assert isinstance(backend, DispatchedAttention)
    assert caplog.messages == [
        "attention: decode by triton, chunk by triton, short prompt by sdpa, long prompt by triton"
    ]
    problem = Problem(2, 1, 16, 8, None, (20, 11), (20, 1))
    torch.testing.assert_close(
        paged(backend, problem).double(), dense(problem), atol=2e-5, rtol=1e-4
    )
    assert choice.dispatched(ours, usable, dict.fromkeys(Work, "triton"), CPU) is ours


def test_what_was_measured_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert recall("file.json", "H100") is None
    remember("file.json", "H100", {"decode": "triton"})
    remember("file.json", "A100", {"decode": "flash-attn"})
    assert recall("file.json", "H100") == {"decode": "triton"}
    assert recall("file.json", "A100") == {"decode": "flash-attn"}
    (file,) = tmp_path.rglob("file.json")
    file.write_text("[1")
    assert recall("file.json", "H100") is None
    file.write_text('{"H100": 3}')
    assert recall("file.json", "H100") is None


def test_a_second_start_measures_only_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "device_key", lambda _device: "some GPU")
    versions = {"flash-attn": "2.8.3"}
    monkeypatch.setattr(choice, "installed_versions", lambda: versions)
    measured: list[AttentionNeeds] = []

    def measure(_ours: object, needs: AttentionNeeds, *_rest: object) -> dict[str, str]:
        measured.append(needs)
        return {Work.LONG_PROMPT: "sdpa"}

    monkeypatch.setattr(choice, "measure_choice", measure)
    for _ in range(2):
        backend = choice.chosen_attention(interpreted(), NEEDS, CPU)
        assert backend.name == "triton and sdpa"
        assert len(measured) == 1
    other_heads = replace(NEEDS, shape=replace(LLAMA_8B, num_heads=16))
    for needs in (other_heads, replace(NEEDS, cuda_graphs=True)):
        choice.chosen_attention(interpreted(), needs, CPU)
    versions["flash-attn"] = "2.8.4"
    choice.chosen_attention(interpreted(), NEEDS, CPU)
    assert measured == [NEEDS, other_heads, replace(NEEDS, cuda_graphs=True), NEEDS]


@pytest.mark.parametrize(
    ("name", "cache_dtype", "message"),
    [
        ("sdpa", torch.int8, "cannot be used here: it reads no cache, sees keys and values before"),
        ("sdpa", BFLOAT16, "sees keys and values before the cache rounds them"),
    ],
)
def test_a_name_that_can_do_nothing_is_refused(
    name: str, cache_dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        select_attention_backend(name, FLOAT32, cache_dtype)


@pytest.mark.parametrize("candidate", [FLASH_ATTN, FLASHINFER])
def test_a_package_that_is_missing_is_named(
    candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "installed_versions", lambda _candidates: {})
    with pytest.raises(
        ValueError, match=f"{candidate.name}' needs the package {candidate.package}"
    ):
        select_attention_backend(candidate.name, BFLOAT16, BFLOAT16)


@pytest.mark.parametrize("name", ["triton", "sdpa", "flash-attn", "flashinfer"])
def test_kernels_of_a_gpu_need_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match=f"attention_backend '{name}' needs a GPU"):
        select_attention_backend(name, FLOAT32, FLOAT32)
