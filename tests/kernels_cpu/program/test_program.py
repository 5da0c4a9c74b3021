"""The interpreter: phases in order, shares by any thread, ticks."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgetok.kernels_cpu.elementwise import launch as launch_elementwise
from edgetok.kernels_cpu.program import tables as launch_program
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS
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
)

TOKENS, SIZE, COUNT = 8, 16, 20


class Sums:
    """x += y, y += x, ... row by row: wrong unless each instruction is done before the next."""

    def __init__(self, kernels, waits, place=np.array):
        self.x = place(np.ones((TOKENS, SIZE), np.float32))
        self.y = place(np.ones((TOKENS, SIZE), np.float32))
        made = []
        for i, wait in enumerate(waits):
            a, b = (self.x, self.y) if i % 2 == 0 else (self.y, self.x)
            made.append(
                launch_elementwise.add_scaled(
                    kernels, x=a.ctypes.data, y=b.ctypes.data, size=SIZE, scale=1.0, wait=wait
                )
            )
        self.table = place(launch_program.table(made))
        self.starts = place(launch_program.phase_starts(self.table))
        self.ticks = place(np.zeros(len(made), np.int64))
        self.header = place(np.zeros(INSTR_SLOTS, np.int64))
        self.header[PROGRAM_FIRST] = self.table.ctypes.data
        self.header[PROGRAM_STARTS] = self.starts.ctypes.data
        self.header[PROGRAM_PHASES] = len(self.starts) - 1
        self.header[PROGRAM_TICKS] = self.ticks.ctypes.data
        self.ctx = place(np.zeros(32, np.int64))
        self.ctx[0] = TOKENS

    def check(self, runs):
        a = b = 1.0
        for _ in range(runs * len(self.table) // 2):
            a += b
            b += a
        np.testing.assert_allclose(self.x, a, rtol=1e-6)
        np.testing.assert_allclose(self.y, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("waits", "starts"),
    [
        ([True] * 3, [0, 1, 2, 3]),
        ([False, True, False], [0, 2, 3]),
        ([False, False], [0, 2]),
        ([False, True], [0, 2]),
    ],
)
def test_phases(kernels, waits, starts):
    sums = Sums(kernels, waits)
    offsets = (sums.starts - sums.table.ctypes.data) // (8 * INSTR_SLOTS)
    assert offsets.tolist() == starts


def test_alone(each_kernels):
    sums = Sums(each_kernels, [True, False] * (COUNT // 2))
    run = each_kernels.function("run_program")
    for _ in range(2):
        run(sums.header.ctypes.data, sums.ctx.ctypes.data, 0, 1)
    sums.check(2)
    assert (sums.ticks > 0).all() or each_kernels.isa.name == "portable"


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_together(each_kernels, threads):
    sums = Sums(each_kernels, [True] * COUNT)
    counters = np.zeros(3 * LINE, np.int64)
    team = np.zeros(INSTR_SLOTS, np.int64)
    for i, slot in enumerate((TEAM_STEP, TEAM_NEXT, TEAM_DONE)):
        team[slot] = counters.ctypes.data + 8 * LINE * i
    team[TEAM_PROGRAM], team[TEAM_CTX] = sums.header.ctypes.data, sums.ctx.ctypes.data
    lead, work, close = (each_kernels.function(f"team_{n}") for n in ("lead", "work", "close"))
    args = (team.ctypes.data, sums.ctx.ctypes.data)
    # The leader needs nobody: shares are anyone's.
    lead(*args, 0, threads)
    sums.check(1)
    helpers = [
        threading.Thread(target=work, args=(args[0], 0, tid, threads)) for tid in range(1, threads)
    ]
    for helper in helpers:
        helper.start()
    for _ in range(2):
        lead(*args, 0, threads)
    close(*args, 0, threads)
    for helper in helpers:
        helper.join()
    sums.check(3)
    claimed, done = counters[LINE], counters[2 * LINE]
    assert claimed == done == 3 * COUNT * threads
