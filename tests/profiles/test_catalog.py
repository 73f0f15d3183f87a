import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import profiles.catalog
from profiles.accelerator import AcceleratorProfile, Figure, LinkKind, ProvenanceKind, Vendor
from profiles.catalog import (
    Catalog,
    ProfileFormatError,
    UnknownDeviceError,
    build_catalog,
    load_catalog,
    profile_from_mapping,
    profile_to_mapping,
    read_yaml,
)

FOLDER = Path(profiles.catalog.__file__).parent
FILES = sorted(FOLDER.glob("*.yaml"))
MIB = 2**20


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def schema_validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((FOLDER / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def figures(profile: AcceleratorProfile) -> Iterator[tuple[str, Figure]]:
    yield "memory_bytes", profile.memory_bytes
    yield "bandwidth_bytes_per_s", profile.bandwidth_bytes_per_s
    for dtype, figure in profile.dense_flops.items():
        yield dtype, figure
    for name in ("pcie_bytes_per_s", "power_w"):
        figure = getattr(profile, name)
        if figure is not None:
            yield name, figure
    if profile.link is not None:
        yield "link", profile.link.bytes_per_s


# Name, memory in MiB, bandwidth in GB/s, then dense TFLOPS: fp16, bf16, fp8, int8.
SPOT_VALUES = [
    ("V100-SXM2-16GB", 16384, 900, 125, None, None, 62.8),
    ("V100-PCIe-32GB", 32768, 900, 112, None, None, 56),
    ("T4", 15360, 320, 65, None, None, 130),
    ("RTX-2080-Ti", 11264, 616, 53.8, None, None, 215.2),
    ("A10", 23028, 600, 125, 125, None, 250),
    ("A10G", 23028, 600, 70, 70, None, 140),
    ("A30", 24576, 933, 165, 165, None, 330),
    ("A40", 46068, 696, 149.7, 149.7, None, 299.3),
    ("A100-SXM-40GB", 40960, 1555, 312, 312, None, 624),
    ("A100-SXM-80GB", 81920, 2039, 312, 312, None, 624),
    ("A100-PCIe-80GB", 81920, 1935, 312, 312, None, 624),
    ("RTX-3090", 24576, 936, 71.2, 71.2, None, 284.6),
    ("L4", 23034, 300, 121, 121, 242.5, 242.5),
    ("L40", 46068, 864, 181.05, 181.05, 362, 362),
    ("L40S", 46068, 864, 362.05, 362.05, 733, 733),
    ("RTX-4060-Ti", 16380, 288, 44.1, 44.1, 88.3, 176.5),
    ("RTX-4060-Ti-8GB", 8188, 288, 44.1, 44.1, 88.3, 176.5),
    ("RTX-4090", 24564, 1008, 165.2, 165.2, 330.3, 660.6),
    ("RTX-6000-Ada", 46068, 960, 364.2, 364.2, 728.5, 728.5),
    ("RTX-PRO-6000-Blackwell-Server", 97887, 1597, 467.8, 467.8, 935.6, 935.6),
    ("H100-SXM", 81559, 3350, 989.4, 989.4, 1978.9, 1978.9),
    ("H100-PCIe", 81559, 2000, 756.5, 756.5, 1513, 1513),
    ("H100-NVL", 95830, 3900, 835.5, 835.5, 1670.5, 1670.5),
    ("H200-SXM", 143771, 4800, 989.4, 989.4, 1978.9, 1978.9),
    ("H20", 97871, 4000, 148, 148, 296, 296),
    ("GH200-96GB", 97871, 4000, 989.4, 989.4, 1978.9, 1978.9),
    ("B200-SXM", 183359, 7700, 2250, 2250, 4500, 4500),
    ("GB200", 189471, 8000, 2500, 2500, 5000, 5000),
    ("B300-SXM", 275040, 7750, 2250, 2250, 4500, 153.5),
    ("MI250X", 65536, 1638.5, 191.5, 191.5, None, 191.5),
    ("MI300X", 196608, 5300, 1307.4, 1307.4, 2614.9, 2614.9),
    ("MI355X", 294912, 8000, 2500, 2500, 5000, 5000),
    ("Gaudi-3", 131072, 3700, 459, 1677, 1677, None),
    ("Arc-B580", 12216, 456, 109.4, 109.4, None, 218.7),
    ("TPU-v5e", 16384, 819, None, 197, None, 393),
    ("TPU7x", 98304, 3690, None, 1153.5, 2307, None),
    ("Trainium2", 98304, 2900, 667, 667, 1299, None),
    ("M2-Max-96GB", 98304, 400, 13.5, None, None, None),
]


@pytest.mark.parametrize(
    ("name", "mib", "gb_per_s", "fp16", "bf16", "fp8", "int8"), SPOT_VALUES, ids=lambda v: str(v)
)
def test_spot_values(
    catalog: Catalog,
    name: str,
    mib: float,
    gb_per_s: float,
    fp16: float | None,
    bf16: float | None,
    fp8: float | None,
    int8: float | None,
) -> None:
    profile = catalog.find(name)
    assert profile.memory_bytes.value == mib * MIB
    assert profile.bandwidth_bytes_per_s.value == pytest.approx(gb_per_s * 1e9)
    for dtype, tflops in {"fp16": fp16, "bf16": bf16, "fp8": fp8, "int8": int8}.items():
        if tflops is None:
            assert dtype not in profile.dense_flops
        else:
            assert profile.dense_flops[dtype].value == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    ("name", "kind", "gb_per_s", "max_devices", "optional"),
    [
        ("A100-SXM-80GB", LinkKind.NVLINK, 300, 8, False),
        ("A100-PCIe-80GB", LinkKind.NVLINK, 300, 2, True),
        ("RTX-3090", LinkKind.NVLINK, 56.25, 2, True),
        ("H100-SXM", LinkKind.NVLINK, 450, 8, False),
        ("H200-NVL", LinkKind.NVLINK, 450, 4, True),
        ("GB200", LinkKind.NVLINK, 900, 72, False),
        ("MI300X", LinkKind.INFINITY_FABRIC, 448, 8, False),
        ("Gaudi-2", LinkKind.ROCE, 300, 8, False),
        ("TPU-v6e", LinkKind.ICI, 400, 256, False),
    ],
)
def test_links_are_one_direction_of_one_device(
    catalog: Catalog, name: str, kind: LinkKind, gb_per_s: float, max_devices: int, optional: bool
) -> None:
    link = catalog.find(name).link
    assert link is not None
    assert (link.kind, link.max_devices, link.optional) == (kind, max_devices, optional)
    assert link.bytes_per_s.value == gb_per_s * 1e9


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_follow_the_schema(path: Path) -> None:
    schema_validator().validate(read_yaml(path.read_text()))


def device_entry() -> dict[str, Any]:
    text = (FOLDER / "nvidia_hopper.yaml").read_text()
    entry: dict[str, Any] = read_yaml(text)["devices"][0]
    return entry


@pytest.mark.parametrize(
    "change",
    [
        {"memory_gb": 80},
        {"dense_flops": {"bf16": 1e15, "bf16_sparse": 2e15}},
        {"memory_bytes": "80 GB"},
        {"vendor": "acme"},
        {"provenance": {"memory_bytes": "A", "bandwidth_bytes_per_s": "A"}},
        {"link": {"kind": "nvlink", "bytes_per_s": 1e9, "max_devices": 2, "total_bidir": 2e9}},
    ],
)
def test_the_schema_refuses(change: dict[str, Any]) -> None:
    schema_validator().validate({"sources": {}, "devices": [device_entry()]})
    with pytest.raises(jsonschema.ValidationError):
        schema_validator().validate({"sources": {}, "devices": [device_entry() | change]})


def test_the_catalogue_is_complete(catalog: Catalog) -> None:
    by_vendor = dict.fromkeys(Vendor, 0)
    for profile in catalog.profiles:
        by_vendor[profile.vendor] += 1
    assert by_vendor[Vendor.NVIDIA] >= 41
    assert by_vendor[Vendor.AMD] == 6
    assert by_vendor[Vendor.INTEL] == 5
    assert by_vendor[Vendor.GOOGLE] == 4
    assert by_vendor[Vendor.AWS] == 2
    assert by_vendor[Vendor.CPU] == 16
    names = [profile.name for profile in catalog.profiles]
    assert len(set(names)) == len(names)
    assert not [name for name in names if " " in name or "+" in name]


def test_every_figure_says_where_it_comes_from(catalog: Catalog) -> None:
    for profile in catalog.profiles:
        for name, figure in figures(profile):
            where = f"{profile.name} {name}"
            assert figure.provenance.source, where
            assert math.isfinite(figure.value), where
            assert figure.value > 0, where
            if "RECALL" in figure.provenance.source:
                assert not figure.provenance.verified, where


def test_codes_of_sources_are_explained(catalog: Catalog) -> None:
    for profile in catalog.profiles:
        for _, figure in figures(profile):
            code = figure.provenance.source.split()[0].rstrip(":;,")
            if code.isupper() and code.isalpha():
                assert code in catalog.sources, (profile.name, code)


def test_rates_are_dense_and_ordered(catalog: Catalog) -> None:
    for profile in catalog.profiles:
        rates = {dtype: figure.value for dtype, figure in profile.dense_flops.items()}
        if profile.capability is not None:
            assert ("bf16" in rates) == (profile.capability >= (8, 0)), profile.name
            assert ("fp8" in rates) == (profile.capability >= (8, 9)), profile.name
            assert ("fp4" in rates) == (profile.capability >= (10, 0)), profile.name
            # A sparse figure among dense ones would be off by two.
            if "fp8" in rates:
                assert rates["fp8"] == pytest.approx(2 * rates["bf16"], rel=0.02), profile.name
            assert profile.architecture == f"sm_{profile.capability[0]}{profile.capability[1]}"
            assert profile.pcie_bytes_per_s is not None
        for dtype, best in profile.achievable_flops.items():
            assert 0.5 * rates[dtype] < best.value < rates[dtype], profile.name


def test_memory_that_no_driver_reported_is_marked(catalog: Catalog) -> None:
    estimated = {
        profile.name
        for profile in catalog.profiles
        if profile.memory_bytes.provenance.kind is ProvenanceKind.ESTIMATED
    }
    assert {"RX-7900-XTX", "Arc-A770", "TPU-v5e", "M2-Max", "Orin", "cpu-avx2"} <= estimated
    assert not {"H100-SXM", "MI300X", "Gaudi-3", "GB10", "T4"} & estimated


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100-sxm", "H100-SXM"),
        ("H100 SXM", "H100-SXM"),
        ("h100_sxm", "H100-SXM"),
        ("H100 SXM5 80GB", "H100-SXM"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA-H100-80GB-HBM3", "H100-SXM"),
        ("A100-SXM4-40GB", "A100-SXM-40GB"),
        ("A100-80GB-PCIe", "A100-PCIe-80GB"),
        ("RTX 4090", "RTX-4090"),
        ("RTX 4060 Ti", "RTX-4060-Ti"),
        ("GB200 (per GPU)", "GB200"),
        ("B200", "B200-SXM"),
        ("DGX Spark GB10", "GB10"),
        ("Jetson AGX Orin 64GB", "Orin"),
        ("TPU v6e (Trillium)", "TPU-v6e"),
        ("Data Center GPU Max 1550", "Max-1550"),
        ("TPU v5", "TPU-v5p"),
        ("TPU v5 lite", "TPU-v5e"),
        ("M2 Max", "M2-Max"),
        ("x86 AVX2+FMA (no AVX512)", "cpu-avx2"),
    ],
)
def test_find(catalog: Catalog, name: str, found: str) -> None:
    assert catalog.find(name).name == found


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("H100", "device 'H100' is ambiguous: H100-SXM, H100-PCIe or H100-NVL"),
        ("a100", "ambiguous: A100-SXM-40GB, A100-PCIe-40GB, A100-SXM-80GB or A100-PCIe-80GB"),
        ("GH200", "ambiguous: GH200-96GB or GH200-144GB"),
        ("L40X", "unknown device 'L40X'; did you mean L40, L40S or L4?"),
        ("H100-SMX", "did you mean H100-SXM"),
        ("toaster", "unknown device 'toaster'"),
        ("", "unknown device ''"),
    ],
)
def test_unknown_and_ambiguous_names(catalog: Catalog, name: str, problem: str) -> None:
    with pytest.raises(UnknownDeviceError) as caught:
        catalog.find(name)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_round_trip(catalog: Catalog) -> None:
    for profile in catalog.profiles:
        text = json.dumps(profile_to_mapping(profile))
        assert profile_from_mapping(json.loads(text)) == profile, profile.name


def minimal() -> dict[str, Any]:
    return {
        "name": "X",
        "vendor": "nvidia",
        "architecture": "sm_90",
        "capability": "9.0",
        "memory_bytes": 1000,
        "bandwidth_bytes_per_s": 1e9,
        "dense_flops": {"bf16": 1e12},
        "linear_rates": [{"dtype": "bf16", "num_rows": 1, "flops": 2e9}],
        "provenance": {
            "memory_bytes": "driver",
            "bandwidth_bytes_per_s": {"source": "copy", "kind": "measured", "spread": 0.02},
            "dense_flops": "sheet",
            "linear_rates": {"source": "products", "kind": "measured", "date": "2026-11-24"},
        },
    }


def test_a_measured_profile_reads_back() -> None:
    profile = profile_from_mapping(minimal())
    assert profile.bandwidth_bytes_per_s.spread == 0.02
    assert profile.bandwidth_bytes_per_s.provenance.kind is ProvenanceKind.MEASURED
    assert profile.linear_rates[0].flops.provenance.date == "2026-11-24"
    assert profile_to_mapping(profile) == minimal()


def test_the_provenance_of_a_figure_wins_over_that_of_its_group() -> None:
    data = minimal()
    data["dense_flops"]["fp8"] = 2e12
    data["provenance"]["dense_flops.fp8"] = {"source": "guess", "verified": False}
    rates = profile_from_mapping(data).dense_flops
    assert rates["bf16"].provenance.source == "sheet"
    assert not rates["fp8"].provenance.verified


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"memory_bytes": "80 GB"}, "X: Expected `int`, got `str` - at `$.memory_bytes`"),
        ({"memory_gb": 80}, "X: Object contains unknown field `memory_gb`"),
        ({"bandwidth_bytes_per_s": 0}, "X: bandwidth_bytes_per_s must be above zero, not 0"),
        ({"dense_flops": {"bf16": math.inf}}, "X: dense_flops.bf16 must be above zero, not inf"),
        ({"power_w": 300}, "X: no provenance for power_w"),
        ({"capability": "90"}, "X: capability must be like \"9.0\", not '90'"),
        ({"linear_rates": []}, "X: provenance of linear_rates, which is not there"),
        ({"vendor": "acme"}, "X: Invalid enum value 'acme'"),
        ({"name": None}, "profile: Expected `str`, got `null`"),
    ],
)
def test_bad_profiles_are_named_in_one_line(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ProfileFormatError) as caught:
        profile_from_mapping(minimal() | change)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_mapping_is_refused(data: object) -> None:
    with pytest.raises(ProfileFormatError, match="profile: Expected"):
        profile_from_mapping(data)


def test_a_damaged_file_is_named() -> None:
    with pytest.raises(ProfileFormatError, match=r"extra\.yaml: .*missing required field"):
        build_catalog({"extra.yaml": "devices: []"})
    with pytest.raises(ProfileFormatError, match="not valid YAML in line 2"):
        build_catalog({"extra.yaml": "sources: {}\n  devices: ["})


def test_two_devices_of_one_name_are_refused() -> None:
    text = (FOLDER / "aws.yaml").read_text()
    with pytest.raises(ProfileFormatError, match="two devices are called Inferentia2"):
        build_catalog({"a.yaml": text, "b.yaml": text})


@pytest.mark.parametrize(
    ("text", "number"), [("3.35e12", 3.35e12), ("64e9", 64e9), ("1.5E+3", 1500.0), ("7", 7)]
)
def test_exponents_are_numbers_with_and_without_a_sign(text: str, number: float) -> None:
    assert read_yaml(text) == number


def test_the_catalogue_loads_fast() -> None:
    texts = {path.name: path.read_text() for path in FILES}
    seconds = []
    for _ in range(5):
        start = time.process_time()
        build_catalog(texts)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1
