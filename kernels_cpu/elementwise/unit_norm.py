"""RMSNorm without a weight: out = x / sqrt(mean(x^2) + eps). Slots: `launch_unit_norm.py`."""

from __future__ import annotations

import math

import numpy as np

from edgetok.kernels_cpu.elementwise.launch_unit_norm import (
    UNIT_EPS,
    UNIT_OUT,
    UNIT_SIZE,
    UNIT_UNITS,
    UNIT_X,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import LANES
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32_first,
    read_i64,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import fma, mul, splat_f32, sum_lanes, zero_f32


@kernel
def unit_norm(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Normalise each row of this thread's share."""
    size = read_i64(instr + 8 * UNIT_SIZE)
    eps = f32_from_bits(read_i64(instr + 8 * UNIT_EPS))
    rows = read_i64(ctx + 8 * CTX_TOKENS) * read_i64(instr + 8 * UNIT_UNITS)
    for row in range(share(rows, tid, threads), share(rows, tid + 1, threads)):
        x = read_i64(instr + 8 * UNIT_X) + 4 * size * row
        out = read_i64(instr + 8 * UNIT_OUT) + 4 * size * row
        squares = zero_f32()
        for i in range(0, size, LANES):
            v = load_f32_first(x + 4 * i, min(LANES, size - i))
            squares = fma(v, v, squares)
        mean = sum_lanes(squares) / np.float32(size)
        factor = splat_f32(np.float32(1.0) / math.sqrt(mean + eps))
        for i in range(0, size, LANES):
            count = min(LANES, size - i)
            store_f32_first(out + 4 * i, mul(load_f32_first(x + 4 * i, count), factor), count)
