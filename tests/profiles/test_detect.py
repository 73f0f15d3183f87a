import math

import pytest

from profiles.detect import (
    Host,
    detect_host,
    parse_cpu_quota,
    parse_cpuinfo,
    parse_memory_limit,
    usable_cores,
)

EPYC = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7B13
flags\t\t: fpu sse2 avx2 fma f16c

processor\t: 1
model name\t: something else
"""
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd asimddp sve
"""


def test_the_first_processor_names_the_machine() -> None:
    name, flags = parse_cpuinfo(EPYC)
    assert name == "AMD EPYC 7B13"
    assert {"avx2", "fma"} <= flags


def test_arm_calls_its_flags_features_and_has_no_name() -> None:
    name, flags = parse_cpuinfo(GRAVITON)
    assert name == ""
    assert "asimddp" in flags


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", math.inf), ("150000 100000\n", 1.5), ("", math.inf), ("nonsense", math.inf)],
)
def test_cpu_quota(text: str, cores: float) -> None:
    assert parse_cpu_quota(text) == cores


@pytest.mark.parametrize(("text", "limit"), [("1073741824\n", 2**30), ("max\n", math.inf)])
def test_memory_limit(text: str, limit: float) -> None:
    assert parse_memory_limit(text) == limit


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [(8, math.inf, 8), (8, 1.5, 1), (8, 0.3, 1), (2, 16.0, 2)],
)
def test_the_smaller_of_affinity_and_quota_counts(affinity: int, quota: float, cores: int) -> None:
    assert usable_cores(affinity, quota) == cores


def test_summary_is_one_readable_line() -> None:
    host = Host("AMD EPYC", ("AVX2",), 1, 24 * 2**30, 2**30)
    assert host.summary == "AMD EPYC (AVX2), 1 core, 24.0 GiB"


def test_this_machine_is_detected() -> None:
    host = detect_host()
    assert host.num_cores >= 1
    assert host.cpu_name
    assert 0 < host.available_memory_bytes <= host.memory_bytes
