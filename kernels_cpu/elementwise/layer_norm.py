"""LayerNorm without a bias: out = (x - mean(x)) / sqrt(variance(x) + eps) * weight.

Rows are shared out as by `rms_norm`. The variance is the mean of squares of what is left of x, in a
second pass, so that a large mean costs no digits. Slots: `launch_layer_norm.py`. Source: arXiv
1607.06450.
"""

from __future__ import annotations

import math

import numpy as np

from edgetok.kernels_cpu.elementwise.launch_layer_norm import (
    LAYER_NORM_EPS,
    LAYER_NORM_OUT,
    LAYER_NORM_SIZE,
    LAYER_NORM_WEIGHT,
    LAYER_NORM_X,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import LANES
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32_first,
    read_f32,
    read_i64,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import add, fma, mul, splat_f32, sub, sum_lanes, zero_f32


@kernel
def layer_norm(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Normalise each row of this thread's share."""
    size = read_i64(instr + 8 * LAYER_NORM_SIZE)
    weight = read_i64(instr + 8 * LAYER_NORM_WEIGHT)
    eps = f32_from_bits(read_i64(instr + 8 * LAYER_NORM_EPS))
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    whole = size // LANES * LANES
    for row in range(share(tokens, tid, threads), share(tokens, tid + 1, threads)):
        x = read_i64(instr + 8 * LAYER_NORM_X) + 4 * size * row
        out = read_i64(instr + 8 * LAYER_NORM_OUT) + 4 * size * row
        total = zero_f32()
        for i in range(0, size, LANES):
            total = add(total, load_f32_first(x + 4 * i, min(LANES, size - i)))
        mean = sum_lanes(total) / np.float32(size)
        squares = zero_f32()
        for i in range(0, whole, LANES):
            v = sub(load_f32_first(x + 4 * i, LANES), splat_f32(mean))
            squares = fma(v, v, squares)
        rest = np.float32(0.0)
        for i in range(whole, size):  # lanes beyond the row are not of the mean's
            single = read_f32(x + 4 * i) - mean
            rest += single * single
        variance = (sum_lanes(squares) + rest) / np.float32(size)
        factor = splat_f32(np.float32(1.0) / math.sqrt(variance + eps))
        for i in range(0, size, LANES):
            count = min(LANES, size - i)
            v = mul(sub(load_f32_first(x + 4 * i, count), splat_f32(mean)), factor)
            store_f32_first(out + 4 * i, mul(v, load_f32_first(weight + 4 * i, count)), count)
