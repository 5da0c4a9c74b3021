"""One instruction of a recurrent layer, run on rows of several caches."""

from __future__ import annotations

import ctypes

import numpy as np

from edgetok.kernels_cpu.program import tables
from edgetok.kernels_cpu.program.abi import (
    CTX_PART_TABLE,
    CTX_PARTS,
    CTX_SLOTS,
    CTX_TOKENS,
    PART_FIRST,
    PART_ROWS,
    PART_SEEN,
    PART_SLOTS,
    PART_STATES,
)


def run(made, rows, threads, parts=()):
    """Run an instruction on `rows` rows, of which each part (state, rows) has its own."""
    table = np.zeros((len(parts), PART_SLOTS), np.int64)
    first = 0
    for row, (state, count) in zip(table, parts, strict=True):
        row[PART_STATES], row[PART_SEEN] = state.table.ctypes.data, state.seen
        row[PART_FIRST], row[PART_ROWS] = first, count
        first += count
        state.seen += count
    ctx = np.zeros(CTX_SLOTS, np.int64)
    ctx[CTX_TOKENS], ctx[CTX_PARTS], ctx[CTX_PART_TABLE] = rows, len(parts), table.ctypes.data
    instruction = tables.table([made])[0]
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(int(instruction[0]))
    for tid in range(threads):
        call(instruction.ctypes.data, ctx.ctypes.data, tid, threads)
