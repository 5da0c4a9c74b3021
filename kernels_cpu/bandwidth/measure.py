"""Memory bandwidth of a plain read loop: the measure of everything that decodes."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np

from edgetok.errors import OptionError
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS
from edgetok.kernels_cpu.program.loader import Kernels

PASSES = 7


def read_bandwidth(kernels: Kernels, threads: int, megabytes: int = 512) -> float:
    """GB/s (10^9 bytes) that `threads` threads read together, the median of PASSES passes.

    Args:
        kernels: loaded kernels.
        threads: how many read at once, a contiguous share each.
        megabytes: size of the buffer, many times the caches.

    Raises:
        OptionError: threads or megabytes is not positive.
    """
    if threads < 1 or megabytes < 1:
        raise OptionError(f"read bandwidth of {threads} threads over {megabytes} MB")
    run_bytes = 8 * kernels.isa.vector_bytes
    runs = (megabytes << 20) // run_bytes
    buffer = np.ones(runs * run_bytes, np.uint8)
    sink = np.zeros(threads * kernels.isa.vector_bytes, np.uint8)
    instruction = np.zeros(INSTR_SLOTS, np.int64)
    instruction[2:5] = buffer.ctypes.data, runs, sink.ctypes.data
    read = kernels.function("read_all")
    team = Team(threads)

    def share(tid: int) -> None:
        read(instruction.ctypes.data, 0, tid, threads)

    team.seconds(share)
    seconds = statistics.median(team.seconds(share) for _ in range(PASSES))
    team.close()
    return buffer.nbytes / seconds / 1e9


class Team:
    """Runs functions on several threads at once and says how long they took together.

    Each thread stays on a core of its own where the system lets it: a pass takes milliseconds, and
    two threads that begin on one core may well end there.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._gate = threading.Barrier(threads + 1)
        self._times: list[tuple[float, float]] = [(0.0, 0.0)] * threads
        self._work: Callable[[int], None] | None = None
        for tid in range(threads):
            threading.Thread(target=self._serve, args=(tid,), daemon=True).start()

    def seconds(self, work: Callable[[int], None]) -> float:
        """Seconds from the first thread's beginning to the last one's end of `work(tid)`."""
        self._work = work
        self._gate.wait()
        self._gate.wait()
        return max(end for _, end in self._times) - min(begin for begin, _ in self._times)

    def close(self) -> None:
        """End the threads."""
        self._work = None
        self._gate.wait()

    def _serve(self, tid: int) -> None:
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[tid % len(cores)]})  # of this thread alone
        while True:
            self._gate.wait()
            if self._work is None:
                return
            begin = time.perf_counter()
            self._work(tid)
            self._times[tid] = begin, time.perf_counter()
            self._gate.wait()
