"""Rotary position embedding, half-split pairs, in place.

    (a, b) = (x[i], x[i + R / 2]);  x[i] = a cos - b sin;  x[i + R / 2] = b cos + a sin

for i < R / 2 of each head (arXiv 2104.09864, in the order of Hugging Face checkpoints); dims from R
on stay. Heads are shared out as by `rms_norm` over heads. Slots: `elementwise/launch.py`.
"""

from __future__ import annotations

from edgetok.kernels_cpu.elementwise.launch import (
    ROPE_COS,
    ROPE_HEAD_DIM,
    ROPE_HEADS,
    ROPE_PAIRS,
    ROPE_SIN,
    ROPE_X,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import LANES
from edgetok.kernels_cpu.simd.memory import load_f32_first, read_i64, store_f32_first
from edgetok.kernels_cpu.simd.ops import fma, mul, sub


@kernel
def rope(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Turn this thread's share of heads."""
    x = read_i64(instr + 8 * ROPE_X)
    cos = read_i64(instr + 8 * ROPE_COS)
    sin = read_i64(instr + 8 * ROPE_SIN)
    heads = read_i64(instr + 8 * ROPE_HEADS)
    head_dim = read_i64(instr + 8 * ROPE_HEAD_DIM)
    pairs = read_i64(instr + 8 * ROPE_PAIRS)
    units = read_i64(ctx + 8 * CTX_TOKENS) * heads
    for unit in range(share(units, tid, threads), share(units, tid + 1, threads)):
        row = 4 * pairs * (unit // heads)
        first = x + 4 * head_dim * unit
        second = first + 4 * pairs
        for i in range(0, pairs, LANES):
            count = min(LANES, pairs - i)
            c = load_f32_first(cos + row + 4 * i, count)
            s = load_f32_first(sin + row + 4 * i, count)
            a = load_f32_first(first + 4 * i, count)
            b = load_f32_first(second + 4 * i, count)
            store_f32_first(first + 4 * i, sub(mul(a, c), mul(b, s)), count)
            store_f32_first(second + 4 * i, fma(b, c, mul(a, s)), count)
