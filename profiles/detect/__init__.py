"""What is here: accelerators, processor, memory and the container's limits on them."""

from profiles.detect.cgroup import ContainerLimits, parse_cpu_quota, parse_memory_limit
from profiles.detect.cpu import Clock, NumaNode, Topology, parse_cpuinfo
from profiles.detect.devices import (
    DetectedDevice,
    DetectedLink,
    Findings,
    Mig,
    OtherProcesses,
    PcieLevel,
)
from profiles.detect.host import Host, read_host, usable_cores
from profiles.detect.report import (
    Detected,
    DetectedGroup,
    detect_hardware,
    detect_host,
    report,
)

__all__ = [
    "Clock",
    "ContainerLimits",
    "Detected",
    "DetectedDevice",
    "DetectedGroup",
    "DetectedLink",
    "Findings",
    "Host",
    "Mig",
    "NumaNode",
    "OtherProcesses",
    "PcieLevel",
    "Topology",
    "detect_hardware",
    "detect_host",
    "parse_cpu_quota",
    "parse_cpuinfo",
    "parse_memory_limit",
    "read_host",
    "report",
    "usable_cores",
]
