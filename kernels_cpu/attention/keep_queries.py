"""Copying a run's last queries into a ring. Slots and arguments: `launch_queries.py`."""

from __future__ import annotations

from edgetok.kernels_cpu.attention.launch_queries import (
    CTX_QUERIES,
    CTX_QUERY_ROW,
    CTX_QUERY_ROWS,
    KEEP_HEAD_DIM,
    KEEP_HEADS,
    KEEP_LAYER,
    KEEP_Q,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import LANES
from edgetok.kernels_cpu.simd.memory import load_f32_first, read_i64, store_f32_first


@kernel
def keep_queries(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Copy this thread's share of heads; of a long run the last tokens alone."""
    base = read_i64(ctx + 8 * CTX_QUERIES)
    if base == 0:
        return
    rows = read_i64(ctx + 8 * CTX_QUERY_ROWS)
    first = read_i64(ctx + 8 * CTX_QUERY_ROW)
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    heads = read_i64(instr + 8 * KEEP_HEADS)
    size = read_i64(instr + 8 * KEEP_HEAD_DIM)
    base += 4 * read_i64(instr + 8 * KEEP_LAYER) * rows * heads * size
    units = tokens * heads
    begin = max(share(units, tid, threads), (tokens - rows) * heads)
    for unit in range(begin, share(units, tid + 1, threads)):
        source = read_i64(instr + 8 * KEEP_Q) + 4 * size * unit
        row = (first + unit // heads) % rows
        to = base + 4 * size * (row * heads + unit % heads)
        for i in range(0, size, LANES):
            count = min(LANES, size - i)
            store_f32_first(to + 4 * i, load_f32_first(source + 4 * i, count), count)
