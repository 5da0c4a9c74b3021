"""Rows that go on, against NumPy's indexing, on every instruction set."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program import abi
from edgetok.kernels_cpu.program import tables as launch_program
from edgetok.kernels_cpu.program.launch_rows import go_on

MODULES = ("program.rows",)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("chosen", [[0], [4], [0, 1, 2, 3, 4, 5, 6], [1, 2, 5], [6], []])
def test_rows_are_copied_together(each_kernels, guard, threads, chosen):
    rng = np.random.default_rng(0)
    buffers = [guard(rng.integers(0, 2**30, (7, words)).astype(np.int32)) for words in (1, 24, 130)]
    before = [b.copy() for b in buffers]
    other = guard(np.full((len(chosen) or 1, 130), -1, np.int32))
    rows, parts = guard(np.array([*chosen, 99], np.int32)), guard(np.zeros(4, np.int64))
    moves = [(b.ctypes.data, b.ctypes.data, b.shape[1]) for b in buffers]
    moves.insert(0, (buffers[2].ctypes.data, other.ctypes.data, 130))
    ctx = np.zeros(abi.CTX_SLOTS, np.int64)
    ctx[abi.CTX_TOKENS], ctx[abi.CTX_PART_TABLE] = 7, 123
    ctx[abi.CTX_TAIL + abi.LIST_ROWS] = rows.ctypes.data
    ctx[abi.CTX_TAIL + abi.LIST_COUNT] = len(chosen)
    for table in (0, parts.ctypes.data):
        ctx[abi.CTX_TAIL + abi.LIST_PARTS] = table
        for buffer, old in zip(buffers, before, strict=True):
            buffer[...] = old
        for instr in launch_program.table(go_on(each_kernels, rows=abi.CTX_TAIL, moves=moves)):
            call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(int(instr[0]))
            for tid in reversed(range(threads)):
                call(instr.ctypes.data, ctx.ctypes.data, tid, threads)
        for buffer, old in zip(buffers, before, strict=True):
            np.testing.assert_array_equal(buffer[: len(chosen)], old[chosen])
            np.testing.assert_array_equal(buffer[len(chosen) :], old[len(chosen) :])
        np.testing.assert_array_equal(other[: len(chosen)], before[2][chosen])
        assert ctx[abi.CTX_TOKENS] == len(chosen)
        assert ctx[abi.CTX_PART_TABLE] == (table or 123)


def test_launchers_refuse(kernels):
    with pytest.raises(ShapeError, match="0 buffers"):
        go_on(kernels, rows=abi.CTX_HEAD, moves=[])
    with pytest.raises(ShapeError, match="none empty"):
        go_on(kernels, rows=abi.CTX_HEAD, moves=[(64, 64, 0)])
