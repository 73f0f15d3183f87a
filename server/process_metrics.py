"""Memory of the server's and the engine's processes, and what a GPU's driver tells."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pynvml
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LABELS = ["device", "device_name"]


class ProcessCollector(Collector):
    def __init__(self) -> None:
        self._process = psutil.Process()
        try:
            pynvml.nvmlInit()
            self._num_gpus = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError:
            self._num_gpus = 0

    def collect(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "ridgeline_process_resident_bytes", "Memory by process", labels=["process"]
        )
        memory.add_metric(["server"], self._process.memory_info().rss)
        memory.add_metric(["engine"], self._engine_bytes())
        yield memory
        if self._num_gpus:
            yield from self._gpus()

    def _engine_bytes(self) -> int:
        """Of the engine's process and its ranks; what they share counts for each."""
        total = 0
        for child in self._process.children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.Error:
                continue  # it has just ended
        return total

    def _gpus(self) -> Iterator[Metric]:
        used, total, power, busy = (
            GaugeMetricFamily(f"ridgeline_accelerator_{name}", text, labels=_LABELS)
            for name, text in (
                ("memory_used_bytes", "Memory in use, of all processes"),
                ("memory_total_bytes", "Memory of the device"),
                ("power_watts", "Power drawn"),
                ("utilization_ratio", "Share of the time in which some kernel ran"),
            )
        )
        for number in range(self._num_gpus):
            try:
                device = pynvml.nvmlDeviceGetHandleByIndex(number)
                labels = [str(number), str(pynvml.nvmlDeviceGetName(device))]
                memory = pynvml.nvmlDeviceGetMemoryInfo(device)
                used.add_metric(labels, memory.used)
                total.add_metric(labels, memory.total)
                power.add_metric(labels, pynvml.nvmlDeviceGetPowerUsage(device) / 1000)
                busy.add_metric(labels, pynvml.nvmlDeviceGetUtilizationRates(device).gpu / 100)
            except pynvml.NVMLError:
                continue  # some cards do not tell all of it
        yield from (used, total, power, busy)
