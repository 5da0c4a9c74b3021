"""RMSNorm and the residual sum.

    rms_norm: out = x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467)
    add_scaled: x = x + scale * y

Sums are float32, in four vectors of partial sums. Rows are shared out by `share`, the same for both
kernels, so that no barrier is needed between them. Slots: `elementwise/launch.py`.
"""

from __future__ import annotations

import math

import numpy as np

from edgetok.kernels_cpu.elementwise.launch import (
    ADD_SCALE,
    ADD_SIZE,
    ADD_X,
    ADD_Y,
    NORM_EPS,
    NORM_OUT,
    NORM_SIZE,
    NORM_UNITS,
    NORM_WEIGHT,
    NORM_X,
)
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import LANES, inline, outline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32,
    load_f32_first,
    read_i64,
    store_f32,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import add, fma, mul, splat_f32, sum_lanes, zero_f32

RUN = 64  # floats that are shared out together: four cache lines


@inline
def share(units: int, tid: int, threads: int) -> int:
    """First of the units that thread `tid` does; `share(units, tid + 1, threads)` ends them."""
    return units * tid // threads


@inline
def share_of_runs(count: int, tid: int, threads: int) -> int:
    """First of `count` floats that thread `tid` does, shared out in runs of four cache lines."""
    first: int = RUN * share((count + RUN - 1) // RUN, tid, threads)
    return min(first, count)


@outline
def _norm_row(x: int, out: int, weight: int, size: int, eps: float) -> None:
    whole = size // LANES * LANES
    s0 = zero_f32()
    s1 = zero_f32()
    s2 = zero_f32()
    s3 = zero_f32()
    i = 0
    while i + 4 * LANES <= whole:
        v0 = load_f32(x + 4 * i)
        v1 = load_f32(x + 4 * (i + LANES))
        v2 = load_f32(x + 4 * (i + 2 * LANES))
        v3 = load_f32(x + 4 * (i + 3 * LANES))
        s0 = fma(v0, v0, s0)
        s1 = fma(v1, v1, s1)
        s2 = fma(v2, v2, s2)
        s3 = fma(v3, v3, s3)
        i += 4 * LANES
    while i < size:
        v0 = load_f32_first(x + 4 * i, min(LANES, size - i))
        s0 = fma(v0, v0, s0)
        i += LANES
    mean = sum_lanes(add(add(s0, s1), add(s2, s3))) / np.float32(size)
    factor = splat_f32(np.float32(1.0) / math.sqrt(mean + eps))
    for i in range(0, whole, LANES):
        store_f32(out + 4 * i, mul(mul(load_f32(x + 4 * i), factor), load_f32(weight + 4 * i)))
    if whole < size:
        rest = size - whole
        v0 = mul(load_f32_first(x + 4 * whole, rest), factor)
        v0 = mul(v0, load_f32_first(weight + 4 * whole, rest))
        store_f32_first(out + 4 * whole, v0, rest)


@kernel
def rms_norm(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Normalise each row of this thread's share."""
    x = read_i64(instr + 8 * NORM_X)
    out = read_i64(instr + 8 * NORM_OUT)
    weight = read_i64(instr + 8 * NORM_WEIGHT)
    size = read_i64(instr + 8 * NORM_SIZE)
    eps = f32_from_bits(read_i64(instr + 8 * NORM_EPS))
    rows = read_i64(ctx + 8 * CTX_TOKENS) * read_i64(instr + 8 * NORM_UNITS)
    for row in range(share(rows, tid, threads), share(rows, tid + 1, threads)):
        _norm_row(x + 4 * size * row, out + 4 * size * row, weight, size, eps)


@kernel
def add_scaled(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Add this thread's share of rows."""
    size = read_i64(instr + 8 * ADD_SIZE)
    scale = splat_f32(f32_from_bits(read_i64(instr + 8 * ADD_SCALE)))
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    first = share(tokens, tid, threads) * size
    count = share(tokens, tid + 1, threads) * size - first
    x = read_i64(instr + 8 * ADD_X) + 4 * first
    y = read_i64(instr + 8 * ADD_Y) + 4 * first
    whole = count // LANES * LANES
    for i in range(0, whole, LANES):
        store_f32(x + 4 * i, fma(load_f32(y + 4 * i), scale, load_f32(x + 4 * i)))
    if whole < count:
        rest = count - whole
        v = load_f32_first(x + 4 * whole, rest)
        v = fma(load_f32_first(y + 4 * whole, rest), scale, v)
        store_f32_first(x + 4 * whole, v, rest)
