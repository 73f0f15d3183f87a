"""The reader against a fake library that answers as NVML does: by exceptions, too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from profiles.detect.nvml import (
    NvmlDevice,
    NvmlLink,
    NvmlProcess,
    NvmlSnapshot,
    NvmlUsage,
    read_nvml,
    read_usage,
)

pynvml = pytest.importorskip("pynvml")


class FakeNvml:
    """Two H100s with one active link to a switch each; what is not here is not supported."""

    NVMLError = pynvml.NVMLError

    def __init__(self, init_error: int | None = None, lost: frozenset[int] = frozenset()) -> None:
        self._init_error = init_error
        self._lost = lost
        self.shut_down = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML_") or name == "nvmlMemory_v2":
            return getattr(pynvml, name)
        assert hasattr(pynvml, name), f"{name} is no function of NVML"

        def unsupported(*_: object) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        return unsupported

    def nvmlInit(self) -> None:  # noqa: N802
        if self._init_error is not None:
            raise pynvml.NVMLError(self._init_error)

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shut_down = True

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index in self._lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return (9, 0)

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> object:  # noqa: N802
        if version is not None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return SimpleNamespace(total=100, free=60, used=40)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return 250_000

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> object:  # noqa: N802
        return SimpleNamespace(gpu=75, memory=10)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[object]:  # noqa: N802
        return [SimpleNamespace(pid=7, usedGpuMemory=None)]

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:  # noqa: N802
        if link >= 2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return 1 if link == 1 else 0

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: int, link: int) -> int:  # noqa: N802
        return int(pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH)

    def nvmlDeviceGetP2PStatus(self, first: int, second: int, index: int) -> int:  # noqa: N802
        return int(pynvml.NVML_P2P_STATUS_OK)


def test_what_is_not_supported_costs_only_itself() -> None:
    nvml = FakeNvml()
    snapshot = read_nvml(nvml)
    assert snapshot.driver_version is None
    assert snapshot.devices[1] == NvmlDevice(
        index=1,
        name="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        total_bytes=100,
        free_bytes=60,
        processes=(NvmlProcess(7, None),),
        nvlinks=(NvmlLink(to_switch=True),),
    )
    (pair,) = snapshot.pairs
    assert pair.nvlink_peers is True
    assert pair.common_ancestor is None
    assert nvml.shut_down


def test_a_lost_gpu_is_told_and_the_other_one_stays() -> None:
    snapshot = read_nvml(FakeNvml(lost=frozenset({0})))
    assert [device.index for device in snapshot.devices] == [1]
    assert snapshot.pairs == ()
    (warning,) = snapshot.warnings
    assert "GPU 0" in warning


@pytest.mark.parametrize("absent", ["LIBRARY_NOT_FOUND", "DRIVER_NOT_LOADED"])
def test_a_machine_without_nvidias_driver_has_no_devices_and_no_warning(absent: str) -> None:
    assert read_nvml(FakeNvml(getattr(pynvml, f"NVML_ERROR_{absent}"))) == NvmlSnapshot()


@pytest.mark.parametrize(
    ("error", "words"),
    [("LIB_RM_VERSION_MISMATCH", "reboot"), ("NO_PERMISSION", "permission"), ("UNKNOWN", "answer")],
)
def test_a_broken_driver_is_a_warning(error: str, words: str) -> None:
    snapshot = read_nvml(FakeNvml(getattr(pynvml, f"NVML_ERROR_{error}")))
    assert snapshot.devices == ()
    (warning,) = snapshot.warnings
    assert words in warning


def test_this_machine_is_read_without_an_error() -> None:
    assert isinstance(read_nvml(), NvmlSnapshot)


def test_usage_is_what_each_device_tells() -> None:
    first, second = read_usage(FakeNvml())
    assert second.index == 1
    assert first == NvmlUsage(
        index=0,
        name="NVIDIA H100 80GB HBM3",
        used_bytes=40,
        total_bytes=100,
        power_watts=250.0,
        utilization=0.75,
    )


def test_there_is_no_usage_without_a_driver_or_of_a_lost_device() -> None:
    assert read_usage(FakeNvml(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)) == ()
    (only,) = read_usage(FakeNvml(lost=frozenset({0})))
    assert only.index == 1
