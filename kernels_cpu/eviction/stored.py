"""Stored keys and values as floats, LANES slots or dims at a time. For kernels of this folder.

Layout: `attention/launch.py`. Products with a Hadamard transform, as 4-bit keys and values are
stored, have the same distances and norms, so scores need not transform them back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from edgetok.kernels_cpu.attention.launch import EMPTY, KEY_TILE, VALUE_TILE
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I32,
    F32,
    I32,
    LANES,
    _constant,
    _first_lanes,
    _splat,
    i64,
    inline,
    op,
    outline,
)
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f16,
    load_f32,
    load_i32,
    read_f16,
    read_f32,
    read_i32,
    read_i64,
    read_u8,
    store_f32,
)
from edgetok.kernels_cpu.simd.ops import (
    add,
    any_between,
    fma,
    mul,
    select_between,
    splat_f32,
    sub,
    zero_f32,
)

_NONE, _LAST = np.int32(0), np.int32(EMPTY - 1)  # positions that a token may have


@inline
def any_held(at: Any) -> Any:
    """Not 0 where any of LANES slots with positions `at` holds a token."""
    return any_between(at, _NONE, _LAST)


@inline
def where_held(at: Any, v: Any) -> Any:
    """The lanes of v whose slot holds a token, 0 in the others."""
    return select_between(at, _NONE, _LAST, v, zero_f32())


@outline
def rotate_back(x: int, dims: int, block: int) -> None:
    """The transform of LANES vectors [dims], not yet divided by the root of `block`."""
    h = 1
    while h < block:
        for first in range(0, dims, 2 * h):
            for d in range(first, first + h):
                at, partner = x + 4 * LANES * d, x + 4 * LANES * (d + h)
                a, b = load_f32(at), load_f32(partner)
                store_f32(at, add(a, b))
                store_f32(partner, sub(a, b))
        h *= 2


@op(F32, I32, i64, i64)
def field_f32(b: Any, words: Any, first_bit: Any, mask: Any) -> Any:
    """Bits of each int32 from `first_bit` on, as many as the mask has, as unsigned float32."""
    shift = _splat(b, b.trunc(first_bit, _I32), LANES)
    bits = b.and_(b.lshr(words, shift), _splat(b, b.trunc(mask, _I32), LANES))
    return b.sitofp(bits, F32.ll)


@op(F32, I32, i64)
def signed_byte_f32(b: Any, words: Any, byte: Any) -> Any:
    """Byte 0..3 of each int32, signed, as float32."""
    up = b.sub(ir.Constant(_I32, 24), b.shl(b.trunc(byte, _I32), ir.Constant(_I32, 3)))
    high = b.shl(words, _splat(b, up, LANES))
    return b.sitofp(b.ashr(high, _constant(_I32, LANES, 24)), F32.ll)


@op(F32, I32)
def low_bfloat16(b: Any, words: Any) -> Any:
    """The bfloat16 in the low half of each int32: a scale at 4 bits."""
    return b.bitcast(b.shl(words, _constant(_I32, LANES, 16)), F32.ll)


@op(F32, I32)
def high_bfloat16(b: Any, words: Any) -> Any:
    """The bfloat16 in the high half of each int32: a base at 4 bits."""
    return b.bitcast(b.and_(words, _constant(_I32, LANES, -65536)), F32.ll)


@op(F32, F32, i64)
def keep_first(b: Any, v: Any, count: Any) -> Any:
    """Zeros in lanes from `count` on."""
    return b.select(_first_lanes(b, count, LANES), v, _constant(_F32, LANES, 0.0))


@inline
def page_at(record_pages: int, page_slots: int, slot: int) -> Any:
    """Address of the entry of a slot's page."""
    return record_pages + 32 * (slot // page_slots)


# Of LANES keys from `slot` of a page on: their scales, their bases, and one dim of them.


@inline
def key_scale(bits: int, page: int, slot: int) -> Any:
    """Scales of LANES keys; ones without scales."""
    if bits == 4:
        return low_bfloat16(load_i32(read_i64(page + 16) + 4 * slot))
    if bits == 6 or bits == 8:
        return load_f32(read_i64(page + 16) + 4 * slot)
    return splat_f32(np.float32(1.0))


@inline
def key_base(bits: int, page: int, slot: int) -> Any:
    """The base that is added to scaled codes of LANES keys."""
    if bits == 4:
        return high_bfloat16(load_i32(read_i64(page + 16) + 4 * slot))
    return splat_f32(np.float32(0.0))


@inline
def key_dim(bits: int, page: int, padded: int, slot: int, d: int, scale: Any, base: Any) -> Any:
    """Dim d of LANES keys."""
    keys = read_i64(page)
    tile, lane = slot // KEY_TILE * KEY_TILE, slot % KEY_TILE
    if bits == 4:
        words = load_i32(keys + tile * padded // 2 + d // 8 * 64 + 4 * lane)
        return fma(field_f32(words, 8 * (d % 4) + d % 8 // 4 * 4, 15), scale, base)
    if bits == 6:
        words_at = keys + 6 * tile * padded // 8 + d // 16 * 192 + 4 * lane
        high = field_f32(load_i32(words_at + d % 16 // 8 * 64), 8 * (d % 4) + d % 8 // 4 * 4, 15)
        low = field_f32(load_i32(words_at + 128), 8 * (d % 4) + d % 16 // 4 * 2, 3)
        code = fma(high, splat_f32(np.float32(4.0)), sub(low, splat_f32(np.float32(32.0))))
        return mul(code, scale)
    if bits == 8:
        words = load_i32(keys + tile * padded + d // 4 * 64 + 4 * lane)
        code = sub(field_f32(words, 8 * (d % 4), 255), splat_f32(np.float32(128.0)))
        return mul(code, scale)
    if bits == 16:
        return load_f16(keys + 2 * (tile * padded + d * KEY_TILE + lane))
    return load_f32(keys + 4 * (tile * padded + d * KEY_TILE + lane))


# One dim of one slot of a page.


@inline
def _low(word: int) -> Any:
    """The bfloat16 in the low half of an int32: a scale at 4 bits."""
    return f32_from_bits((np.int64(word) & 0xFFFF) << 16)


@inline
def _high(word: int) -> Any:
    """The bfloat16 in the high half of an int32: a base at 4 bits."""
    return f32_from_bits(np.int64(word) & 0xFFFF0000)


@inline
def key_at(bits: int, page: int, padded: int, slot: int, d: int) -> Any:
    """Dim d of a key, as a float32."""
    keys, scales = read_i64(page), read_i64(page + 16)
    tile, lane = slot // KEY_TILE * KEY_TILE, slot % KEY_TILE
    if bits == 4:
        word = read_i32(scales + 4 * slot)
        code = read_u8(keys + tile * padded // 2 + d // 8 * 64 + 4 * lane + d % 4)
        code = code >> (d % 8 // 4 * 4) & 15
        return np.float32(code) * _low(word) + _high(word)
    if bits == 6:
        at = keys + 6 * tile * padded // 8 + d // 16 * 192 + 4 * lane + d % 4
        high = read_u8(at + d % 16 // 8 * 64) >> (d % 8 // 4 * 4) & 15
        low = read_u8(at + 128) >> (d % 16 // 4 * 2) & 3
        return np.float32(4 * high + low - 32) * read_f32(scales + 4 * slot)
    if bits == 8:
        code = read_u8(keys + tile * padded + d // 4 * 64 + 4 * lane + d % 4)
        return np.float32(code - 128) * read_f32(scales + 4 * slot)
    at = tile * padded + d * KEY_TILE + lane
    return read_f16(keys + 2 * at) if bits == 16 else read_f32(keys + 4 * at)


@inline
def value_at(bits: int, page: int, padded: int, slot: int, d: int) -> Any:
    """Dim d of a value, as a float32."""
    values, scales = read_i64(page + 8), read_i64(page + 24)
    tile, lane = slot // VALUE_TILE * VALUE_TILE, slot % VALUE_TILE
    if bits == 4:
        word = read_i32(scales + 4 * slot)
        code = read_u8(values + tile * padded // 2 + 4 * (d // 32 * 16 + d % 16) + lane)
        code = code >> (d % 32 // 16 * 4) & 15
        return np.float32(code) * _low(word) + _high(word)
    if bits == 8:
        code = read_u8(values + tile * padded + 4 * d + lane)
        return np.float32((code ^ 128) - 128) * read_f32(scales + 4 * slot)
    at = slot * padded + d
    return read_f16(values + 2 * at) if bits == 16 else read_f32(values + 4 * at)
