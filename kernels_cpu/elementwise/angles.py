"""Cosines and sines of rotary position embeddings, of all rows of a run.

    cos[t, i] = float32(factor cos(position[t] frequency[i])), sin likewise

in float64 (`simd/math64.py`), rounded once at the end: of values over positions up to 2^31, one in
some 10^8 differs from NumPy's in its last bit, and none between instruction sets. Rows are shared
out as by `rope`, so that no barrier is needed before it. Slots: `elementwise/launch.py`.
"""

from __future__ import annotations

import numpy as np

from edgetok.kernels_cpu.elementwise.launch import (
    ANGLES_COS,
    ANGLES_FACTOR,
    ANGLES_FREQUENCIES,
    ANGLES_PAIRS,
    ANGLES_POSITIONS,
    ANGLES_SIN,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.math64 import (
    cos_of,
    f64_from_bits,
    quarter_turns,
    sin_of,
    within_a_quarter,
)
from edgetok.kernels_cpu.simd.memory import read_f64, read_i32, read_i64, write_f32


@kernel
def angles(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Compute this thread's share of rows."""
    positions = read_i64(instr + 8 * ANGLES_POSITIONS)
    frequencies = read_i64(instr + 8 * ANGLES_FREQUENCIES)
    factor = f64_from_bits(read_i64(instr + 8 * ANGLES_FACTOR))
    pairs = read_i64(instr + 8 * ANGLES_PAIRS)
    rows = read_i64(ctx + 8 * CTX_TOKENS)
    for row in range(share(rows, tid, threads), share(rows, tid + 1, threads)):
        position = np.float64(read_i32(positions + 4 * row))
        cos = read_i64(instr + 8 * ANGLES_COS) + 4 * pairs * row
        sin = read_i64(instr + 8 * ANGLES_SIN) + 4 * pairs * row
        for i in range(pairs):
            angle = position * read_f64(frequencies + 8 * i)
            n = quarter_turns(angle)
            r = within_a_quarter(angle, n)
            write_f32(cos + 4 * i, np.float32(cos_of(n, r) * factor))
            write_f32(sin + 4 * i, np.float32(sin_of(n, r) * factor))
