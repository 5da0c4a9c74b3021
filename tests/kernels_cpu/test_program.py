"""The interpreter: order, barriers, profile; whatever the number of threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgetok.kernels_cpu import launch_elementwise, launch_program
from edgetok.kernels_cpu.abi import INSTR_SLOTS
from edgetok.kernels_cpu.launch_program import (
    LINE,
    PROGRAM_ARRIVALS,
    PROGRAM_BARRIER,
    PROGRAM_COUNT,
    PROGRAM_FIRST,
    PROGRAM_TICKS,
)

TOKENS, SIZE = 8, 16


def sums(kernels, count):
    """x += y, y += x, ... row by row: wrong unless each instruction is done before the next."""
    x = np.ones((TOKENS, SIZE), np.float32)
    y = np.ones((TOKENS, SIZE), np.float32)
    made = []
    for i in range(count):
        a, b = (x, y) if i % 2 == 0 else (y, x)
        made.append(
            launch_elementwise.add_scaled(
                kernels, x=a.ctypes.data, y=b.ctypes.data, size=SIZE, scale=1.0, wait=True
            )
        )
    return x, y, launch_program.table(made)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_share_of_every_instruction_is_done_in_order(each_kernels, threads):
    x, y, instructions = sums(each_kernels, 20)
    counters = np.zeros(LINE * (threads + 1), np.int64)
    ticks = np.zeros(len(instructions), np.int64)
    header = np.zeros(INSTR_SLOTS, np.int64)
    header[PROGRAM_FIRST] = instructions.ctypes.data
    header[PROGRAM_COUNT] = len(instructions)
    header[PROGRAM_BARRIER] = counters.ctypes.data
    header[PROGRAM_ARRIVALS] = counters.ctypes.data + 8 * LINE
    header[PROGRAM_TICKS] = ticks.ctypes.data
    ctx = np.zeros(32, np.int64)
    ctx[0] = TOKENS
    run = each_kernels.function("run_program")

    def share(tid):
        for _ in range(2):
            run(header.ctypes.data, ctx.ctypes.data, tid, threads)

    team = [threading.Thread(target=share, args=(tid,)) for tid in range(1, threads)]
    for thread in team:
        thread.start()
    share(0)
    for thread in team:
        thread.join()
    a, b = 1.0, 1.0
    for _ in range(20):
        a += b
        b += a
    np.testing.assert_array_equal(x, np.float32(a))
    np.testing.assert_array_equal(y, np.float32(b))
    expected = 40 * threads if threads > 1 else 0
    assert counters[0] == expected
    assert (ticks > 0).all() or each_kernels.isa.name == "portable"


def test_instructions_without_a_barrier_do_not_wait(kernels):
    """One thread runs through alone: nothing to wait for."""
    _, _, instructions = sums(kernels, 6)
    instructions[:, 1] = 0
    counters = np.zeros(LINE * 3, np.int64)
    header = np.zeros(INSTR_SLOTS, np.int64)
    header[PROGRAM_FIRST] = instructions.ctypes.data
    header[PROGRAM_COUNT] = len(instructions)
    header[PROGRAM_BARRIER] = counters.ctypes.data
    header[PROGRAM_ARRIVALS] = counters.ctypes.data + 8 * LINE
    ctx = np.zeros(32, np.int64)
    ctx[0] = TOKENS
    kernels.function("run_program")(header.ctypes.data, ctx.ctypes.data, 0, 2)
    assert counters[0] == 0
