"""Keeping a run's last queries against a loop in NumPy, on every instruction set."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from edgetok.kernels_cpu.attention.launch_queries import keep_queries
from edgetok.kernels_cpu.program import abi
from edgetok.kernels_cpu.program import tables as launch_program

MODULES = ("attention.keep_queries",)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("heads", "size"), [(1, 16), (3, 24), (4, 64)])
def test_last_queries(each_kernels, guard, heads, size, threads):
    """Several parts, some of which keep nothing."""
    rng = np.random.default_rng(size)
    rows, layers = 8, 2
    counts, firsts = (1, 1, 5, 3, 8, 21, 0), (0, 7, 6, None, 3, 5, 2)
    q = guard(rng.standard_normal((sum(counts), heads, size)).astype(np.float32))
    parts = guard(np.zeros((len(counts), abi.PART_SLOTS), np.int64))
    rings, expected, at = [], [], 0
    for part, tokens, first in zip(parts, counts, firsts, strict=True):
        ring = guard(np.full((layers, rows, heads, size), np.nan, np.float32))
        part[[abi.PART_FIRST, abi.PART_ROWS]] = at, tokens
        if first is not None:
            part[abi.PART_QUERIES] = ring.ctypes.data
            part[[abi.PART_QUERY_ROWS, abi.PART_QUERY_ROW]] = rows, first
        rings.append(ring)
        expected.append(ring.copy())
        for t in range(max(0, tokens - rows), tokens if first is not None else 0):
            expected[-1][1, (first + t) % rows] = q[at + t]
        at += tokens
    made = keep_queries(each_kernels, q=q.ctypes.data, layer=1, heads=heads, head_dim=size)
    instr = launch_program.table([made])[0]
    ctx = np.zeros(abi.CTX_SLOTS, np.int64)
    ctx[abi.CTX_TOKENS], ctx[abi.CTX_PARTS] = at, len(parts)
    ctx[abi.CTX_PART_TABLE] = parts.ctypes.data
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(int(instr[0]))
    for tid in range(threads):
        call(instr.ctypes.data, ctx.ctypes.data, tid, threads)
    for ring, wanted in zip(rings, expected, strict=True):
        np.testing.assert_array_equal(ring, wanted)
