"""Cores and memory that this process may use."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Physical cores that this process may use.

    Decoding waits for memory, so a core's second hyper-thread adds nothing.
    """
    import psutil

    allowed = cores()
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def peak_memory_mb() -> float:
    """Most memory that this process ever had resident, in 10^6 bytes, mapped files included."""
    # Linux' rusage starts with what the process that started this one had; VmHWM does not.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
