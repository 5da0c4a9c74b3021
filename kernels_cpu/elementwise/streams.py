"""Several residual streams beside each other, and gates of which most become 0.

    sparsify: x = max(x - mean - spread * deviation, 0)
    mix_streams: out[j] = s[j] + sum over i of coefs[n j + i] s[i]
    correct_streams: s[j] = p[j] + (1 + coefs[j]) (x - p[0])
    match_size: x[j] *= sqrt(mean(like^2) / max(mean(x[j]^2), eps))
    add_each: x[j] += y

Rows are shared out by `share`, sums are float32 in order of columns. Truth: `reference_streams.py`;
slots: `elementwise/launch_streams.py`.
"""

from __future__ import annotations

import math

import numpy as np

from edgetok.kernels_cpu.elementwise.launch_streams import (
    CORRECT_COEFS,
    CORRECT_FROM,
    CORRECT_OTHERS,
    CORRECT_OUT,
    CORRECT_SCALE,
    CORRECT_SIZE,
    CORRECT_STREAMS,
    CORRECT_X,
    EACH_COUNT,
    EACH_SIZE,
    EACH_X,
    EACH_Y,
    MATCH_COUNT,
    MATCH_EPS,
    MATCH_LIKE,
    MATCH_SIZE,
    MATCH_X,
    MIX_COEFS,
    MIX_OTHERS,
    MIX_OUT,
    MIX_SIZE,
    MIX_STREAMS,
    MIX_X,
    SPARSE_SIZE,
    SPARSE_SPREAD,
    SPARSE_X,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import LANES, outline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32_first,
    read_f32,
    read_i64,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import (
    add,
    fma,
    maximum,
    mul,
    splat_f32,
    sub,
    sum_lanes,
    zero_f32,
)


@outline
def _mean_square(x: int, size: int) -> float:
    squares = zero_f32()
    for i in range(0, size, LANES):
        v = load_f32_first(x + 4 * i, min(LANES, size - i))
        squares = fma(v, v, squares)
    mean: float = sum_lanes(squares) / np.float32(size)
    return mean


@kernel
def sparsify(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Cut off this thread's share of rows; the deviation is that of a second pass."""
    size = read_i64(instr + 8 * SPARSE_SIZE)
    spread = f32_from_bits(read_i64(instr + 8 * SPARSE_SPREAD))
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    for t in range(share(tokens, tid, threads), share(tokens, tid + 1, threads)):
        x = read_i64(instr + 8 * SPARSE_X) + 4 * size * t
        total = zero_f32()
        for i in range(0, size, LANES):
            total = add(total, load_f32_first(x + 4 * i, min(LANES, size - i)))
        mean = sum_lanes(total) / np.float32(size)
        squares = zero_f32()
        rest = np.float32(0.0)
        for i in range(0, size, LANES):
            if i + LANES <= size:
                v = sub(load_f32_first(x + 4 * i, LANES), splat_f32(mean))
                squares = fma(v, v, squares)
            else:  # lanes beyond the row are no values
                for k in range(i, size):
                    d = read_f32(x + 4 * k) - mean
                    rest += d * d
        deviation = math.sqrt((sum_lanes(squares) + rest) / np.float32(size))
        cut = splat_f32(np.float32(mean + spread * np.float32(deviation)))
        for i in range(0, size, LANES):
            count = min(LANES, size - i)
            v = maximum(sub(load_f32_first(x + 4 * i, count), cut), zero_f32())
            store_f32_first(x + 4 * i, v, count)


@kernel
def mix_streams(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Predict this thread's share of rows."""
    n = read_i64(instr + 8 * MIX_STREAMS)
    size = read_i64(instr + 8 * MIX_SIZE)
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    for t in range(share(tokens, tid, threads), share(tokens, tid + 1, threads)):
        first = read_i64(instr + 8 * MIX_X) + 4 * size * t
        others = read_i64(instr + 8 * MIX_OTHERS) + 4 * size * (n - 1) * t
        coefs = read_i64(instr + 8 * MIX_COEFS) + 4 * n * n * t
        out = read_i64(instr + 8 * MIX_OUT) + 4 * size * n * t
        for j in range(n):
            own = first if j == 0 else others + 4 * size * (j - 1)
            for c in range(0, size, LANES):
                count = min(LANES, size - c)
                v = load_f32_first(own + 4 * c, count)
                for i in range(n):
                    s = first if i == 0 else others + 4 * size * (i - 1)
                    factor = splat_f32(read_f32(coefs + 4 * (n * j + i)))
                    v = fma(factor, load_f32_first(s + 4 * c, count), v)
                store_f32_first(out + 4 * (size * j + c), v, count)


@kernel
def correct_streams(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Correct this thread's share of rows."""
    n = read_i64(instr + 8 * CORRECT_STREAMS)
    size = read_i64(instr + 8 * CORRECT_SIZE)
    scale = read_i64(instr + 8 * CORRECT_SCALE)
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    for t in range(share(tokens, tid, threads), share(tokens, tid + 1, threads)):
        x = read_i64(instr + 8 * CORRECT_X) + 4 * size * t
        source = read_i64(instr + 8 * CORRECT_FROM) + 4 * size * n * t
        coefs = read_i64(instr + 8 * CORRECT_COEFS) + 4 * n * t
        others = read_i64(instr + 8 * CORRECT_OTHERS) + 4 * size * (n - 1) * t
        out = read_i64(instr + 8 * CORRECT_OUT) + 4 * size * t
        for c in range(0, size, LANES):
            count = min(LANES, size - c)
            before = load_f32_first(source + 4 * c, count)
            change = sub(load_f32_first(x + 4 * c, count), before)
            for j in range(1, n):
                factor = splat_f32(np.float32(1.0) + read_f32(coefs + 4 * j))
                v = load_f32_first(source + 4 * (size * j + c), count)
                store_f32_first(others + 4 * (size * (j - 1) + c), fma(factor, change, v), count)
            factor = splat_f32(np.float32(1.0) + read_f32(coefs))
            v = fma(factor, change, before)
            store_f32_first(x + 4 * c, v, count)
            if scale != 0:
                v = mul(v, load_f32_first(scale + 4 * c, count))
            store_f32_first(out + 4 * c, v, count)


@kernel
def match_size(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Scale this thread's share of rows."""
    n = read_i64(instr + 8 * MATCH_COUNT)
    size = read_i64(instr + 8 * MATCH_SIZE)
    eps = f32_from_bits(read_i64(instr + 8 * MATCH_EPS))
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    for t in range(share(tokens, tid, threads), share(tokens, tid + 1, threads)):
        wanted = _mean_square(read_i64(instr + 8 * MATCH_LIKE) + 4 * size * t, size)
        for j in range(n):
            x = read_i64(instr + 8 * MATCH_X) + 4 * size * (n * t + j)
            factor = splat_f32(np.float32(math.sqrt(wanted / max(_mean_square(x, size), eps))))
            for i in range(0, size, LANES):
                count = min(LANES, size - i)
                store_f32_first(x + 4 * i, mul(load_f32_first(x + 4 * i, count), factor), count)


@kernel
def add_each(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Add to this thread's share of rows."""
    n = read_i64(instr + 8 * EACH_COUNT)
    size = read_i64(instr + 8 * EACH_SIZE)
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    for t in range(share(tokens, tid, threads), share(tokens, tid + 1, threads)):
        y = read_i64(instr + 8 * EACH_Y) + 4 * size * t
        for j in range(n):
            x = read_i64(instr + 8 * EACH_X) + 4 * size * (n * t + j)
            for i in range(0, size, LANES):
                count = min(LANES, size - i)
                v = add(load_f32_first(x + 4 * i, count), load_f32_first(y + 4 * i, count))
                store_f32_first(x + 4 * i, v, count)
