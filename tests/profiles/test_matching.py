import pytest

from profiles.accelerator import ProvenanceKind, Vendor
from profiles.catalog import Catalog, load_catalog
from profiles.matching import Match, MatchKind, Observed, match_device

MIB = 2**20


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def nvidia(name: str, capability: tuple[int, int] | None, mib: int | None) -> Observed:
    return Observed(Vendor.NVIDIA, name, capability, None if mib is None else mib * MIB)


def other(
    vendor: Vendor,
    name: str,
    mib: int | None,
    architecture: str | None = None,
    pci_device_id: int | None = None,
) -> Observed:
    memory_bytes = None if mib is None else mib * MIB
    return Observed(vendor, name, None, memory_bytes, pci_device_id, architecture)


def assert_estimated(match: Match, *relatives: str) -> None:
    assert match.how is MatchKind.ESTIMATED
    profile = match.profile
    figures = [profile.bandwidth_bytes_per_s, *profile.dense_flops.values()]
    assert len(figures) > 1
    for figure in figures:
        assert figure.spread >= 0.5
        assert figure.provenance.kind is ProvenanceKind.ESTIMATED
        assert not figure.provenance.verified
    assert profile.notes[-1].startswith("Not in the catalogue: figures are estimated from ")
    for relative in relatives:
        assert relative in profile.notes[-1]


@pytest.mark.parametrize(
    ("name", "capability", "mib", "found"),
    [
        # A name that is part of another one.
        ("NVIDIA L4", (8, 9), 23034, "L4"),
        ("NVIDIA L40", (8, 9), 46068, "L40"),
        ("NVIDIA L40S", (8, 9), 46068, "L40S"),
        ("NVIDIA A10", (8, 6), 23028, "A10"),
        ("NVIDIA A10", (8, 6), 24564, "A10"),
        ("NVIDIA A10G", (8, 6), 23028, "A10G"),
        ("NVIDIA A100-SXM4-40GB", (8, 0), 40960, "A100-SXM-40GB"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), 81920, "A100-SXM-80GB"),
        ("NVIDIA A100 80GB PCIe", (8, 0), 81920, "A100-PCIe-80GB"),
        ("NVIDIA GB200", (10, 0), 189471, "GB200"),
        ("NVIDIA B200", (10, 0), 183359, "B200-SXM"),
        ("Tesla T4", (7, 5), 15360, "T4"),
        ("Tesla T4", (7, 5), 15109, "T4"),
        # Three devices of one family.
        ("NVIDIA H100 80GB HBM3", (9, 0), 81559, "H100-SXM"),
        ("NVIDIA H100", (9, 0), 81559, "H100-SXM"),
        ("NVIDIA H100 PCIe", (9, 0), 81559, "H100-PCIe"),
        ("NVIDIA H100 NVL", (9, 0), 95830, "H100-NVL"),
        ("NVIDIA H200", (9, 0), 143771, "H200-SXM"),
        ("NVIDIA H200 NVL", (9, 0), 143771, "H200-NVL"),
        # A number in the name that is not the device's memory.
        ("NVIDIA GH200 480GB", (9, 0), 97871, "GH200-96GB"),
        ("NVIDIA GH200 120GB", (9, 0), 97871, "GH200-96GB"),
        ("NVIDIA GH200 144G HBM3e", (9, 0), 146831, "GH200-144GB"),
        ("NVIDIA H20", (9, 0), 97871, "H20"),
        # One name, two memory sizes.
        ("NVIDIA GeForce RTX 4060 Ti", (8, 9), 16380, "RTX-4060-Ti"),
        ("NVIDIA GeForce RTX 4060 Ti", (8, 9), 8188, "RTX-4060-Ti-8GB"),
        ("NVIDIA GeForce RTX 3060", (8, 6), 12288, "RTX-3060"),
        ("NVIDIA GeForce RTX 3060", (8, 6), 8192, "RTX-3060-8GB"),
        # Spelling: old drivers, node labels.
        ("GeForce RTX 3090", (8, 6), 24268, "RTX-3090"),
        ("NVIDIA-GeForce-RTX-5090", (12, 0), 32607, "RTX-5090"),
        ("RTX A6000", (8, 6), 49140, "RTX-A6000"),
        ("Tesla V100-PCIE-32GB", (7, 0), 32768, "V100-PCIe-32GB"),
        # Unified memory, of which a part is not the GPU's.
        ("Orin", (8, 7), 62841, "Orin"),
        ("NVIDIA GB10", (12, 1), 124610, "GB10"),
    ],
)
def test_exact_names(
    catalog: Catalog, name: str, capability: tuple[int, int], mib: int, found: str
) -> None:
    match = match_device(nvidia(name, capability, mib), catalog)
    assert (match.profile.name, match.how) == (found, MatchKind.NAME)
    assert match.profile.memory_bytes.value == mib * MIB
    assert match.profile.memory_bytes.provenance.kind is ProvenanceKind.MEASURED
    known = catalog.find(found)
    assert match.profile.bandwidth_bytes_per_s == known.bandwidth_bytes_per_s
    assert match.profile.dense_flops == known.dense_flops


def test_every_driver_name_finds_its_device(catalog: Catalog) -> None:
    for profile in catalog.profiles:
        for name in profile.device_names:
            memory_bytes = int(profile.memory_bytes.value)
            observed = Observed(profile.vendor, name, profile.capability, memory_bytes)
            match = match_device(observed, catalog)
            assert (match.profile.name, match.how) == (profile.name, MatchKind.NAME)


@pytest.mark.parametrize(
    ("name", "capability", "mib", "relative"),
    [
        ("NVIDIA T400 4GB", (7, 5), 4096, "RTX-2080-Ti"),
        ("NVIDIA T4G", (7, 5), 15360, "T4"),
        ("NVIDIA GeForce RTX 4090 D", (8, 9), 24564, "RTX-4090"),
        ("NVIDIA GeForce RTX 5080 Laptop GPU", (12, 0), 16303, "RTX-5080"),
        ("NVIDIA GeForce RTX 5070 Ti", (12, 0), 16303, "RTX-5080"),
        ("NVIDIA L20X", (9, 0), 143771, "H200-NVL"),
        ("NVIDIA H20-3e", (9, 0), 143771, "H200-SXM"),
        ("NVIDIA A800-SXM4-80GB", (8, 0), 81920, "A100-PCIe-80GB"),
    ],
)
def test_a_name_that_only_resembles_a_known_one_is_estimated(
    catalog: Catalog, name: str, capability: tuple[int, int], mib: int, relative: str
) -> None:
    match = match_device(nvidia(name, capability, mib), catalog)
    assert_estimated(match, relative)
    assert match.profile.name not in {profile.name for profile in catalog.profiles}
    assert match.profile.capability == capability
    assert match.profile.memory_bytes.value == mib * MIB


def test_a_single_relative_lends_its_figures(catalog: Catalog) -> None:
    estimated = match_device(nvidia("NVIDIA GeForce RTX 4090 D", (8, 9), 24564), catalog).profile
    known = catalog.find("RTX-4090")
    assert estimated.name == "GeForce-RTX-4090-D"
    assert estimated.bandwidth_bytes_per_s.value == known.bandwidth_bytes_per_s.value
    assert estimated.dense_flops["bf16"].value == known.dense_flops["bf16"].value
    assert estimated.link is None


def test_an_estimate_grows_with_memory(catalog: Catalog) -> None:
    estimated = match_device(nvidia("NVIDIA GeForce RTX 5099", (12, 1), 2 * 124610), catalog)
    assert_estimated(estimated, "GB10")
    known = catalog.find("GB10")
    ratio = estimated.profile.bandwidth_bytes_per_s.value / known.bandwidth_bytes_per_s.value
    assert ratio == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("capability", [(6, 1), (11, 0), (13, 0), None])
def test_an_unknown_architecture_is_estimated_with_wider_bars(
    catalog: Catalog, capability: tuple[int, int] | None
) -> None:
    match = match_device(nvidia("NVIDIA Something", capability, 40000), catalog)
    assert_estimated(match)
    assert match.profile.bandwidth_bytes_per_s.spread > 0.5
    if capability is not None:
        assert match.profile.capability == capability


def test_unknown_memory_is_estimated_too(catalog: Catalog) -> None:
    match = match_device(nvidia("NVIDIA Something", (8, 9), None), catalog)
    assert_estimated(match, "L4", "RTX-4090")
    assert match.profile.memory_bytes.spread >= 0.5


@pytest.mark.parametrize("vendor", [vendor for vendor in Vendor if vendor is not Vendor.CPU])
@pytest.mark.parametrize("mib", [None, 1, 12345, 10**7])
def test_nothing_is_refused(catalog: Catalog, vendor: Vendor, mib: int | None) -> None:
    for name in ("", "Acme X1"):
        match = match_device(other(vendor, name, mib), catalog)
        assert_estimated(match)
        assert match.profile.vendor is vendor
        assert " " not in match.profile.name


def test_memory_and_architecture_decide_only_without_a_name(catalog: Catalog) -> None:
    nameless = match_device(nvidia("NVIDIA Graphics Device", (10, 0), 183359), catalog)
    assert (nameless.profile.name, nameless.how) == ("B200-SXM", MatchKind.ARCHITECTURE_AND_MEMORY)
    named = match_device(nvidia("NVIDIA B199", (10, 0), 183359), catalog)
    assert_estimated(named, "B200-SXM")


@pytest.mark.parametrize("mib", [143771, 97871, 81559])
def test_memory_that_several_devices_report_decides_nothing(catalog: Catalog, mib: int) -> None:
    assert_estimated(match_device(nvidia("Graphics Device", (9, 0), mib), catalog))


@pytest.mark.parametrize(
    ("name", "mib", "pci_device_id", "architecture", "found", "how"),
    [
        ("AMD Instinct MI300X", 196592, 0x74A1, "gfx942", "MI300X", MatchKind.NAME),
        ("AMD Instinct MI300X VF", 196592, 0x74B5, "gfx942", "MI300X", MatchKind.PCI_ID),
        ("AMD Radeon Graphics", 262128, 0x74B9, None, "MI325X", MatchKind.PCI_ID),
        (
            "AMD Radeon Graphics",
            196592,
            None,
            "gfx942",
            "MI300X",
            MatchKind.ARCHITECTURE_AND_MEMORY,
        ),
        ("AMD Instinct MI250X", 65520, None, "gfx90a", "MI250X", MatchKind.NAME),
        ("AMD Radeon RX 7900 XTX", 24560, 0x744C, "gfx1100", "RX-7900-XTX", MatchKind.NAME),
    ],
)
def test_amd(
    catalog: Catalog,
    name: str,
    mib: int,
    pci_device_id: int | None,
    architecture: str | None,
    found: str,
    how: MatchKind,
) -> None:
    match = match_device(other(Vendor.AMD, name, mib, architecture, pci_device_id), catalog)
    assert (match.profile.name, match.how) == (found, how)


@pytest.mark.parametrize(
    ("name", "mib", "pci_device_id", "architecture"),
    [
        ("AMD Instinct MI308X", 196592, 0x74A2, "gfx942"),
        # Shares its PCI id with the XTX, but has 20 GB.
        ("AMD Radeon RX 7900 XT", 20464, 0x744C, "gfx1100"),
    ],
)
def test_amd_relatives(
    catalog: Catalog, name: str, mib: int, pci_device_id: int, architecture: str
) -> None:
    match = match_device(other(Vendor.AMD, name, mib, architecture, pci_device_id), catalog)
    assert_estimated(match)
    assert match.profile.architecture == architecture


@pytest.mark.parametrize(
    ("vendor", "name", "mib", "found"),
    [
        (Vendor.INTEL, "Intel(R) Data Center GPU Max 1550", 65515, "Max-1550"),
        (Vendor.INTEL, "Intel(R) Arc(TM) B580 Graphics", 12216, "Arc-B580"),
        (Vendor.INTEL, "HL-325L", 131072, "Gaudi-3"),
        (Vendor.APPLE, "Apple M4 Max", 131072, "M4-Max-128GB"),
        (Vendor.GOOGLE, "TPU v5", None, "TPU-v5p"),
        (Vendor.GOOGLE, "TPU v5 lite", None, "TPU-v5e"),
        (Vendor.AWS, "trn2", None, "Trainium2"),
    ],
)
def test_other_vendors(
    catalog: Catalog, vendor: Vendor, name: str, mib: int | None, found: str
) -> None:
    match = match_device(other(vendor, name, mib), catalog)
    assert (match.profile.name, match.how) == (found, MatchKind.NAME)


def test_another_vendors_name_is_not_matched(catalog: Catalog) -> None:
    assert_estimated(match_device(other(Vendor.AMD, "NVIDIA L4", 23034), catalog))


@pytest.mark.parametrize(
    ("name", "mib", "whole", "compute", "bandwidth"),
    [
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9728, "A100-SXM-80GB", 1 / 7, 1 / 8),
        ("NVIDIA A100-SXM4-80GB MIG 1g.20gb", 19968, "A100-SXM-80GB", 1 / 7, 2 / 8),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40192, "A100-SXM-80GB", 3 / 7, 4 / 8),
        ("NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb", 19968, "A100-SXM-40GB", 3 / 7, 4 / 8),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb+me", 9984, "H100-SXM", 1 / 7, 1 / 8),
        ("NVIDIA A30 MIG 2g.12gb", 11968, "A30", 2 / 4, 4 / 8),
    ],
)
def test_mig_instances(
    catalog: Catalog, name: str, mib: int, whole: str, compute: float, bandwidth: float
) -> None:
    known = catalog.find(whole)
    match = match_device(nvidia(name, known.capability, mib), catalog)
    profile = match.profile
    assert match.how is MatchKind.PARTITION
    assert profile.name == f"{whole}-{name[name.index('MIG') :].replace(' ', '-')}"
    assert profile.memory_bytes.value == mib * MIB
    assert profile.dense_flops["bf16"].value == pytest.approx(
        known.dense_flops["bf16"].value * compute
    )
    assert profile.bandwidth_bytes_per_s.value == pytest.approx(
        known.bandwidth_bytes_per_s.value * bandwidth
    )
    assert profile.link is None
    assert profile.notes[-1].startswith(f"Part of {whole}: ")


def test_memory_far_below_the_device_is_a_partition_of_it(catalog: Catalog) -> None:
    match = match_device(nvidia("NVIDIA A100-SXM4-80GB", (8, 0), 9728), catalog)
    assert match.how is MatchKind.PARTITION
    assert match.profile.memory_bytes.value == 9728 * MIB
    known = catalog.find("A100-SXM-80GB")
    share = 9728 / 81920
    assert match.profile.bandwidth_bytes_per_s.value == pytest.approx(
        known.bandwidth_bytes_per_s.value * share
    )
    assert match.profile.bandwidth_bytes_per_s.spread == 0.5


def test_processors_are_not_matched(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match="use cpu_profile"):
        match_device(other(Vendor.CPU, "AMD EPYC", 1024), catalog)
