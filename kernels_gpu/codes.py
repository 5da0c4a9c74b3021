"""Codes out of words, without the slow conversion from integer to float.

A code at bit s of a word, or-ed into the mantissa of 2^23, is the float 2^23 + code * 2^s; less
2^23 that is exact. Positions up to bit 16 need no shift: `unshift` gives the factor 2^-s, which
goes into the input instead. Eight codes a word, low bits first; a code of 3, 5 or 6 bits is 2, 4 or
4 low bits of one word and the others of another. With a table a code of 4 bits chooses one of 16
levels.
"""

from __future__ import annotations

import triton.language as tl

from edgetok.kernels_gpu.jit import jit


@jit
def code(q, high, levels, p: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Code p of each word times 2^s, as float32. `q` is int32, at 8 bits int64.

    With `levels`, float32 [16], the level that it chooses.
    """
    if levels is not None:
        return tl.load(levels + ((q >> (4 * p)) & 15))
    if BITS == 4:
        if p < 5:
            c = q & (15 << (4 * p))
        else:
            c = (q >> 20) & (15 << (4 * (p - 5)))
    elif BITS == 2:
        c = q & (3 << (2 * p))
    elif BITS == 8:
        if p < 4:
            half = (q & 0xFFFFFFFF).to(tl.int32)
        else:
            half = (q >> 32).to(tl.int32)
        if p % 4 < 2:
            c = half & (255 << (8 * (p % 4)))
        else:
            c = (half >> 16) & (255 << (8 * (p % 4 - 2)))
    else:  # 3, 5 and 6
        HIGH: tl.constexpr = 2 if BITS == 6 else 1
        LOW: tl.constexpr = BITS - HIGH
        above = (high >> (HIGH * p)) & ((1 << HIGH) - 1)
        c = ((q >> (LOW * p)) & ((1 << LOW) - 1)) | (above << LOW)
    return (c | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@jit
def unshift(levels, p: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """2^-s of `code`."""
    if levels is not None:
        return 1.0
    bits: tl.constexpr = (
        4 * (p % 5) if BITS == 4 else 2 * p if BITS == 2 else 8 * (p % 2) if BITS == 8 else 0
    )
    factor: tl.constexpr = 0.5**bits
    return factor


@jit
def load_words(  # type: ignore[no-untyped-def]
    weight, high, at, mask, BITS: tl.constexpr
):
    """Words as int32 (8 bits: int64), and those of the high plane (3, 5 and 6 bits)."""
    if BITS == 2 or BITS == 3:
        # Vectors as wide as those of the float32 inputs, so that both have one layout.
        at = tl.max_contiguous(at, (1, 4))
    q = tl.load(weight + at, mask=mask, other=0)
    if BITS != 8:
        q = q.to(tl.int32)
    h = q
    if BITS == 3 or BITS == 5 or BITS == 6:
        h = tl.load(high + at, mask=mask, other=0).to(tl.int32)
    return q, h


@jit
def load_zeros(  # type: ignore[no-untyped-def]
    zeros, rows, groups, G, mask, BITS: tl.constexpr
):
    """Zero points [rows, groups] as float32."""
    WIDTH: tl.constexpr = 8 if BITS == 3 else BITS
    bit = groups * WIDTH
    row_bytes = (G * WIDTH + 7) // 8
    z = tl.load(zeros + rows[:, None] * row_bytes + (bit >> 3)[None], mask=mask, other=0)
    z = (z.to(tl.int32) >> (bit & 7)[None]) & ((1 << WIDTH) - 1)
    return (z | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@jit
def middle(levels, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The zero point where none are stored."""
    if levels is not None:
        return 0.0
    half: tl.constexpr = 1.0 * (1 << (BITS - 1))
    return half


@jit
def spread(x, ROWS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """[rows, groups] repeated for each word of a group: [rows, groups * words]."""
    wide = tl.broadcast_to(x[:, :, None], (ROWS, GROUPS, WORDS))
    return tl.reshape(wide, (ROWS, GROUPS * WORDS))
