"""Queries that grow with the logarithm of their token's position, in place.

    x[t] = float32(1 + growth log(1 + floor(position[t] / every))) x[t]

The factor is computed in float64 by additions and multiplications in a fixed order, so that every
instruction set has the same bits. Heads are shared out as by `rope`. Slots:
`elementwise/launch_position_scale.py`; source: arXiv 2501.19399.
"""

from __future__ import annotations

import numpy as np

from edgetok.kernels_cpu.elementwise.launch_position_scale import (
    GROWTH_EVERY,
    GROWTH_FACTOR,
    GROWTH_HEAD_DIM,
    GROWTH_HEADS,
    GROWTH_POSITIONS,
    GROWTH_X,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import LANES, inline
from edgetok.kernels_cpu.simd.math64 import f64_from_bits
from edgetok.kernels_cpu.simd.memory import load_f32_first, read_i32, read_i64, store_f32_first
from edgetok.kernels_cpu.simd.ops import mul, splat_f32

_LN2 = 0.6931471805599453
_ROOT = 1.4142135623730951


@inline
def _log_of(number):  # type: ignore[no-untyped-def]
    """Natural logarithm of a whole number from 1 on; relative error below 1e-15."""
    m = np.float64(number)
    halvings = 0.0
    while m > _ROOT:
        m *= 0.5
        halvings += 1.0
    # 2 atanh(s): |s| <= 0.172 leaves 2e-18 of the series.
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = 1.0 / 23.0
    p = p * z + 1.0 / 21.0
    p = p * z + 1.0 / 19.0
    p = p * z + 1.0 / 17.0
    p = p * z + 1.0 / 15.0
    p = p * z + 1.0 / 13.0
    p = p * z + 1.0 / 11.0
    p = p * z + 1.0 / 9.0
    p = p * z + 1.0 / 7.0
    p = p * z + 1.0 / 5.0
    p = p * z + 1.0 / 3.0
    p = p * z + 1.0
    return halvings * _LN2 + 2.0 * s * p


@kernel
def position_scale(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Multiply this thread's share of heads."""
    x = read_i64(instr + 8 * GROWTH_X)
    positions = read_i64(instr + 8 * GROWTH_POSITIONS)
    heads = read_i64(instr + 8 * GROWTH_HEADS)
    head_dim = read_i64(instr + 8 * GROWTH_HEAD_DIM)
    growth = f64_from_bits(read_i64(instr + 8 * GROWTH_FACTOR))
    every = read_i64(instr + 8 * GROWTH_EVERY)
    units = read_i64(ctx + 8 * CTX_TOKENS) * heads
    for unit in range(share(units, tid, threads), share(units, tid + 1, threads)):
        times = np.int64(read_i32(positions + 4 * (unit // heads))) // every
        if times < 1:
            continue
        factor = splat_f32(np.float32(1.0 + growth * _log_of(1 + times)))
        head = x + 4 * head_dim * unit
        for i in range(0, head_dim, LANES):
            count = min(LANES, head_dim - i)
            v = load_f32_first(head + 4 * i, count)
            store_f32_first(head + 4 * i, mul(v, factor), count)
