"""A team of plain Python threads that runs compiled programs together.

The caller of `Team.run` is thread 0. The others stay in one compiled function: they spin for a
moment, then yield, then sleep in the kernel until the next step, and never hold the GIL meanwhile.
They start with the first step, end with `close`, at the interpreter's exit or when the team is
collected; after a fork the child starts its own.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np

from edgetok.errors import EdgetokError
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS
from edgetok.kernels_cpu.program.loader import Kernels
from edgetok.kernels_cpu.program.memory import aligned_bytes
from edgetok.kernels_cpu.program.tables import (
    LINE,
    PROGRAM_FIRST,
    PROGRAM_PHASES,
    PROGRAM_STARTS,
    PROGRAM_TICKS,
    TEAM_CTX,
    TEAM_DONE,
    TEAM_NEXT,
    TEAM_PROGRAM,
    TEAM_STEP,
    Instruction,
    Table,
    phase_starts,
    table,
)

_JOIN_S = 5.0


class Program:
    """Instructions in memory, ready to run. Made by `Team.program`; keeps its tables alive.

    Attributes:
        table: [count, INSTR_SLOTS] int64; arguments may be changed between runs.
        ticks: [count] int64: with `profile`, ticks of the first share of each instruction, added
            up over the runs.
    """

    def __init__(
        self, instructions: Sequence[Instruction | Table] | Table, profile: bool = False
    ) -> None:
        self.table = table(instructions)
        self.ticks = np.zeros(len(self.table), np.int64)
        self.header = np.zeros(INSTR_SLOTS, np.int64)
        self._starts = phase_starts(self.table)
        self.header[PROGRAM_FIRST] = self.table.ctypes.data
        self.header[PROGRAM_STARTS] = self._starts.ctypes.data
        self.header[PROGRAM_PHASES] = len(self._starts) - 1
        if profile:
            self.header[PROGRAM_TICKS] = self.ticks.ctypes.data
        self.address: int = self.header.ctypes.data


class _Workers:
    """Tables and threads of a team; what the threads themselves may refer to."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.pid = os.getpid()
        self.threads: list[threading.Thread] = []
        self.counters = aligned_bytes(8 * LINE * 3).view(np.int64)
        self.header = aligned_bytes(8 * INSTR_SLOTS).view(np.int64)
        for i, slot in enumerate((TEAM_STEP, TEAM_NEXT, TEAM_DONE)):
            self.header[slot] = self.counters.ctypes.data + 8 * LINE * i
        self.address: int = self.header.ctypes.data

    def start(self, threads: int) -> None:
        """Start threads 1 and on."""
        work = self.kernels.function("team_work")
        try:
            for tid in range(1, threads):
                thread = threading.Thread(
                    target=work,
                    args=(self.address, 0, tid, threads),
                    name=f"edgetok-{tid}",
                    daemon=True,
                )
                thread.start()
                self.threads.append(thread)
        except RuntimeError as error:
            self.stop()
            raise EdgetokError(
                f"cannot start {threads} threads ({error}); use fewer with --threads"
            ) from error

    def stop(self) -> None:
        """End the threads; in a forked child there are none."""
        if self.threads and self.pid == os.getpid():
            self.kernels.function("team_close")(self.address, 0, 0, 0)
            for thread in self.threads:
                thread.join(_JOIN_S)
        self.threads = []


class Team:
    """Runs programs on `threads` threads. One caller at a time: hold `turn` while running.

    Attributes:
        threads: how many compute.
        turn: a lock for callers that share the team; its holder may take it again.
    """

    def __init__(self, kernels: Kernels, threads: int) -> None:
        """Prepare; threads start with the first step."""
        self.threads = threads
        self.turn = threading.RLock()
        self._kernels = kernels
        self._run = kernels.function("run_program")
        self._lead = kernels.function("team_lead")
        self._closed = False
        self._begin()
        _TEAMS.add(self)

    def _begin(self) -> None:
        self._workers = _Workers(self._kernels)
        self._finalizer = weakref.finalize(self, self._workers.stop)

    def run(self, program: Program, ctx: int) -> None:
        """Run a program to its end.

        Args:
            program: from this team's kernels.
            ctx: address of the run's state (`abi.py`).

        Raises:
            EdgetokError: the team was closed, or threads cannot be started.
        """
        if self._closed:
            raise EdgetokError("the team of threads was closed; load the model again")
        workers = self._workers
        if self.threads == 1:
            self.run_alone(program, ctx)
            return
        if not workers.threads:
            workers.start(self.threads)
        workers.header[TEAM_PROGRAM] = program.address
        workers.header[TEAM_CTX] = ctx
        self._lead(workers.address, ctx, 0, self.threads)

    def run_alone(self, program: Program, ctx: int) -> None:
        """The same on the calling thread, without the others."""
        self._run(program.address, ctx, 0, 1)

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        self._closed = True
        self._finalizer()

    def after_fork(self) -> None:
        """Begin anew in a forked child: the threads are gone, and so may be who had the turn."""
        self._finalizer.detach()
        self.turn = threading.RLock()
        self._begin()


_TEAMS: weakref.WeakSet[Team] = weakref.WeakSet()


def _after_fork() -> None:
    for team in list(_TEAMS):
        team.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
