"""The gated short convolution, over the rows of each part.

    u[t] = gate_in[t] * value[t]
    value[t] = gate_out[t] * (w[taps - 1] u[t] + w[taps - 2] u[t - 1] + ...)

or, without gates, value[t] = silu(bias + w[taps - 1] value[t] + ...), for each channel; u is 0
before the first token. Sums are float32, the bias and the token's own product first. Channels
are shared out over the threads, so that rows of a part follow each other in one thread and the
latest values of u stay in registers. Every u is written to the cache's history, from which the next
run begins. Slots: `recurrent/launch.py`; sources: transformers `Lfm2ShortConv`,
`Qwen3NextGatedDeltaNet`.
"""

from __future__ import annotations

from edgetok.kernels_cpu.program.abi import (
    CTX_PART_TABLE,
    CTX_PARTS,
    PART_FIRST,
    PART_ROWS,
    PART_SEEN,
    PART_SLOTS,
    PART_STATES,
    kernel,
)
from edgetok.kernels_cpu.recurrent.launch import (
    CONV_BIAS,
    CONV_GATE_IN,
    CONV_GATE_OUT,
    CONV_ROWS,
    CONV_SIZE,
    CONV_STATE,
    CONV_TAPS,
    CONV_VALUE,
    CONV_WEIGHT,
)
from edgetok.kernels_cpu.simd import math as vmath
from edgetok.kernels_cpu.simd.emit import LANES, outline
from edgetok.kernels_cpu.simd.memory import (
    gather_f32,
    load_f32_first,
    read_i64,
    store_f32,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import fma, mul, zero_f32

# Rows that are convolved for all channels before those after them. Rows lie at a stride of pages,
# so down many of them a cache line is gone before its other channels are needed. Tuned on AVX2
# (Zen 3), 6,144 channels and 128 rows: all rows at once 2.3 ms, 32 rows 1.5, 8 rows 1.3.
_BLOCK = 8


@outline
def _channels(
    b: int,
    c: int,
    x: int,
    weight: int,
    bias: int,
    history: int,
    count: int,
    size: int,
    taps: int,
    ring: int,
    seen: int,
    rows: int,
) -> None:
    """`count` channels of one part's rows; addresses are of the first channel and row."""
    stride = 4 * size
    gated = b != 0
    w0 = gather_f32(weight + 4 * (taps - 1), 4 * taps)
    w1 = gather_f32(weight + 4 * (taps - 2), 4 * taps)
    start = zero_f32()
    if bias != 0:
        start = load_f32_first(bias, count)
    w2 = zero_f32()
    w3 = zero_f32()
    if taps > 2:
        w2 = gather_f32(weight + 4 * (taps - 3), 4 * taps)
    if taps > 3:
        w3 = gather_f32(weight + 4 * (taps - 4), 4 * taps)
    u1 = zero_f32()
    u2 = zero_f32()
    u3 = zero_f32()
    if seen > 0:
        u1 = load_f32_first(history + stride * ((seen - 1) % ring), count)
    if taps > 2 and seen > 1:
        u2 = load_f32_first(history + stride * ((seen - 2) % ring), count)
    if taps > 3 and seen > 2:
        u3 = load_f32_first(history + stride * ((seen - 3) % ring), count)
    at = seen % ring
    for row in range(rows):
        here = stride * row
        u = load_f32_first(x + here, count)
        if gated:
            u = mul(load_f32_first(b + here, count), u)
        y = fma(w1, u1, fma(w0, u, start))
        if taps > 2:
            y = fma(w2, u2, y)
        if taps > 3:
            y = fma(w3, u3, y)
        y = mul(load_f32_first(c + here, count), y) if gated else vmath.silu(y)
        if count == LANES:  # masked stores are slow on AVX2
            store_f32(x + here, y)
            store_f32(history + stride * at, u)
        else:
            store_f32_first(x + here, y, count)
            store_f32_first(history + stride * at, u, count)
        u3 = u2
        u2 = u1
        u1 = u
        at += 1
        if at == ring:
            at = 0


@kernel
def short_conv(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Convolve this thread's share of channels of every part."""
    b = read_i64(instr + 8 * CONV_GATE_IN)
    c = read_i64(instr + 8 * CONV_GATE_OUT)
    x = read_i64(instr + 8 * CONV_VALUE)
    weight = read_i64(instr + 8 * CONV_WEIGHT)
    size = read_i64(instr + 8 * CONV_SIZE)
    taps = read_i64(instr + 8 * CONV_TAPS)
    ring = read_i64(instr + 8 * CONV_ROWS)
    state = read_i64(instr + 8 * CONV_STATE)
    bias = read_i64(instr + 8 * CONV_BIAS)
    vectors = (size + LANES - 1) // LANES
    begin = vectors * tid // threads * LANES
    end = min(vectors * (tid + 1) // threads * LANES, size)
    for p in range(read_i64(ctx + 8 * CTX_PARTS)):
        part = read_i64(ctx + 8 * CTX_PART_TABLE) + 8 * PART_SLOTS * p
        first = 4 * size * read_i64(part + 8 * PART_FIRST)
        rows = read_i64(part + 8 * PART_ROWS)
        seen = read_i64(part + 8 * PART_SEEN)
        history = read_i64(read_i64(part + 8 * PART_STATES) + 8 * state)
        for row in range(0, rows, _BLOCK):
            here = first + 4 * size * row
            for i in range(begin, end, LANES):
                _channels(
                    b + here + 4 * i if b != 0 else 0,
                    c + here + 4 * i,
                    x + here + 4 * i,
                    weight + 4 * taps * i,
                    bias + 4 * i if bias != 0 else 0,
                    history + 4 * i,
                    min(LANES, end - i),
                    size,
                    taps,
                    ring,
                    seen + row,
                    min(_BLOCK, rows - row),
                )
