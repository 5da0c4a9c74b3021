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
from edgetok.kernels_cpu.simd.emit import LANES, inline, outline
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


@inline
def _tap(weight, taps, back):  # type: ignore[no-untyped-def]
    """Weights of the value `back` tokens before; 0 where no result depends on it."""
    w = zero_f32()
    if taps > back:
        w = gather_f32(weight + 4 * (taps - 1 - back), 4 * taps)
    return w


@inline
def _earlier(history, stride, ring, seen, taps, back, count):  # type: ignore[no-untyped-def]
    """The value `back` tokens before the next one; 0 before the first token."""
    u = zero_f32()
    if taps > back and seen >= back:
        u = load_f32_first(history + stride * ((seen - back) % ring), count)
    return u


@inline
def _convolve(  # type: ignore[no-untyped-def]
    b, c, x, weight, bias, history, count, size, taps, ring, seen, rows, many
):
    """See `_channels`; with `many` for 5 to 8 taps, else for 2 to 4."""
    stride = 4 * size
    gated = b != 0
    start = zero_f32()
    if bias != 0:
        start = load_f32_first(bias, count)
    w0 = _tap(weight, taps, 0)
    w1 = _tap(weight, taps, 1)
    w2 = _tap(weight, taps, 2)
    w3 = _tap(weight, taps, 3)
    u1 = _earlier(history, stride, ring, seen, taps, 1, count)
    u2 = _earlier(history, stride, ring, seen, taps, 2, count)
    u3 = _earlier(history, stride, ring, seen, taps, 3, count)
    w4 = zero_f32()
    w5 = zero_f32()
    w6 = zero_f32()
    w7 = zero_f32()
    u4 = zero_f32()
    u5 = zero_f32()
    u6 = zero_f32()
    u7 = zero_f32()
    if many:
        w4 = _tap(weight, taps, 4)
        w5 = _tap(weight, taps, 5)
        w6 = _tap(weight, taps, 6)
        w7 = _tap(weight, taps, 7)
        u4 = _earlier(history, stride, ring, seen, taps, 4, count)
        u5 = _earlier(history, stride, ring, seen, taps, 5, count)
        u6 = _earlier(history, stride, ring, seen, taps, 6, count)
        u7 = _earlier(history, stride, ring, seen, taps, 7, count)
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
        if many:
            y = fma(w4, u4, y)
            if taps > 5:
                y = fma(w5, u5, y)
            if taps > 6:
                y = fma(w6, u6, y)
            if taps > 7:
                y = fma(w7, u7, y)
        y = mul(load_f32_first(c + here, count), y) if gated else vmath.silu(y)
        if count == LANES:  # masked stores are slow on AVX2
            store_f32(x + here, y)
            store_f32(history + stride * at, u)
        else:
            store_f32_first(x + here, y, count)
            store_f32_first(history + stride * at, u, count)
        u7 = u6
        u6 = u5
        u5 = u4
        u4 = u3
        u3 = u2
        u2 = u1
        u1 = u
        at += 1
        if at == ring:
            at = 0


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
    if taps > 4:  # apart, so that few taps and their values stay in registers
        _convolve(b, c, x, weight, bias, history, count, size, taps, ring, seen, rows, True)
    else:
        _convolve(b, c, x, weight, bias, history, count, size, taps, ring, seen, rows, False)


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
