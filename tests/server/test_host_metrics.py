from __future__ import annotations

import threading
import time

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from profiles.detect.nvml import NvmlUsage
from server.metrics import host
from server.metrics.families import Families
from server.metrics.host import HostFigures, HostSampler, HostUsage, read_host

USAGE = HostUsage(1, 2, 3, 4, (NvmlUsage(0, "H100", used_bytes=5, power_watts=250.0),))


def text(sampler: HostSampler) -> str:
    registry = CollectorRegistry()
    registry.register(HostFigures(sampler, Families("m")))
    return generate_latest(registry).decode()


def wait_for_newest(sampler: HostSampler) -> HostUsage:
    deadline = time.monotonic() + 10
    while (usage := sampler.newest()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return usage


def test_this_machine_can_be_looked_at() -> None:
    usage = read_host()
    assert 0 < usage.server_rss < usage.memory_total == psutil.virtual_memory().total
    assert 0 < usage.memory_used < usage.memory_total


def test_only_what_the_driver_tells_is_shown() -> None:
    sampler = HostSampler(lambda: USAGE)
    sampler.start()
    wait_for_newest(sampler)
    sampler.stop()
    shown = text(sampler)
    device = 'device="0",device_name="H100",model_name="m"'
    assert f"ridgeline_accelerator_power_watts{{{device}}} 250.0" in shown
    assert f"ridgeline_accelerator_memory_used_bytes{{{device}}} 5.0" in shown
    assert "ridgeline_accelerator_temperature_celsius{" not in shown
    assert 'process_resident_memory_bytes{model_name="m",process="engine"} 2.0' in shown


def test_a_machine_without_accelerators_says_nothing_of_them() -> None:
    sampler = HostSampler(lambda: HostUsage(1, 2, 3, 4))
    sampler.start()
    wait_for_newest(sampler)
    sampler.stop()
    assert "accelerator" not in text(sampler)


def test_a_driver_that_hangs_delays_no_scrape_and_is_not_believed_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs, looked = threading.Event(), []

    def read() -> HostUsage:
        if looked:
            hangs.wait()
        looked.append(True)
        return USAGE

    sampler = HostSampler(read, every_s=0.001)
    sampler.start()
    wait_for_newest(sampler)
    began = time.monotonic()
    assert "H100" in text(sampler)
    assert time.monotonic() - began < 5
    monkeypatch.setattr(host, "_OLD_AFTER_S", 0.0)
    assert text(sampler) == ""
    sampler.stop()
    hangs.set()


def test_looking_goes_on_after_a_look_that_failed() -> None:
    looks: list[int] = []

    def read() -> HostUsage:
        looks.append(1)
        if len(looks) == 1:
            raise OSError("not now")
        return USAGE

    sampler = HostSampler(read, every_s=60)
    sampler.start()
    sampler.look()
    assert wait_for_newest(sampler) == USAGE
    sampler.stop()
