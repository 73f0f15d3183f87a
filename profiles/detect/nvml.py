"""Reading NVML, field by field: what one driver does not know must not cost the rest.

The result is plain data, so that recorded machines can be replayed (see ``profiles.detect.nvidia``
for what is made of it).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NvmlLink:
    """One active NVLink of a device."""

    to_switch: bool
    remote_bus_id: str | None = None


@dataclass(frozen=True, slots=True)
class NvmlProcess:
    """A process on a device; its memory is None where the driver keeps it to itself."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class NvmlMigDevice:
    """An instance of a partitioned GPU."""

    name: str
    uuid: str
    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class NvmlDevice:
    """What NVML says of a GPU; None for what it does not support there."""

    index: int
    name: str
    uuid: str | None = None
    bus_id: str | None = None
    pci_device_id: int | None = None
    """Device in the upper half, vendor in the lower one, as NVML has it."""
    capability: tuple[int, int] | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    used_bytes: int | None = None
    """By processes, without what the driver reserves; None on drivers that do not separate it."""
    mig_current: bool = False
    mig_pending: bool = False
    mig_devices: tuple[NvmlMigDevice, ...] = ()
    processes: tuple[NvmlProcess, ...] | None = None
    power_limit_mw: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    nvlinks: tuple[NvmlLink, ...] | None = None
    """Active ones; None when the driver cannot tell."""


@dataclass(frozen=True, slots=True)
class NvmlPair:
    """What NVML says of two GPUs."""

    first: int
    second: int
    common_ancestor: int | None = None
    """``nvmlGpuTopologyLevel_t``."""
    nvlink_peers: bool | None = None
    """Whether peer-to-peer traffic goes over NVLink."""


@dataclass(frozen=True, slots=True)
class NvmlSnapshot:
    """Everything that is asked of NVML, at one moment."""

    driver_version: str | None = None
    devices: tuple[NvmlDevice, ...] = ()
    pairs: tuple[NvmlPair, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NvmlUsage:
    """What a GPU is doing at one moment; None for what its driver does not tell."""

    index: int
    name: str
    used_bytes: int | None = None
    total_bytes: int | None = None
    power_watts: float | None = None
    utilization: float | None = None
    """Share of the last moment (up to a second) in which a kernel ran."""
    temperature_celsius: float | None = None
    clock_hertz: float | None = None
    """Of its multiprocessors."""


def read_nvml(nvml: Any = None) -> NvmlSnapshot:
    """A snapshot; empty without NVIDIA's library or driver, which is no fault of the machine.

    ``nvml`` stands in for the ``pynvml`` module in tests.
    """
    nvml = nvml or _pynvml()
    if nvml is None:
        return NvmlSnapshot()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        absent = (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
        if error.value in absent:
            logger.debug("no NVIDIA devices: %s", error)
            return NvmlSnapshot()
        return NvmlSnapshot(warnings=(_unusable(nvml, error),))
    try:
        return _Reader(nvml).snapshot()
    finally:
        nvml.nvmlShutdown()


def read_usage(nvml: Any = None) -> tuple[NvmlUsage, ...]:
    """What every GPU is doing; nothing without NVIDIA's library or driver. Takes milliseconds.

    ``nvml`` stands in for the ``pynvml`` module in tests.
    """
    nvml = nvml or _pynvml()
    if nvml is None:
        return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        logger.debug("no NVIDIA devices: %s", error)
        return ()
    try:
        return _Reader(nvml).usage()
    finally:
        nvml.nvmlShutdown()


def _pynvml() -> Any:
    """NVIDIA's library, if it is installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        logger.debug("no NVIDIA devices: nvidia-ml-py is not installed")
        return None


def _unusable(nvml: Any, error: Any) -> str:
    if error.value == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return (
            "NVIDIA's library and kernel driver are of different versions, so its GPUs cannot be "
            "used: reboot, or reload the nvidia module"
        )
    if error.value == nvml.NVML_ERROR_NO_PERMISSION:
        return "no permission to ask NVIDIA's driver (/dev/nvidiactl): its GPUs cannot be used"
    return f"NVIDIA's driver does not answer: {error}"


class _Reader:
    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._warnings: list[str] = []

    def usage(self) -> tuple[NvmlUsage, ...]:
        return tuple(self._usage(index, handle) for index, handle in self._handles().items())

    def _usage(self, index: int, handle: Any) -> NvmlUsage:
        nvml = self._nvml
        total, free, used = self._memory(handle)
        power_mw = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        temperature = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        clock_mhz = self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
        if used is None and total is not None and free is not None:
            used = total - free
        return NvmlUsage(
            index=index,
            name=self._text(nvml.nvmlDeviceGetName, handle) or "unknown NVIDIA GPU",
            used_bytes=used,
            total_bytes=total,
            power_watts=None if power_mw is None else power_mw / 1000,
            utilization=None if rates is None else rates.gpu / 100,
            temperature_celsius=None if temperature is None else float(temperature),
            clock_hertz=None if clock_mhz is None else clock_mhz * 1e6,
        )

    def _handles(self) -> dict[int, Any]:
        """Of the devices that can be used, by index."""
        count = self._ask(self._nvml.nvmlDeviceGetCount) or 0
        handles = {index: self._handle(index) for index in range(count)}
        return {index: handle for index, handle in handles.items() if handle is not None}

    def snapshot(self) -> NvmlSnapshot:
        found = self._handles()
        return NvmlSnapshot(
            driver_version=self._text(self._nvml.nvmlSystemGetDriverVersion),
            devices=tuple(self._device(index, handle) for index, handle in found.items()),
            pairs=tuple(
                self._pair(first, second, found[first], found[second])
                for first in found
                for second in found
                if first < second
            ),
            warnings=tuple(self._warnings),
        )

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None where the driver, the device or this version has none."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            logger.debug("%s: %s", getattr(function, "__name__", function), error)
            return None

    def _text(self, function: Callable[..., Any], *arguments: Any) -> str | None:
        answer = self._ask(function, *arguments)
        return answer.decode() if isinstance(answer, bytes) else answer

    def _handle(self, index: int) -> Any:
        try:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError as error:
            self._warnings.append(f"NVIDIA GPU {index} cannot be used: {error}")
            return None

    def _device(self, index: int, handle: Any) -> NvmlDevice:
        nvml = self._nvml
        pci = self._ask(nvml.nvmlDeviceGetPciInfo, handle)
        memory = self._memory(handle)
        mig = self._ask(nvml.nvmlDeviceGetMigMode, handle) or (0, 0)
        capability = self._ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        limit = self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        return NvmlDevice(
            index=index,
            name=self._text(nvml.nvmlDeviceGetName, handle) or "unknown NVIDIA GPU",
            uuid=self._text(nvml.nvmlDeviceGetUUID, handle),
            bus_id=_string(pci.busId) if pci else None,
            pci_device_id=int(pci.pciDeviceId) if pci else None,
            capability=tuple(capability) if capability else None,
            total_bytes=memory[0],
            free_bytes=memory[1],
            used_bytes=memory[2],
            mig_current=bool(mig[0]),
            mig_pending=bool(mig[1]),
            mig_devices=self._mig_devices(handle) if mig[0] else (),
            processes=self._processes(handle),
            power_limit_mw=limit,
            pcie_generation=self._ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            pcie_width=self._ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
            nvlinks=self._nvlinks(handle),
        )

    def _memory(self, handle: Any) -> tuple[int | None, int | None, int | None]:
        """Total, free, and used by processes; the second version of the call separates the last."""
        function = self._nvml.nvmlDeviceGetMemoryInfo
        separated = self._ask(function, handle, self._nvml.nvmlMemory_v2)
        if separated is not None:
            return int(separated.total), int(separated.free), int(separated.used)
        memory = self._ask(function, handle)
        return (None, None, None) if memory is None else (int(memory.total), int(memory.free), None)

    def _mig_devices(self, handle: Any) -> tuple[NvmlMigDevice, ...]:
        nvml = self._nvml
        devices = []
        for index in range(self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            instance = self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
            if instance is None:
                continue
            total, free, _ = self._memory(instance)
            devices.append(
                NvmlMigDevice(
                    name=self._text(nvml.nvmlDeviceGetName, instance) or "",
                    uuid=self._text(nvml.nvmlDeviceGetUUID, instance) or "",
                    total_bytes=total,
                    free_bytes=free,
                )
            )
        return tuple(devices)

    def _processes(self, handle: Any) -> tuple[NvmlProcess, ...] | None:
        found: dict[int, NvmlProcess] = {}
        compute = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        graphics = self._ask(self._nvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
        if compute is None and graphics is None:
            return None
        for process in [*(graphics or ()), *(compute or ())]:
            found[process.pid] = NvmlProcess(int(process.pid), process.usedGpuMemory)
        return tuple(found.values())

    def _nvlinks(self, handle: Any) -> tuple[NvmlLink, ...] | None:
        nvml = self._nvml
        links = []
        for link in range(nvml.NVML_NVLINK_MAX_LINKS):
            try:
                active = nvml.nvmlDeviceGetNvLinkState(handle, link)
            except nvml.NVMLError as error:
                if error.value == nvml.NVML_ERROR_INVALID_ARGUMENT:
                    break  # past the last link that this device has
                if error.value == nvml.NVML_ERROR_NOT_SUPPORTED and link == 0:
                    return ()  # a device without any
                if link == 0:
                    return None
                continue
            if active:
                kind = self._ask(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link)
                remote = self._ask(nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
                links.append(
                    NvmlLink(
                        to_switch=kind == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH,
                        remote_bus_id=_string(remote.busId) if remote else None,
                    )
                )
        return tuple(links)

    def _pair(self, first: int, second: int, one: Any, other: Any) -> NvmlPair:
        nvml = self._nvml
        status = self._ask(nvml.nvmlDeviceGetP2PStatus, one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        return NvmlPair(
            first=first,
            second=second,
            common_ancestor=self._ask(nvml.nvmlDeviceGetTopologyCommonAncestor, one, other),
            nvlink_peers=None if status is None else status == nvml.NVML_P2P_STATUS_OK,
        )


def _string(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
