"""Keeping a run's last queries against a loop in NumPy, on every instruction set."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from edgetok.kernels_cpu.attention.launch_queries import (
    CTX_QUERIES,
    CTX_QUERY_ROW,
    CTX_QUERY_ROWS,
    keep_queries,
)
from edgetok.kernels_cpu.program import tables as launch_program
from edgetok.kernels_cpu.program.abi import CTX_SLOTS

MODULES = ("attention.keep_queries",)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("heads", "size"), [(1, 16), (3, 24), (4, 64)])
def test_last_queries(each_kernels, guard, heads, size, threads):
    rng = np.random.default_rng(size)
    rows, layers = 8, 2
    for tokens, first in ((1, 0), (1, 7), (5, 6), (8, 3), (21, 5)):
        q = guard(rng.standard_normal((tokens, heads, size)).astype(np.float32))
        ring = guard(np.full((layers, rows, heads, size), np.nan, np.float32))
        expected = ring.copy()
        for t in range(max(0, tokens - rows), tokens):
            expected[1, (first + t) % rows] = q[t]
        made = keep_queries(each_kernels, q=q.ctypes.data, layer=1, heads=heads, head_dim=size)
        instr = launch_program.table([made])[0]
        ctx = np.zeros(CTX_SLOTS, np.int64)
        ctx[0] = tokens
        ctx[[CTX_QUERIES, CTX_QUERY_ROWS, CTX_QUERY_ROW]] = ring.ctypes.data, rows, first
        call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(int(instr[0]))
        for tid in range(threads):
            call(instr.ctypes.data, ctx.ctypes.data, tid, threads)
        np.testing.assert_array_equal(ring, expected)
        ctx[CTX_QUERIES] = 0
        call(instr.ctypes.data, ctx.ctypes.data, 0, 1)  # touches nothing
        np.testing.assert_array_equal(ring, expected)
