"""How ``ridgeline hardware`` looks to people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from profiles.accelerator import (
    AcceleratorProfile,
    Figure,
    Link,
    LinkKind,
    ProvenanceKind,
    Vendor,
)
from profiles.detect import Detected, DetectedDevice, DetectedGroup, DetectedLink, Host
from profiles.hardware import describe_hardware

_GIB = 2**30
_WIDE = 96
"""Columns from which on the catalogue shows everything in one line per device."""
_MOST_IN_MATRIX = 16
_UNSURE = "yellow"
_VENDORS = {
    Vendor.NVIDIA: "NVIDIA",
    Vendor.AMD: "AMD",
    Vendor.INTEL: "Intel",
    Vendor.GOOGLE: "Google",
    Vendor.AWS: "AWS",
    Vendor.APPLE: "Apple",
    Vendor.CPU: "Processors, one core",
}
_LINKS = {
    LinkKind.NVLINK: "NVLink",
    LinkKind.INFINITY_FABRIC: "Infinity Fabric",
    LinkKind.XE_LINK: "Xe Link",
    LinkKind.ROCE: "RoCE",
    LinkKind.ICI: "ICI",
    LinkKind.NEURONLINK: "NeuronLink",
    LinkKind.C2C: "C2C",
    LinkKind.PCIE: "PCIe",
    LinkKind.SHARED_MEMORY: "shared memory",
}


def detected_tables(detected: Detected, width: int) -> Iterator[RenderableType]:
    """What was found: devices, links, the processor, what a plan is made for, warnings."""
    sections: list[tuple[str, RenderableType]] = [
        (
            "Accelerators",
            _device_table(detected.devices, width) if detected.devices else Text("none found"),
        ),
        ("Processor", _pairs(_host_facts(detected.host))),
        ("Planned for (--on auto)", _pairs(_plan_facts(detected))),
    ]
    if len(detected.devices) > 1 and detected.links:
        sections.insert(1, ("Links", _links(detected)))
    if detected.warnings:
        marks = (_bullet("!", warning, _UNSURE) for warning in detected.warnings)
        sections.append(("Warnings", Group(*marks)))
    for title, content in sections:
        yield Text(title, style="bold")
        yield Padding(content, (0, 0, 1, 2))


def catalog_table(profiles: Sequence[AcceleratorProfile], width: int) -> Iterator[RenderableType]:
    """The catalogue: a line for each device, by vendor and generation."""
    wide = width >= _WIDE
    order = list(_VENDORS)
    ordered = sorted(profiles, key=lambda p: (order.index(p.vendor), p.capability or (0, 0)))
    for vendor, devices in groupby(ordered, key=lambda profile: profile.vendor):
        # Few processors know fp8, and few accelerators are chosen for fp32.
        other = "fp32" if vendor is Vendor.CPU else "fp8"
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
        table.add_column(Text(_VENDORS[vendor], style="bold"), no_wrap=True, min_width=34)
        for title in ("GiB ", "GB/s ", "16-bit ", f"{other} ", "int8 "):
            table.add_column(title, justify="right", no_wrap=True, min_width=6)
        table.add_column("link GB/s (devices)" if wide else "link", no_wrap=True)
        for profile in devices:
            table.add_row(*_catalog_row(profile, other, wide))
        yield table
        yield Text()
    yield _pairs(
        [
            ("GiB", "memory, as drivers report it"),
            ("16-bit to int8", "dense TFLOPS, TOPS for int8"),
            ("link", "each way between devices: their own links, else PCIe"),
            ("*", "of fp16: there is no bf16"),
            ("?", "estimated, or not verified"),
        ]
    )
    if profiles:
        yield Text()
        yield Text(f"Sources: ridgeline hardware show {ordered[0].name}", style="dim")


def profile_tables(
    profile: AcceleratorProfile, sources: Mapping[str, str]
) -> Iterator[RenderableType]:
    """Every field of a profile with where it comes from."""
    capability = profile.capability
    made = "one core" if profile.is_cpu else _VENDORS[profile.vendor]
    title = Text.assemble((profile.name, "bold"), f"  {made}, {profile.architecture}")
    if capability:
        title.append(f", compute capability {capability[0]}.{capability[1]}")
    yield title
    yield Text()
    table = _table()
    table.add_column("field", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("±", justify="right", no_wrap=True)
    table.add_column("source", overflow="fold")
    last = None
    for name, value, figure in _figures(profile):
        spread = f"{figure.spread:.0%}" if figure.spread else ""
        repeated = figure.provenance == last
        source = Text("as above", style="dim") if repeated else _source(figure)
        table.add_row(name, Text(value, style=_style(figure)), spread, source)
        last = figure.provenance
    yield table
    facts = [
        ("driver names", ", ".join(profile.device_names)),
        ("node labels", ", ".join(profile.kubernetes_labels)),
        ("PCI ids", ", ".join(f"0x{number:04x}" for number in profile.pci_device_ids)),
        ("other sizes", ", ".join(_gib(size) for size in profile.memory_variants_bytes)),
        ("MIG slices", str(profile.mig_slices or "")),
        ("flags", " ".join(sorted(profile.features))),
    ]
    known = [(name, value) for name, value in facts if value]
    if known:
        yield Text()
        yield _pairs(known)
    if profile.notes:
        yield Text()
        yield from (_bullet("·", note, "dim") for note in profile.notes)
    if sources:
        yield Text()
        yield _pairs(sources.items(), style="dim")


def _catalog_row(profile: AcceleratorProfile, other: str, wide: bool) -> list[Text]:
    memory, bandwidth = profile.memory_bytes, profile.bandwidth_bytes_per_s
    flops = profile.dense_flops
    half = flops.get("bf16") or flops.get("fp16")
    return [
        Text(profile.name),
        _marked(f"{memory.value / _GIB:.1f}", memory),
        _marked(f"{bandwidth.value / 1e9:.0f}", bandwidth),
        _rate(half, prefix="" if "bf16" in flops else "*"),
        _rate(flops.get(other)),
        _rate(flops.get("int8")),
        _catalog_link(profile, wide),
    ]


def _catalog_link(profile: AcceleratorProfile, wide: bool) -> Text:
    link, pcie = profile.link, profile.pcie_bytes_per_s
    if profile.is_cpu:
        return _dash()
    if link is None:
        name = "PCIe " if wide else ""
        return _dash() if pcie is None else Text(f"{name}{_gb(pcie.value)}", style="dim")
    kind = "xGMI" if link.kind is LinkKind.INFINITY_FABRIC else _LINKS[link.kind]
    rate = f"{_gb(link.bytes_per_s.value)}{_question(link.bytes_per_s)}"
    if not wide:
        return Text(rate)
    reach = f"{link.max_devices}, optional" if link.optional else str(link.max_devices)
    return Text.assemble(f"{kind} {rate}", (f" ({reach})", "dim"))


def _figures(profile: AcceleratorProfile) -> Iterator[tuple[str, str, Figure]]:
    memory, bandwidth = profile.memory_bytes, profile.bandwidth_bytes_per_s
    yield "memory", _gib(memory.value), memory
    yield "memory bandwidth", f"{_gb(bandwidth.value)} GB/s", bandwidth
    for dtype, figure in profile.dense_flops.items():
        yield f"{dtype}, dense", f"{_tera(figure.value)} {_unit(dtype)}", figure
    for dtype, figure in profile.achievable_flops.items():
        yield f"{dtype}, achieved", f"{_tera(figure.value)} {_unit(dtype)}", figure
    for rate in profile.linear_rates:
        text = f"{_tera(rate.flops.value)} {_unit(rate.dtype)}"
        yield f"{rate.dtype}, {rate.num_rows} rows", text, rate.flops
    if profile.link is not None:
        yield (
            _link_name(profile.link),
            f"{_gb(profile.link.bytes_per_s.value)} GB/s",
            (profile.link.bytes_per_s),
        )
    if profile.pcie_bytes_per_s is not None:
        pcie = profile.pcie_bytes_per_s
        yield "PCIe, each way", f"{_gb(pcie.value)} GB/s", pcie
    if profile.power_w is not None:
        yield "power", f"{profile.power_w.value:.0f} W", profile.power_w
    for name, figure in profile.coefficients.items():
        yield name, f"{figure.value:.4g}", figure


def _device_table(devices: Sequence[DetectedDevice], width: int) -> Table:
    table = _table()
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("device", overflow="fold", min_width=20)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("free", justify="right", no_wrap=True)
    if width >= _WIDE:
        table.add_column("PCIe", no_wrap=True)
    table.add_column("profile", overflow="fold", min_width=14)
    table.add_column("matched by", overflow="fold")
    for device in devices:
        memory, free = device.memory_bytes, device.free_bytes
        scarce = memory is not None and free is not None and free < 0.9 * memory
        number = f"{device.mig.parent_index}.{device.index}" if device.mig else str(device.index)
        lanes = f"{device.pcie_generation or '?'} x{device.pcie_width or '?'}"
        match = device.match
        table.add_row(
            number,
            device.name,
            _dash() if memory is None else _gib(memory),
            _dash() if free is None else Text(_gib(free), style=_UNSURE if scarce else ""),
            *([lanes if device.pcie_bytes_per_s else _dash()] if width >= _WIDE else []),
            match.profile.name if match else _dash(),
            match.how if match else _dash(),
        )
    return table


def _links(detected: Detected) -> RenderableType:
    devices, links = detected.devices, detected.links
    texts = {_link_text(link) for link in links}
    if len(texts) == 1 and len(links) == len(devices) * (len(devices) - 1) // 2:
        return Text(f"every pair: {texts.pop()}")
    if len(devices) > _MOST_IN_MATRIX:
        return Group(*(Text(text) for text in sorted(texts)))
    table = _table()
    table.add_column("")
    for device in devices:
        table.add_column(str(device.index), justify="center", no_wrap=True)
    cells = {(link.first, link.second): _link_code(link) for link in links}
    for row, device in enumerate(devices):
        codes = (
            _dash() if row == column else cells.get((min(row, column), max(row, column)), Text("?"))
            for column in range(len(devices))
        )
        table.add_row(Text(str(device.index), style="dim"), *codes)
    return Group(table, *(Text(text, style="dim") for text in sorted(texts)))


def _link_text(link: DetectedLink) -> str:
    name = _LINKS[link.kind]
    words = [f"{link.num_links} {name}s" if link.num_links else name]
    if link.generation:
        words[0] += f" of generation {link.generation}"
    if link.kind is LinkKind.PCIE and link.level:
        words[0] += f" {link.level}"
    if link.bytes_per_s:
        words.append(f"{_gb(link.bytes_per_s)} GB/s each way")
    return ", ".join(words)


def _link_code(link: DetectedLink) -> Text:
    if link.kind is LinkKind.NVLINK:
        return Text(f"NV{link.num_links}", style="green")
    if link.kind is LinkKind.PCIE:
        return Text(link.level or "PCIe")
    return Text(_LINKS[link.kind].split()[0], style="green")


def _host_facts(host: Host) -> Iterator[tuple[str, str]]:
    topology, clock = host.topology, host.clock
    yield "model", host.cpu_name
    counts = [
        _count(topology.num_cores, "core"),
        _count(topology.num_threads, "thread"),
        _count(topology.num_sockets, "socket"),
    ]
    if topology.num_cores:
        yield "machine", ", ".join(counts)
    yield (
        "usable",
        f"{_count(host.num_cores, 'thread')} on "
        + (_count(host.num_physical_cores or host.num_cores, "core")),
    )
    clocks = [("base", clock.base_hz), ("max", clock.max_hz), ("now", clock.current_hz)]
    if any(hertz for _, hertz in clocks):
        yield "clock", ", ".join(f"{hertz / 1e9:.2f} GHz {name}" for name, hertz in clocks if hertz)
    if topology.l2_bytes or topology.l3_bytes:
        yield "caches", f"L2 {_mib(topology.l2_bytes)}, L3 {_mib(topology.l3_bytes)}"
    if len(topology.numa_nodes) > 1:
        yield (
            "memory nodes",
            ", ".join(
                f"{node.index}: {_count(len(node.cpus), 'thread')}, {_gib(node.memory_bytes)}"
                for node in topology.numa_nodes
            ),
        )
    if host.features:
        yield "instructions", ", ".join(host.features)
    if host.amx_granted is not None:
        yield "AMX tiles", "granted by the kernel" if host.amx_granted else "not granted"
    yield "memory", f"{_gib(host.memory_bytes)}, {_gib(host.available_memory_bytes)} available"
    yield "container", ", ".join(_limits(host)) or "no limits"


def _limits(host: Host) -> Iterator[str]:
    limits, topology = host.limits, host.topology
    if limits.cpu_quota is not None:
        yield f"{limits.cpu_quota:g} cores of time"
    if limits.cpus is not None and len(limits.cpus) < topology.num_threads:
        yield f"{len(limits.cpus)} of {_count(topology.num_threads, 'thread')}"
    if limits.memory_bytes is not None and limits.memory_bytes < host.machine_memory_bytes:
        left = limits.memory_headroom_bytes
        free = "" if left is None else f" with {_gib(left)} left"
        machine = _gib(host.machine_memory_bytes)
        yield f"{_gib(limits.memory_bytes)}{free} of the machine's {machine}"
    if limits.numa_nodes is not None and len(limits.numa_nodes) < len(topology.numa_nodes):
        yield "memory nodes " + ", ".join(str(node) for node in limits.numa_nodes)


def _plan_facts(detected: Detected) -> Iterator[tuple[str, str]]:
    for found in detected.groups:
        yield describe_hardware((found.group,)), ", ".join(_group_facts(found))


def _group_facts(found: DetectedGroup) -> Iterator[str]:
    profile = found.group.profile
    each = " each" if found.group.count > 1 else ""
    yield f"{_gib(found.free_bytes)} free of {_gib(profile.memory_bytes.value)}{each}"
    yield f"{_gb(profile.bandwidth_bytes_per_s.value)} GB/s" + _question(
        profile.bandwidth_bytes_per_s
    )
    half = profile.dense_flops.get("bf16") or profile.dense_flops.get("fp16")
    dtype = "bf16" if "bf16" in profile.dense_flops else "fp16"
    if half is None:
        half, dtype = profile.dense_flops.get("fp32"), "fp32"
    if half is not None:
        yield f"{_tera(half.value)} {_unit(dtype)} {dtype}" + _question(half)
    if found.group.count > 1:
        link = profile.link
        if link is not None and not link.optional:
            yield f"{_LINKS[link.kind]} {_gb(link.bytes_per_s.value)} GB/s among {link.max_devices}"
        elif profile.pcie_bytes_per_s is not None:
            yield f"PCIe {_gb(profile.pcie_bytes_per_s.value)} GB/s"


def _link_name(link: Link) -> str:
    bridge = " bridge" if link.optional else ""
    return f"{_LINKS[link.kind]}{bridge}, up to {link.max_devices}"


def _source(figure: Figure) -> Text:
    origin = figure.provenance
    text = Text()
    if origin.kind is not ProvenanceKind.DATASHEET:
        text.append(f"{origin.kind}: ", style=_style(figure))
    elif not origin.verified:
        text.append("not verified: ", style=_UNSURE)
    text.append(origin.source)
    if origin.date:
        text.append(f" ({origin.date})", style="dim")
    return text


def _is_unsure(figure: Figure) -> bool:
    return not figure.provenance.verified or figure.provenance.kind is ProvenanceKind.ESTIMATED


def _style(figure: Figure) -> str:
    return _UNSURE if _is_unsure(figure) else ""


def _question(figure: Figure) -> str:
    return "?" if _is_unsure(figure) else ""


def _marked(text: str, figure: Figure) -> Text:
    """A figure with room for its mark, so that columns of them stay aligned."""
    return Text.assemble(text, (_question(figure) or " ", _UNSURE))


def _rate(figure: Figure | None, prefix: str = "") -> Text:
    if figure is None:
        return _dash().append(" ")
    return _marked(prefix + _tera(figure.value), figure)


def _dash() -> Text:
    return Text("-", style="dim")


def _bullet(mark: str, text: str, style: str) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_row(Text(mark, style=style), Text(text))
    return row


def _pairs(facts: Iterable[tuple[str, str]], style: str = "") -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold", style=style)
    for name, value in facts:
        grid.add_row(name, value)
    return grid


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _unit(dtype: str) -> str:
    return "TOPS" if dtype.startswith("int") else "TFLOPS"


def _tera(value: float) -> str:
    tera = value / 1e12
    return f"{tera:.0f}" if tera >= 100 else f"{tera:.3g}"


def _gb(bytes_per_s: float) -> str:
    giga = bytes_per_s / 1e9
    return f"{giga:.0f}" if giga >= 100 else f"{giga:.3g}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
