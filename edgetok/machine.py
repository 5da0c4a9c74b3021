"""Cores and memory that this process may use."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

DEVICES = Path("/sys/devices")
_RELATION_CORE = 0  # RelationProcessorCore


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Physical cores that this process may use; of several kinds, those that are worth using.

    Decoding waits for memory, so a core's second hyper-thread adds nothing. Kernels share their
    work out evenly, so that a slow core makes the fast ones wait.
    """
    import psutil

    allowed = cores()
    found = min(allowed, psutil.cpu_count(logical=False) or allowed)
    return max(1, min(found, performance_cores() or found))


def performance_cores() -> int | None:
    """Physical performance cores that this process may use; None where all cores are alike."""
    if sys.platform == "darwin":
        return _macos_performance_cores()
    if sys.platform == "win32":
        return windows_performance_cores(_windows_cores())
    if hasattr(os, "sched_getaffinity"):
        return linux_performance_cores(os.sched_getaffinity(0))
    return None


def linux_performance_cores(allowed: Collection[int], devices: Path = DEVICES) -> int | None:
    """The same by Linux's description of the processor.

    Intel's hybrids name their cores (`cpu_core`, `cpu_atom`). Arm's have capacities, the fastest
    core's being 1024; those with at least half as much are taken, as a phone's middle cores are
    worth it and its small ones are not.

    Args:
        allowed: numbers of the CPUs that may be used.
        devices: the folder of Linux's devices.

    Source: Linux, Documentation/ABI/testing/sysfs-devices-system-cpu and sysfs-devices-cpu.
    """
    fast, slow = (_listed(devices / kind / "cpus") for kind in ("cpu_core", "cpu_atom"))
    if fast and slow:
        chosen = fast & set(allowed)
        return _count(chosen, devices) if chosen and chosen != set(allowed) else None
    capacities = {cpu: _number(devices / f"system/cpu/cpu{cpu}/cpu_capacity") for cpu in allowed}
    if len(set(capacities.values())) < 2 or not all(capacities.values()):
        return None
    fastest = max(capacities.values())
    return _count([cpu for cpu in allowed if 2 * capacities[cpu] >= fastest], devices)


def _count(cpus: Collection[int], devices: Path) -> int:
    """Physical cores of CPUs: hyper-threads of one core name the same siblings."""
    siblings = set()
    for cpu in cpus:
        file = devices / f"system/cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings.add(frozenset(_listed(file)) or frozenset({cpu}))
    return len(siblings)


def _listed(file: Path) -> set[int]:
    """The numbers of a list such as "0-3,8"; none where there is no such file."""
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError):
        for part in file.read_text().strip().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


def _number(file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return 0


def _macos_performance_cores() -> int | None:
    """Count the cores of macOS's performance level 0, where there is another level."""
    try:
        command = ["/usr/sbin/sysctl", "-n", "hw.nperflevels", "hw.perflevel0.physicalcpu"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        levels, count = int(said[0]), int(said[1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return count if levels > 1 and count > 0 else None


def windows_performance_cores(content: bytes) -> int | None:
    """The same by SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX; a higher class is a faster core.

    Args:
        content: records of cores: uint32 relationship, uint32 size of the record, then of a core
            uint8 flags, uint8 EfficiencyClass, and more.

    Source: Microsoft, winnt.h, PROCESSOR_RELATIONSHIP.
    """
    classes, place = [], 0
    while place + 10 <= len(content):
        relation = int.from_bytes(content[place : place + 4], "little")
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        if relation == _RELATION_CORE:
            classes.append(content[place + 9])
        place += max(size, 8)
    return classes.count(max(classes)) if len(set(classes)) > 1 else None


def _windows_cores() -> bytes:
    """Ask Windows for its cores; nothing where it cannot be asked."""
    content = b""
    if sys.platform == "win32":
        with contextlib.suppress(OSError, AttributeError):
            ask = ctypes.WinDLL("kernel32").GetLogicalProcessorInformationEx
            size = ctypes.c_uint32(0)
            ask(_RELATION_CORE, None, ctypes.byref(size))
            buffer = ctypes.create_string_buffer(size.value)
            if ask(_RELATION_CORE, buffer, ctypes.byref(size)):
                content = buffer.raw
    return content


def memory_bytes() -> int:
    """Bytes of the machine's memory."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import psutil

    return int(psutil.virtual_memory().total)


def peak_memory_mb() -> float:
    """Most memory that this process ever had resident, in 10^6 bytes, mapped files included."""
    # Linux' rusage starts with what the process that started this one had; VmHWM does not.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
