"""Some columns of a matrix, and a matrix times numbers that lie in memory.

    columns: out[t] = x[t, first : first + size]
    scale_by: x = weight * x
    scale_columns: x[t, h] = weight * x[t, h]
    sigmoid_scale: x[t, h] = sigmoid(gate[t, h]) * x[t, h]

Rows are shared out as by `add_scaled`, those of `sigmoid_scale` in runs of columns. Slots:
`elementwise/launch_columns.py`.
"""

from __future__ import annotations

from edgetok.kernels_cpu.elementwise.launch_columns import (
    COLUMNS_FIRST,
    COLUMNS_OUT,
    COLUMNS_SIZE,
    COLUMNS_WIDTH,
    COLUMNS_X,
    SCALE_COLUMNS_HEADS,
    SCALE_COLUMNS_SIZE,
    SCALE_COLUMNS_WEIGHT,
    SCALE_COLUMNS_X,
    SCALE_SIZE,
    SCALE_WEIGHT,
    SCALE_X,
    SIGMOID_GATE,
    SIGMOID_HEADS,
    SIGMOID_SIZE,
    SIGMOID_VALUE,
)
from edgetok.kernels_cpu.elementwise.norm import RUN, share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd import math as vmath
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


@kernel
def scale_columns(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Multiply this thread's share of heads."""
    size = read_i64(instr + 8 * SCALE_COLUMNS_SIZE)
    weight = read_i64(instr + 8 * SCALE_COLUMNS_WEIGHT)
    rows = read_i64(ctx + 8 * CTX_TOKENS) * read_i64(instr + 8 * SCALE_COLUMNS_HEADS)
    for row in range(share(rows, tid, threads), share(rows, tid + 1, threads)):
        x = read_i64(instr + 8 * SCALE_COLUMNS_X) + 4 * size * row
        for i in range(0, size, LANES):
            rest = min(LANES, size - i)
            factor = load_f32_first(weight + 4 * i, rest)
            store_f32_first(x + 4 * i, mul(load_f32_first(x + 4 * i, rest), factor), rest)


@kernel
def sigmoid_scale(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Multiply this thread's share of runs of columns."""
    gate = read_i64(instr + 8 * SIGMOID_GATE)
    value = read_i64(instr + 8 * SIGMOID_VALUE)
    size = read_i64(instr + 8 * SIGMOID_SIZE)
    runs = (size + RUN - 1) // RUN
    total = runs * read_i64(ctx + 8 * CTX_TOKENS) * read_i64(instr + 8 * SIGMOID_HEADS)
    for unit in range(share(total, tid, threads), share(total, tid + 1, threads)):
        row = unit // runs
        begin = unit % runs * RUN
        factor = vmath.sigmoid(splat_f32(read_f32(gate + 4 * row)))
        for i in range(begin, min(begin + RUN, size), LANES):
            count = min(LANES, size - i)
            at = value + 4 * (size * row + i)
            store_f32_first(at, mul(load_f32_first(at, count), factor), count)
