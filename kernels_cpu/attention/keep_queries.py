"""Copying each part's last queries into a ring. Arguments: `launch_queries.py`, parts: `abi.py`."""

from __future__ import annotations

from edgetok.kernels_cpu.attention.launch_queries import (
    KEEP_HEAD_DIM,
    KEEP_HEADS,
    KEEP_LAYER,
    KEEP_Q,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import (
    CTX_PART_TABLE,
    CTX_PARTS,
    CTX_TOKENS,
    PART_FIRST,
    PART_QUERIES,
    PART_QUERY_ROW,
    PART_QUERY_ROWS,
    PART_ROWS,
    PART_SLOTS,
    kernel,
)
from edgetok.kernels_cpu.simd.emit import LANES, outline
from edgetok.kernels_cpu.simd.memory import load_f32_first, read_i64, store_f32_first


@outline
def _keep(instr: int, part: int, begin: int, end: int) -> None:
    """Copy of units (row and head) begin..end those that are the part's last rows'."""
    rows = read_i64(part + 8 * PART_QUERY_ROWS)
    row_of_first = read_i64(part + 8 * PART_QUERY_ROW)
    first = read_i64(part + 8 * PART_FIRST)
    tokens = read_i64(part + 8 * PART_ROWS)
    heads = read_i64(instr + 8 * KEEP_HEADS)
    size = read_i64(instr + 8 * KEEP_HEAD_DIM)
    ring = read_i64(part + 8 * PART_QUERIES)
    ring += 4 * read_i64(instr + 8 * KEEP_LAYER) * rows * heads * size
    begin = max(begin, first * heads, (first + tokens - rows) * heads)
    for unit in range(begin, min(end, (first + tokens) * heads)):
        source = read_i64(instr + 8 * KEEP_Q) + 4 * size * unit
        row = (row_of_first + unit // heads - first) % rows
        to = ring + 4 * size * (row * heads + unit % heads)
        for i in range(0, size, LANES):
            count = min(LANES, size - i)
            store_f32_first(to + 4 * i, load_f32_first(source + 4 * i, count), count)


@kernel
def keep_queries(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Copy this thread's share of heads; of a long part the last rows alone."""
    units = read_i64(ctx + 8 * CTX_TOKENS) * read_i64(instr + 8 * KEEP_HEADS)
    begin, end = share(units, tid, threads), share(units, tid + 1, threads)
    part = read_i64(ctx + 8 * CTX_PART_TABLE)
    for _ in range(read_i64(ctx + 8 * CTX_PARTS)):
        if read_i64(part + 8 * PART_QUERIES) != 0:
            _keep(instr, part, begin, end)
        part += 8 * PART_SLOTS
