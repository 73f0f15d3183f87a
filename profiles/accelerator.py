"""What is known of an accelerator, field by field, and where each figure comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from profiles.step_time import FittedCoefficients


class ProvenanceKind(StrEnum):
    DATASHEET = "datasheet"
    """What the vendor promises."""
    MEASURED = "measured"
    """What calibration found on the machine at hand."""
    FITTED = "fitted"
    """What makes predictions agree with measured steps."""
    ESTIMATED = "estimated"
    """Derived from relatives of the device; wide error bars."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a figure comes from."""

    kind: ProvenanceKind
    source: str
    verified: bool = True
    """False for a figure that was recalled and never traced to a source."""
    date: str | None = None
    """ISO date of the measurement or of the fit."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its provenance; ``spread`` is its relative standard deviation."""

    value: float
    provenance: Provenance
    spread: float = 0.0


class Vendor(StrEnum):
    NVIDIA = "nvidia"
    AMD = "amd"
    INTEL = "intel"
    GOOGLE = "google"
    AWS = "aws"
    APPLE = "apple"
    CPU = "cpu"
    """A general-purpose processor, whoever made it."""


class LinkKind(StrEnum):
    """How devices of one kind reach each other, best first."""

    NVLINK = "nvlink"
    INFINITY_FABRIC = "infinity_fabric"
    XE_LINK = "xe_link"
    ROCE = "roce"
    ICI = "ici"
    NEURONLINK = "neuronlink"
    C2C = "c2c"
    PCIE = "pcie"
    SHARED_MEMORY = "shared_memory"


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between two devices of one machine."""

    kind: LinkKind
    bytes_per_s: Figure
    """One direction, one device, all its links of this kind together."""
    max_devices: int = 8
    """Devices that reach each other at this rate: 2 for a bridge, 8 for a switched board."""
    optional: bool = False
    """A bridge that is sold apart; not to be counted on unless detected."""


@dataclass(frozen=True, slots=True)
class LinearRate:
    """Speed of matrix products with ``num_rows`` rows of activations, as measured."""

    dtype: str
    num_rows: int
    flops: Figure
    """Floating-point operations (or integer ones) per second of the whole device."""


@dataclass(frozen=True, slots=True)
class AcceleratorProfile:
    """One device: dense rates only, bytes only, every figure with its provenance.

    A CPU profile describes ``num_cores`` cores that share one memory.
    """

    name: str
    """Catalogue name, such as ``H100-SXM``: what ``--on`` takes, without spaces."""
    vendor: Vendor
    architecture: str
    """``sm_90``, ``gfx942``, ``avx512``: the family that kernels are written for."""
    memory_bytes: Figure
    """What the driver reports as total."""
    bandwidth_bytes_per_s: Figure
    dense_flops: Mapping[str, Figure]
    """Peak without sparsity by type: fp32, tf32, fp16, bf16, fp8, int8, fp6, fp4, int4."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability; None for other vendors."""
    features: frozenset[str] = frozenset()
    """Instruction sets of a CPU by their names in /proc/cpuinfo."""
    num_cores: int = 0
    """Cores of a CPU; 0 for accelerators."""
    link: Link | None = None
    pcie_bytes_per_s: Figure | None = None
    """One direction."""
    device_names: tuple[str, ...] = ()
    """What the driver calls it, exactly."""
    kubernetes_labels: tuple[str, ...] = ()
    pci_device_ids: tuple[int, ...] = ()
    """Of this device; a PCI id may be shared with siblings of other memory."""
    mig_slices: int = 0
    """Compute slices that MIG can cut the device into; 0 when it cannot."""
    memory_variants_bytes: tuple[int, ...] = ()
    """Other memory sizes that drivers report for the same name, ascending."""
    power_w: Figure | None = None
    achievable_flops: Mapping[str, Figure] = field(default_factory=dict)
    """Fastest matrix product that anyone measured, by type; below ``dense_flops``."""
    coefficients: Mapping[str, Figure] = field(default_factory=dict)
    """Of the step-time model (see ``profiles.step_time``), where they differ from its priors."""
    linear_rates: tuple[LinearRate, ...] = ()
    """Measured products by type and number of rows; empty until calibrated."""
    fits: tuple[FittedCoefficients, ...] = ()
    """What calibration learned of single models."""
    notes: tuple[str, ...] = ()

    @property
    def is_cpu(self) -> bool:
        return self.vendor is Vendor.CPU

    def with_memory(self, memory_bytes: int, provenance: Provenance) -> AcceleratorProfile:
        """The same device with the memory that was found or asked for."""
        return replace(self, memory_bytes=Figure(memory_bytes, provenance))


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Devices of one kind in one machine.

    A processor is one device, or as many as there are ranks that share its cores; ``num_cores`` of
    its profile counts all of them either way.
    """

    profile: AcceleratorProfile
    count: int


Hardware = tuple[DeviceGroup, ...]
"""What a plan is made for. Tensor parallelism stays inside a group."""
