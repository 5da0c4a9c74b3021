"""The steps of attention on one tile of slots, for up to ROWS query rows of one KV head.

Each function walks rows four at a time, so that every key and value vector that is loaded serves
four rows; rows past the real ones see nothing. All arithmetic of a row is independent of the rows
beside it and of the thread, so a token's result does not depend on what it is computed with.
Layout of keys and values: `launch_attention.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgetok.kernels_cpu import vmath
from edgetok.kernels_cpu.kv_append import absmax
from edgetok.kernels_cpu.launch_attention import BLOCK, KEY_TILE, SLOT_TILE
from edgetok.kernels_cpu.simd import (
    LANES,
    add,
    broadcast_i32,
    dot_u8s8,
    fma,
    inline,
    load_f16,
    load_f32,
    load_f32_first,
    load_i8_f32,
    load_i32,
    load_u8,
    max_lanes,
    maximum,
    mul,
    outline,
    prefetch,
    read_f32,
    read_i32,
    round_i32,
    select_between,
    splat_f32,
    splat_i32,
    store_f32,
    store_i32_u8,
    sub,
    sum_lanes,
    to_f32,
    write_f32,
    write_i32,
    zero_f32,
)

# The score of a slot that a row may not see. Not -inf: a difference of two must be a number.
UNSEEN = np.float32(-1e30)
_NOTHING_SEEN = np.float32(-1e29)


@inline
def exp1(x: float) -> Any:
    """e^x of one number, the same bits as in a vector."""
    return max_lanes(vmath.exp(splat_f32(x)))


# Queries


@outline
def query_int8(
    x: int, out: int, offset: int, factor: int, size: int, padded: int, scale: float
) -> None:
    """Quantise a query: codes to `out`, -128 * their sum to `offset`, their scale to `factor`."""
    # Keys are stored as code + 128, so that 128 * sum(query) has to be taken off each product.
    largest = absmax(x, size)
    inverse = np.float32(127.0) / largest if largest > np.float32(1e-30) else np.float32(0.0)
    total = zero_f32()
    for i in range(0, padded, LANES):
        count = max(np.int64(0), min(LANES, size - i))
        code = round_i32(mul(load_f32_first(x + 4 * i, count), splat_f32(inverse)))
        store_i32_u8(out + i, code)
        total = add(total, to_f32(code))
    write_i32(offset, np.int32(np.float32(-128.0) * sum_lanes(total)))
    write_f32(factor, largest * np.float32(1.0 / 127.0) * scale)


@outline
def query_float(
    x: int, out: int, offset: int, factor: int, size: int, padded: int, scale: float
) -> None:
    """Copy a query, multiplied by `scale`; the rest of `padded` dims is 0."""
    for i in range(0, padded, LANES):
        count = max(np.int64(0), min(LANES, size - i))
        store_f32(out + 4 * i, mul(load_f32_first(x + 4 * i, count), splat_f32(scale)))


# Scores: out[r, s] = query r times key s, for `count` slots (a multiple of 2 * LANES)


@inline
def _scaled(total: Any, factor: float, scale: Any) -> Any:
    return mul(mul(to_f32(total), splat_f32(factor)), scale)


@outline
def scores_int8(
    keys: int,
    scales: int,
    q: int,
    offset: int,
    factor: int,
    out: int,
    rows: int,
    count: int,
    padded: int,
) -> None:
    """Integer dot products, 4 dims at a time."""
    ahead = padded * SLOT_TILE
    for r in range(0, rows, 4):
        q0 = q + 4 * padded * r
        q1 = q0 + 4 * padded
        q2 = q1 + 4 * padded
        q3 = q2 + 4 * padded
        o = offset + 4 * r
        f = factor + 4 * r
        to = out + 4 * BLOCK * r
        for s in range(0, count, 2 * LANES):
            k0 = keys + padded * (s // KEY_TILE * KEY_TILE) + 4 * (s % KEY_TILE)
            n = s + LANES
            k1 = keys + padded * (n // KEY_TILE * KEY_TILE) + 4 * (n % KEY_TILE)
            a0 = splat_i32(read_i32(o))
            a1 = a0
            b0 = splat_i32(read_i32(o + 4))
            b1 = b0
            c0 = splat_i32(read_i32(o + 8))
            c1 = c0
            d0 = splat_i32(read_i32(o + 12))
            d1 = d0
            for i in range(0, padded, 4):
                u0 = load_u8(k0 + KEY_TILE * i)
                u1 = load_u8(k1 + KEY_TILE * i)
                if r == 0:  # the next tile: memory is slow to follow from page to page
                    prefetch(k0 + KEY_TILE * i + ahead)
                    prefetch(k1 + KEY_TILE * i + ahead)
                x0 = broadcast_i32(q0 + i)
                a0 = dot_u8s8(a0, u0, x0)
                a1 = dot_u8s8(a1, u1, x0)
                x1 = broadcast_i32(q1 + i)
                b0 = dot_u8s8(b0, u0, x1)
                b1 = dot_u8s8(b1, u1, x1)
                x2 = broadcast_i32(q2 + i)
                c0 = dot_u8s8(c0, u0, x2)
                c1 = dot_u8s8(c1, u1, x2)
                x3 = broadcast_i32(q3 + i)
                d0 = dot_u8s8(d0, u0, x3)
                d1 = dot_u8s8(d1, u1, x3)
            s0 = load_f32(scales + 4 * s)
            s1 = load_f32(scales + 4 * n)
            f0 = read_f32(f)
            store_f32(to + 4 * s, _scaled(a0, f0, s0))
            store_f32(to + 4 * n, _scaled(a1, f0, s1))
            f1 = read_f32(f + 4)
            store_f32(to + 4 * (BLOCK + s), _scaled(b0, f1, s0))
            store_f32(to + 4 * (BLOCK + n), _scaled(b1, f1, s1))
            f2 = read_f32(f + 8)
            store_f32(to + 4 * (2 * BLOCK + s), _scaled(c0, f2, s0))
            store_f32(to + 4 * (2 * BLOCK + n), _scaled(c1, f2, s1))
            f3 = read_f32(f + 12)
            store_f32(to + 4 * (3 * BLOCK + s), _scaled(d0, f3, s0))
            store_f32(to + 4 * (3 * BLOCK + n), _scaled(d1, f3, s1))


def _scores_float(load: Callable[[int], Any], nbytes: int) -> Any:
    @outline
    def scores(
        keys: int,
        scales: int,
        q: int,
        offset: int,
        factor: int,
        out: int,
        rows: int,
        count: int,
        padded: int,
    ) -> None:
        for r in range(0, rows, 4):
            q0 = q + 4 * padded * r
            q1 = q0 + 4 * padded
            q2 = q1 + 4 * padded
            q3 = q2 + 4 * padded
            to = out + 4 * BLOCK * r
            for s in range(0, count, 2 * LANES):
                n = s + LANES
                k0 = keys + nbytes * (padded * (s // KEY_TILE * KEY_TILE) + s % KEY_TILE)
                k1 = keys + nbytes * (padded * (n // KEY_TILE * KEY_TILE) + n % KEY_TILE)
                a0 = zero_f32()
                a1 = zero_f32()
                b0 = zero_f32()
                b1 = zero_f32()
                c0 = zero_f32()
                c1 = zero_f32()
                d0 = zero_f32()
                d1 = zero_f32()
                for i in range(padded):
                    u0 = load(k0 + nbytes * KEY_TILE * i)
                    u1 = load(k1 + nbytes * KEY_TILE * i)
                    x0 = splat_f32(read_f32(q0 + 4 * i))
                    a0 = fma(u0, x0, a0)
                    a1 = fma(u1, x0, a1)
                    x1 = splat_f32(read_f32(q1 + 4 * i))
                    b0 = fma(u0, x1, b0)
                    b1 = fma(u1, x1, b1)
                    x2 = splat_f32(read_f32(q2 + 4 * i))
                    c0 = fma(u0, x2, c0)
                    c1 = fma(u1, x2, c1)
                    x3 = splat_f32(read_f32(q3 + 4 * i))
                    d0 = fma(u0, x3, d0)
                    d1 = fma(u1, x3, d1)
                store_f32(to + 4 * s, a0)
                store_f32(to + 4 * n, a1)
                store_f32(to + 4 * (BLOCK + s), b0)
                store_f32(to + 4 * (BLOCK + n), b1)
                store_f32(to + 4 * (2 * BLOCK + s), c0)
                store_f32(to + 4 * (2 * BLOCK + n), c1)
                store_f32(to + 4 * (3 * BLOCK + s), d0)
                store_f32(to + 4 * (3 * BLOCK + n), d1)

    return scores


# Softmax


@outline
def softmax_row(
    s: int, positions: int, low: int, high: int, count: int, cap: float, old: float
) -> Any:
    """Mask and cap a row of scores, in place.

    Returns:
        The new maximum of the row, no smaller than `old`.
    """
    highest = splat_f32(old)
    for i in range(0, count, LANES):
        v = load_f32(s + 4 * i)
        if cap != np.float32(0.0):
            v = mul(vmath.tanh(mul(v, splat_f32(np.float32(1.0) / cap))), splat_f32(cap))
        where = load_i32(positions + 4 * i)
        v = select_between(where, low, high, v, splat_f32(UNSEEN))
        store_f32(s + 4 * i, v)
        highest = maximum(v, highest)
    return max_lanes(highest)


@outline
def weigh_row(s: int, scales: int, kept: int, count: int, highest: float) -> Any:
    """Replace scores by exp(score - highest) * scale; `scales` is 0 where there are none.

    The exponentials alone are stored at `kept` where it is not 0.

    Returns:
        The sum of the exponentials, without the scales.
    """
    if highest < _NOTHING_SEEN:
        for i in range(0, count, LANES):
            store_f32(s + 4 * i, zero_f32())
            if kept != 0:
                store_f32(kept + 4 * i, zero_f32())
        return np.float32(0.0)
    total = zero_f32()
    for i in range(0, count, LANES):
        e = vmath.exp(sub(load_f32(s + 4 * i), splat_f32(highest)))
        total = add(total, e)
        if kept != 0:
            store_f32(kept + 4 * i, e)
        if scales != 0:
            e = mul(e, load_f32(scales + 4 * i))
        store_f32(s + 4 * i, e)
    return sum_lanes(total)


@inline
def scale_row(x: int, factor: float, size: int) -> None:
    """x *= factor; size is a multiple of LANES."""
    for i in range(0, size, LANES):
        store_f32(x + 4 * i, mul(load_f32(x + 4 * i), splat_f32(factor)))


# Values: acc[r] += sum over `count` slots of weight[r, s] * value s


def _values(load: Callable[[int], Any], nbytes: int) -> Any:
    @outline
    def values(v: int, weights: int, acc: int, rows: int, count: int, padded: int) -> None:
        row = 4 * padded
        ahead = nbytes * padded * SLOT_TILE
        for r in range(0, rows, 4):
            w = weights + 4 * BLOCK * r
            i = 0
            while i + 2 * LANES <= padded:
                to = acc + row * r + 4 * i
                a0 = load_f32(to)
                a1 = load_f32(to + 4 * LANES)
                b0 = load_f32(to + row)
                b1 = load_f32(to + row + 4 * LANES)
                c0 = load_f32(to + 2 * row)
                c1 = load_f32(to + 2 * row + 4 * LANES)
                d0 = load_f32(to + 3 * row)
                d1 = load_f32(to + 3 * row + 4 * LANES)
                for s in range(count):
                    v0 = load(v + nbytes * (padded * s + i))
                    v1 = load(v + nbytes * (padded * s + i + LANES))
                    if r == 0:
                        prefetch(v + nbytes * (padded * s + i) + ahead)
                    p0 = splat_f32(read_f32(w + 4 * s))
                    a0 = fma(v0, p0, a0)
                    a1 = fma(v1, p0, a1)
                    p1 = splat_f32(read_f32(w + 4 * (BLOCK + s)))
                    b0 = fma(v0, p1, b0)
                    b1 = fma(v1, p1, b1)
                    p2 = splat_f32(read_f32(w + 4 * (2 * BLOCK + s)))
                    c0 = fma(v0, p2, c0)
                    c1 = fma(v1, p2, c1)
                    p3 = splat_f32(read_f32(w + 4 * (3 * BLOCK + s)))
                    d0 = fma(v0, p3, d0)
                    d1 = fma(v1, p3, d1)
                store_f32(to, a0)
                store_f32(to + 4 * LANES, a1)
                store_f32(to + row, b0)
                store_f32(to + row + 4 * LANES, b1)
                store_f32(to + 2 * row, c0)
                store_f32(to + 2 * row + 4 * LANES, c1)
                store_f32(to + 3 * row, d0)
                store_f32(to + 3 * row + 4 * LANES, d1)
                i += 2 * LANES
            if i < padded:
                to = acc + row * r + 4 * i
                a0 = load_f32(to)
                b0 = load_f32(to + row)
                c0 = load_f32(to + 2 * row)
                d0 = load_f32(to + 3 * row)
                for s in range(count):
                    v0 = load(v + nbytes * (padded * s + i))
                    a0 = fma(v0, splat_f32(read_f32(w + 4 * s)), a0)
                    b0 = fma(v0, splat_f32(read_f32(w + 4 * (BLOCK + s))), b0)
                    c0 = fma(v0, splat_f32(read_f32(w + 4 * (2 * BLOCK + s))), c0)
                    d0 = fma(v0, splat_f32(read_f32(w + 4 * (3 * BLOCK + s))), d0)
                store_f32(to, a0)
                store_f32(to + row, b0)
                store_f32(to + 2 * row, c0)
                store_f32(to + 3 * row, d0)

    return values


scores_float16 = _scores_float(load_f16, 2)
scores_float32 = _scores_float(load_f32, 4)
values_int8 = _values(load_i8_f32, 1)
values_float16 = _values(load_f16, 2)
values_float32 = _values(load_f32, 4)
