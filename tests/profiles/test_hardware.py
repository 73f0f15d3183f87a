from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from profiles.accelerator import (
    DeviceGroup,
    Figure,
    LinkKind,
    Provenance,
    ProvenanceKind,
    Vendor,
)
from profiles.catalog import Catalog, UnknownDeviceError, load_catalog
from profiles.hardware import (
    HardwareExpressionError,
    cpu_profile,
    describe_hardware,
    divide_cpu,
    link_between,
    parse_hardware,
    profile_to_mapping,
)

ZEN3 = {"avx2", "fma", "f16c", "sse2"}
SKYLAKE = ZEN3 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
CASCADE_LAKE = SKYLAKE | {"avx512_vnni"}
SAPPHIRE_RAPIDS = CASCADE_LAKE | {
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
}
MASKED_SAPPHIRE_RAPIDS = SAPPHIRE_RAPIDS - {"amx_tile", "amx_bf16", "amx_int8"}
GRAVITON3 = {"asimd", "asimdhp", "fphp", "asimddp", "i8mm", "bf16", "sve", "svei8mm", "svebf16"}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def group(catalog: Catalog, expression: str) -> DeviceGroup:
    (only,) = parse_hardware(expression, catalog)
    return only


@pytest.mark.parametrize(
    ("expression", "described"),
    [
        ("4xL40S", "4xL40S"),
        ("L40S", "1xL40S"),
        ("l40s", "1xL40S"),
        ("4Xl40s", "4xL40S"),
        ("RTX 4090", "1xRTX-4090"),
        ("2 x rtx_4090", "2xRTX-4090"),
        ("2xH100-SXM+4xL40S", "2xH100-SXM+4xL40S"),
        (" 2xH100-SXM + T4 ", "2xH100-SXM+1xT4"),
        ("16xcpu-avx2", "16xcpu-avx2"),
        ("cpu-amx", "1xcpu-amx"),
        ("1024xT4", "1024xT4"),
        ("2xM2-Max-64GB", "2xM2-Max-64GB"),
    ],
)
def test_expressions(catalog: Catalog, expression: str, described: str) -> None:
    hardware = parse_hardware(expression, catalog)
    assert describe_hardware(hardware) == described
    assert parse_hardware(described, catalog) == hardware


def test_every_device_can_be_asked_for(catalog: Catalog) -> None:
    for profile in catalog.profiles:
        hardware = parse_hardware(f"2x{profile.name}", catalog)
        assert describe_hardware(hardware) == f"2x{profile.name}"


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("0xL40S", "the count must be a whole number from 1 to 1024, not 0"),
        ("1025xL40S", "from 1 to 1024, not 1025"),
        ("-1xL40S", "not -1"),
        ("2.5xL40S", "not 2.5"),
        ("", "hardware '' is not of the form 4xL40S or 2xH100-SXM+4xL40S"),
        ("4x", "is not of the form"),
        ("2xT4+", "is not of the form"),
        ("+", "is not of the form"),
    ],
)
def test_malformed_expressions(catalog: Catalog, expression: str, problem: str) -> None:
    with pytest.raises(HardwareExpressionError) as caught:
        parse_hardware(expression, catalog)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("expression", ["2xH100", "4xL40X", "T4+nothing", "4 L40S"])
def test_unknown_devices(catalog: Catalog, expression: str) -> None:
    with pytest.raises(UnknownDeviceError):
        parse_hardware(expression, catalog)


def test_cores_of_a_cpu_share_one_memory(catalog: Catalog) -> None:
    cores = group(catalog, "16xcpu-avx2")
    assert cores.count == 1
    assert cores.profile.num_cores == 16
    assert cores.profile.memory_bytes.value == 16 * 4 * 2**30
    assert cores.profile.memory_bytes.provenance.kind is ProvenanceKind.ESTIMATED
    one = catalog.find("cpu-avx2")
    assert cores.profile.dense_flops["fp32"].value == 16 * one.dense_flops["fp32"].value
    assert cores.profile.bandwidth_bytes_per_s.value == 160e9


@pytest.mark.parametrize(
    ("features", "name", "per_cycle"),
    [
        (set(), "cpu-generic", {"fp32": 8}),
        (ZEN3, "cpu-avx2", {"fp32": 32, "int8": 64}),
        (ZEN3 | {"avx_vnni"}, "cpu-avx2", {"fp32": 32, "int8": 128}),
        (SKYLAKE, "cpu-avx512", {"fp32": 64, "int8": 128}),
        (CASCADE_LAKE, "cpu-avx512-vnni", {"fp32": 64, "int8": 256}),
        (
            CASCADE_LAKE | {"avx512_bf16"},
            "cpu-avx512-bf16",
            {"fp32": 64, "bf16": 128, "int8": 256},
        ),
        (
            MASKED_SAPPHIRE_RAPIDS,
            "cpu-avx512-fp16",
            {"fp32": 64, "bf16": 128, "fp16": 128, "int8": 256},
        ),
        (
            SAPPHIRE_RAPIDS,
            "cpu-amx",
            {"fp32": 64, "bf16": 1024, "fp16": 128, "int8": 2048},
        ),
        ({"asimd"}, "cpu-neon", {"fp32": 16}),
        ({"asimd", "asimddp"}, "cpu-neon-dotprod", {"fp32": 16, "int8": 64}),
        ({"asimd", "asimddp", "i8mm"}, "cpu-neon-i8mm", {"fp32": 16, "int8": 128}),
        (
            {"asimd", "asimddp", "i8mm", "bf16", "asimdhp", "fphp"},
            "cpu-neon-bf16",
            {"fp32": 16, "fp16": 32, "bf16": 64, "int8": 128},
        ),
        (GRAVITON3, "cpu-sve", {"fp32": 32, "fp16": 64, "bf16": 128, "int8": 256}),
        (GRAVITON3 | {"sve2"}, "cpu-sve2", {"fp32": 32, "fp16": 64, "bf16": 128, "int8": 256}),
    ],
)
def test_the_best_class_describes_a_host(
    features: set[str], name: str, per_cycle: dict[str, float]
) -> None:
    profile = cpu_profile(features, num_cores=4, clock_hz=3e9, memory_bytes=8 * 2**30)
    assert profile.name == name
    assert profile.vendor is Vendor.CPU
    assert {key: figure.value for key, figure in profile.dense_flops.items()} == pytest.approx(
        {key: 4 * 3e9 * rate for key, rate in per_cycle.items()}
    )
    assert profile.features == features
    assert profile.memory_bytes.value == 8 * 2**30


def test_guesses_about_a_cpu_have_wide_error_bars() -> None:
    profile = cpu_profile(ZEN3, num_cores=64)
    assert profile.bandwidth_bytes_per_s.value == 200e9
    assert profile.bandwidth_bytes_per_s.spread == 0.5
    assert profile.bandwidth_bytes_per_s.provenance.kind is ProvenanceKind.ESTIMATED
    assert {figure.spread for figure in profile.dense_flops.values()} == {0.3}
    assert not profile.dense_flops["fp32"].provenance.verified


@pytest.mark.parametrize(
    "wrong", [{"num_cores": 0}, {"clock_hz": 0.0}, {"memory_bytes": -1}, {"clock_hz": float("nan")}]
)
def test_impossible_hosts_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        cpu_profile(ZEN3, **({"num_cores": 2} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "size", "kind", "gb_per_s"),
    [
        ("8xH100-SXM", 8, LinkKind.NVLINK, 450),
        ("16xH100-SXM", 16, LinkKind.PCIE, 64),
        ("2xA100-PCIe-80GB", 2, LinkKind.PCIE, 32),
        ("4xRTX-4090", 4, LinkKind.PCIE, 32),
        ("72xGB200", 72, LinkKind.NVLINK, 900),
        ("2xTPU-v5e", 2, LinkKind.ICI, 200),
        ("2xGB10", 2, LinkKind.PCIE, 25),
        ("16xcpu-avx2", 2, LinkKind.SHARED_MEMORY, 80),
        ("4xL40S", 1, LinkKind.PCIE, 32),
    ],
)
def test_the_slowest_link_a_group_uses(
    catalog: Catalog, expression: str, size: int, kind: LinkKind, gb_per_s: float
) -> None:
    link = link_between(group(catalog, expression), size)
    assert link.kind is kind
    assert link.bytes_per_s.value == gb_per_s * 1e9


def test_a_bridge_that_was_detected_counts(catalog: Catalog) -> None:
    found = group(catalog, "4xRTX-3090")
    assert found.profile.link is not None
    measured = Figure(52e9, Provenance(ProvenanceKind.MEASURED, "copy"))
    link = replace(found.profile.link, optional=False, bytes_per_s=measured)
    bridged = replace(found, profile=replace(found.profile, link=link))
    assert link_between(bridged, 2) == link
    assert link_between(bridged, 4).kind is LinkKind.PCIE


@pytest.mark.parametrize("size", [0, 5, -1])
def test_a_size_the_group_does_not_have(catalog: Catalog, size: int) -> None:
    with pytest.raises(ValueError, match=f"tensor parallel size {size} is not in 1 to 4"):
        link_between(group(catalog, "4xL40S"), size)


def test_devices_without_a_link(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match="M2-Max devices have no link"):
        link_between(group(catalog, "2xM2-Max"), 2)


def test_a_profile_of_ones_own_is_read_from_a_file(tmp_path: Path) -> None:
    mapping = profile_to_mapping(load_catalog().find("L40S"))
    file = tmp_path / "my-card.yaml"
    file.write_text(yaml.safe_dump(mapping | {"name": "My-Card"}))
    (group,) = parse_hardware(f"2x{file}", load_catalog())
    assert group.count == 2
    assert group.profile.name == "My-Card"
    assert group.profile.memory_bytes.value == load_catalog().find("L40S").memory_bytes.value


@pytest.mark.parametrize("content", [None, "[1, 2", "name: half a card"])
def test_a_file_that_is_no_profile_is_told_in_one_line(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "card.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(HardwareExpressionError, match=r"card\.yaml") as caught:
        parse_hardware(str(file), load_catalog())
    assert "\n" not in str(caught.value)


def test_a_cpu_divided_among_ranks_is_as_fast_as_before(catalog: Catalog) -> None:
    whole = group(catalog, "6xcpu-avx2")
    shares = divide_cpu(whole, 3)
    assert shares.count == 3
    assert describe_hardware((shares,)) == describe_hardware((whole,)) == "6xcpu-avx2"
    one, all_of_it = shares.profile, whole.profile
    for field in ("memory_bytes", "bandwidth_bytes_per_s"):
        assert getattr(one, field).value * 3 == pytest.approx(getattr(all_of_it, field).value)
    for dtype, rate in all_of_it.dense_flops.items():
        assert one.dense_flops[dtype].value * 3 == pytest.approx(rate.value)
    assert link_between(shares, 3).kind is LinkKind.SHARED_MEMORY
    with pytest.raises(ValueError, match="7 ranks need a core each, but there are 6"):
        divide_cpu(whole, 7)
