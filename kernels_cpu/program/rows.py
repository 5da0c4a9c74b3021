"""Which rows go on: copying them together, and telling the kernels that follow.

Behind the last layer's keys and values nothing is left in a cache, so only rows whose logits are
wanted (or whose attention mass) go on. Arguments: `program/launch_rows.py`, lists: `abi.py`.
"""

from __future__ import annotations

from edgetok.kernels_cpu.program.abi import (
    CTX_PART_TABLE,
    CTX_TOKENS,
    LIST_COUNT,
    LIST_PARTS,
    LIST_ROWS,
    kernel,
)
from edgetok.kernels_cpu.program.launch_rows import (
    GATHER_LIST,
    GATHER_ROW_WORDS,
    GATHER_SOURCE,
    GATHER_TO,
    USE_LIST,
)
from edgetok.kernels_cpu.simd.emit import LANES
from edgetok.kernels_cpu.simd.memory import (
    load_f32_first,
    read_i32,
    read_i64,
    store_f32_first,
    write_i64,
)


@kernel
def gather_rows(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Copy this thread's share of every row's words, row by row: source and result may be one."""
    source = read_i64(instr + 8 * GATHER_SOURCE)
    to = read_i64(instr + 8 * GATHER_TO)
    words = read_i64(instr + 8 * GATHER_ROW_WORDS)
    rows = ctx + 8 * read_i64(instr + 8 * GATHER_LIST)
    vectors = (words + LANES - 1) // LANES
    begin = vectors * tid // threads * LANES
    end = min(vectors * (tid + 1) // threads * LANES, words)
    for i in range(read_i64(rows + 8 * LIST_COUNT)):
        row = read_i32(read_i64(rows + 8 * LIST_ROWS) + 4 * i)
        x = source + 4 * words * row
        out = to + 4 * words * i
        if x == out:
            continue
        for word in range(begin, end, LANES):
            count = min(LANES, end - word)
            store_f32_first(out + 4 * word, load_f32_first(x + 4 * word, count), count)


@kernel
def use_rows(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Make a list's rows the run's rows; alone between two barriers, as every kernel reads them."""
    if tid == 0:
        rows = ctx + 8 * read_i64(instr + 8 * USE_LIST)
        write_i64(ctx + 8 * CTX_TOKENS, read_i64(rows + 8 * LIST_COUNT))
        parts = read_i64(rows + 8 * LIST_PARTS)
        if parts != 0:
            write_i64(ctx + 8 * CTX_PART_TABLE, parts)
