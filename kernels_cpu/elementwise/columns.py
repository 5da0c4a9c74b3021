"""Some columns of a matrix, and a matrix times a number that lies in memory.

    columns: out[t] = x[t, first : first + size]
    scale_by: x = weight * x

Rows are shared out as by `add_scaled`. Slots: `elementwise/launch_columns.py`.
"""

from __future__ import annotations

from edgetok.kernels_cpu.elementwise.launch_columns import (
    COLUMNS_FIRST,
    COLUMNS_OUT,
    COLUMNS_SIZE,
    COLUMNS_WIDTH,
    COLUMNS_X,
    SCALE_SIZE,
    SCALE_WEIGHT,
    SCALE_X,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import LANES
from edgetok.kernels_cpu.simd.memory import (
    load_f32_first,
    read_f32,
    read_i64,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import mul, splat_f32


@kernel
def columns(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Copy this thread's share of rows."""
    size = read_i64(instr + 8 * COLUMNS_SIZE)
    width = read_i64(instr + 8 * COLUMNS_WIDTH)
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    first = read_i64(instr + 8 * COLUMNS_FIRST)
    for t in range(share(tokens, tid, threads), share(tokens, tid + 1, threads)):
        x = read_i64(instr + 8 * COLUMNS_X) + 4 * (t * width + first)
        out = read_i64(instr + 8 * COLUMNS_OUT) + 4 * t * size
        for i in range(0, size, LANES):
            count = min(LANES, size - i)
            store_f32_first(out + 4 * i, load_f32_first(x + 4 * i, count), count)


@kernel
def scale_by(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Multiply this thread's share of rows."""
    size = read_i64(instr + 8 * SCALE_SIZE)
    factor = splat_f32(read_f32(read_i64(instr + 8 * SCALE_WEIGHT)))
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    first = share(tokens, tid, threads) * size
    count = share(tokens, tid + 1, threads) * size - first
    x = read_i64(instr + 8 * SCALE_X) + 4 * first
    for i in range(0, count, LANES):
        rest = min(LANES, count - i)
        store_f32_first(x + 4 * i, mul(load_f32_first(x + 4 * i, rest), factor), rest)
