"""Storing keys and values into the slots of the KV cache.

Keys and values of 4 to 8 bits come rotated (`hadamard.py`). At 8 bits: scale = absmax / 127, code =
round(x / scale), to nearest even, of each head's key and value; keys of 6 bits likewise with absmax
/ 31. At 4 bits: code = round(15 (x -
low) / (high - low)) between the smallest dim or 0 and the largest or 0; scale and base are the
bfloat16 numbers with which code * scale + base is nearest to x by least squares. What is left is
then at right angles to the key itself, so that a query that looks for this very key finds its
product as it was. At 16 bits values beyond float16 are clamped to its largest number. Layout and
instruction slots: `attention/launch.py`. Heads are shared out as by `rope`, so no barrier is needed
after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.kv_append_steps import (
    f32_bits,
    round_f32,
    store_key_6,
    store_nibbles,
    store_value_codes,
)
from edgetok.kernels_cpu.attention.launch import (
    APPEND_HEAD_DIM,
    APPEND_HEADS,
    APPEND_K,
    APPEND_RECORD,
    APPEND_V,
    KEY_TILE,
    PAGE_FIELDS,
    PAGE_KEY_SCALES,
    PAGE_KEYS,
    PAGE_SLOTS,
    PAGE_VALUE_SCALES,
    PAGE_VALUES,
    REC_APPEND,
    REC_MASS,
    REC_PAGES,
    RECORD_SLOTS,
    VALUE_TILE,
    dim_tile,
    key_bits,
    value_bits,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import (
    CTX_PART_TABLE,
    CTX_PARTS,
    CTX_TOKENS,
    PART_FIRST,
    PART_RECORDS,
    PART_ROWS,
    PART_SLOTS,
    kernel,
)
from edgetok.kernels_cpu.simd.emit import LANES, inline, outline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32_first,
    read_f32,
    read_i32,
    read_i64,
    scatter_i32_u8,
    store_f16,
    store_f32,
    write_f16,
    write_f32,
    write_i32,
)
from edgetok.kernels_cpu.simd.ops import (
    absolute,
    add,
    add_i32,
    fma,
    max_lanes,
    maximum,
    minimum,
    mul,
    round_i32,
    splat_f32,
    splat_i32,
    sub,
    sum_lanes,
    zero_f32,
)

_F16_LARGEST = np.float32(65504.0)
_SMALLEST_ABSMAX = np.float32(1e-36)  # 127 / absmax would not be a float32 below it
_MOST_8, _UNIT_8 = np.float32(127.0), np.float32(1.0 / 127.0)
_MOST_6, _UNIT_6 = np.float32(31.0), np.float32(1.0 / 31.0)


@inline
def absmax(x: int, size: int) -> Any:
    """Largest magnitude of `size` float32."""
    largest = zero_f32()
    for i in range(0, size, LANES):
        largest = maximum(absolute(load_f32_first(x + 4 * i, min(LANES, size - i))), largest)
    return max_lanes(largest)


@inline
def _key_at(keys: int, padded: int, slot: int, bits: int) -> Any:
    """Address of a slot's first dims, others KEY_TILE times as far apart as they are long."""
    each = 4 if bits <= 8 else bits // 8
    tile = slot // KEY_TILE * KEY_TILE
    return keys + bits * padded * tile // 8 + each * (slot % KEY_TILE)


@inline
def _value_at(values: int, padded: int, slot: int, bits: int) -> Any:
    """Address of a slot's first dims, others VALUE_TILE bytes on."""
    tile = slot // VALUE_TILE * VALUE_TILE
    return values + bits * padded * tile // 8 + slot % VALUE_TILE


# 8 and 6 bits


@inline
def _scale(x: int, size: int, scale_at: int, most: float, unit: float) -> Any:
    """Write the scale of `size` float32; returns its inverse, 0 where it is 0.

    The largest gets code `most`; `unit` is 1 / most.
    """
    largest = absmax(x, size)
    largest = largest if largest >= _SMALLEST_ABSMAX else np.float32(0.0)
    write_f32(scale_at, largest * unit)
    return most / largest if largest > np.float32(0.0) else np.float32(0.0)


@inline
def _codes_8(x: int, i: int, size: int, inverse: float) -> Any:
    count = max(np.int64(0), min(LANES, size - i))
    return round_i32(mul(load_f32_first(x + 4 * i, count), splat_f32(inverse)))


@inline
def _key_8(x: int, size: int, padded: int, keys: int, scales: int, slot: int) -> None:
    inverse = _scale(x, size, scales + 4 * slot, _MOST_8, _UNIT_8)
    at = _key_at(keys, padded, slot, 8)
    for i in range(0, padded, LANES):
        code = add_i32(_codes_8(x, i, size, inverse), splat_i32(np.int32(128)))
        scatter_i32_u8(at + KEY_TILE * i, code, 4 * KEY_TILE)


@inline
def _value_8(x: int, size: int, padded: int, values: int, scales: int, slot: int) -> None:
    inverse = _scale(x, size, scales + 4 * slot, _MOST_8, _UNIT_8)
    at = _value_at(values, padded, slot, 8)
    for i in range(0, padded, LANES):
        store_value_codes(at + VALUE_TILE * i, _codes_8(x, i, size, inverse))


@inline
def _key_6(x: int, size: int, padded: int, keys: int, scales: int, slot: int) -> None:
    inverse = _scale(x, size, scales + 4 * slot, _MOST_6, _UNIT_6)
    at = _key_at(keys, padded, slot, 6)
    for i in range(0, size, 16):
        store_key_6(at + 6 * KEY_TILE * i // 8, x + 4 * i, size - i, inverse)


# 4 bits


@inline
def _nearest(x: float) -> Any:
    """Bits of the bfloat16 nearest to x."""
    bits = f32_bits(x)
    return (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000


@inline
def _fit_4(x: int, size: int, word_at: int) -> Any:
    """Write scale and base of `size` float32; returns what codes are made with: 15 / range, low.

    The range always holds 0, so that dims past the last one get a code like any other.
    """
    high = zero_f32()
    low = zero_f32()
    for i in range(0, size, LANES):
        v = load_f32_first(x + 4 * i, min(LANES, size - i))
        high = maximum(v, high)
        low = minimum(v, low)
    lowest = -max_lanes(sub(zero_f32(), low))
    between = max_lanes(high) - lowest
    inverse = np.float32(0.0)
    if between >= _SMALLEST_ABSMAX:
        inverse = np.float32(15.0) / between
    # Codes are counted from that of 0, where dims past the last one are.
    none = round_f32(mul(splat_f32(-lowest), splat_f32(inverse)))
    codes = zero_f32()
    squares = zero_f32()
    products = zero_f32()
    total = zero_f32()
    for i in range(0, size, LANES):
        v = load_f32_first(x + 4 * i, min(LANES, size - i))
        code = sub(round_f32(mul(sub(v, splat_f32(lowest)), splat_f32(inverse))), none)
        codes = add(codes, code)
        squares = fma(code, code, squares)
        products = fma(code, v, products)
        total = add(total, v)
    n = np.float32(size)
    c, s = sum_lanes(codes), sum_lanes(total)
    spread = n * sum_lanes(squares) - c * c
    scale = np.float32(0.0)
    if spread > np.float32(0.0):
        scale = max((n * sum_lanes(products) - c * s) / spread, scale)
    scale_bits = _nearest(scale)
    scale = f32_from_bits(scale_bits)
    base = (s - scale * c) / n - scale * max_lanes(none)
    write_i32(word_at, np.int32(_nearest(base) | scale_bits >> 16))
    return inverse, lowest


@inline
def _key_4(x: int, size: int, padded: int, keys: int, scales: int, slot: int) -> None:
    inverse, low = _fit_4(x, size, scales + 4 * slot)
    at = _key_at(keys, padded, slot, 4)
    for i in range(0, size, 8):
        _store_key_nibbles(at + KEY_TILE * i // 2, x + 4 * i, size - i, inverse, low)


@inline
def _value_4(x: int, size: int, padded: int, values: int, scales: int, slot: int) -> None:
    inverse, low = _fit_4(x, size, scales + 4 * slot)
    at = _value_at(values, padded, slot, 4)
    for i in range(0, size, 32):
        _store_value_nibbles(at + VALUE_TILE * i // 2, x + 4 * i, size - i, inverse, low)


_store_key_nibbles = store_nibbles(4, 1)
_store_value_nibbles = store_nibbles(16, VALUE_TILE)

# 16 and 32 bits


@inline
def _key_16(x: int, size: int, padded: int, keys: int, scales: int, slot: int) -> None:
    at = _key_at(keys, padded, slot, 16)
    for i in range(size):
        v = min(max(read_f32(x + 4 * i), -_F16_LARGEST), _F16_LARGEST)
        write_f16(at + 2 * KEY_TILE * i, v)


@inline
def _value_16(x: int, size: int, padded: int, values: int, scales: int, slot: int) -> None:
    for i in range(0, padded, LANES):
        count = max(np.int64(0), min(LANES, size - i))
        v = maximum(load_f32_first(x + 4 * i, count), splat_f32(-_F16_LARGEST))
        store_f16(values + 2 * (padded * slot + i), minimum(v, splat_f32(_F16_LARGEST)))


@inline
def _key_32(x: int, size: int, padded: int, keys: int, scales: int, slot: int) -> None:
    at = _key_at(keys, padded, slot, 32)
    for i in range(size):
        write_f32(at + 4 * KEY_TILE * i, read_f32(x + 4 * i))


@inline
def _value_32(x: int, size: int, padded: int, values: int, scales: int, slot: int) -> None:
    for i in range(0, padded, LANES):
        count = max(np.int64(0), min(LANES, size - i))
        store_f32(values + 4 * (padded * slot + i), load_f32_first(x + 4 * i, count))


STORE_KEY = {4: _key_4, 6: _key_6, 8: _key_8, 16: _key_16, 32: _key_32}
_STORE_VALUE = {4: _value_4, 8: _value_8, 16: _value_16, 32: _value_32}


def _make(kv_bits: int) -> Any:
    store_key, store_value = STORE_KEY[key_bits(kv_bits)], _STORE_VALUE[value_bits(kv_bits)]
    tile = dim_tile(kv_bits)

    @outline
    def append_part(instr: int, part: int, begin: int, end: int) -> None:
        """Store of units (row and head) begin..end those of one part."""
        heads = read_i64(instr + 8 * APPEND_HEADS)
        size = read_i64(instr + 8 * APPEND_HEAD_DIM)
        padded = (size + tile - 1) // tile * tile
        first = read_i64(part + 8 * PART_FIRST)
        records = read_i64(part + 8 * PART_RECORDS) + read_i64(instr + 8 * APPEND_RECORD)
        end = min(end, (first + read_i64(part + 8 * PART_ROWS)) * heads)
        for unit in range(max(begin, first * heads), end):
            record = records + 8 * RECORD_SLOTS * (unit % heads)
            row = unit // heads - first
            slot = np.int64(read_i32(read_i64(record + 8 * REC_APPEND) + 4 * row))
            mass = read_i64(record + 8 * REC_MASS)
            if mass != 0:  # a new token was not attended to yet
                write_f32(mass + 4 * slot, np.float32(0.0))
            page = read_i64(record + 8 * REC_PAGES) + 8 * PAGE_FIELDS * (slot // PAGE_SLOTS)
            slot %= PAGE_SLOTS
            k = read_i64(instr + 8 * APPEND_K) + 4 * size * unit
            keys = read_i64(page + 8 * PAGE_KEYS)
            store_key(k, size, padded, keys, read_i64(page + 8 * PAGE_KEY_SCALES), slot)
            v = read_i64(instr + 8 * APPEND_V) + 4 * size * unit
            values = read_i64(page + 8 * PAGE_VALUES)
            store_value(v, size, padded, values, read_i64(page + 8 * PAGE_VALUE_SCALES), slot)

    @outline
    def append(instr: int, ctx: int, tid: int, threads: int) -> None:
        units = read_i64(ctx + 8 * CTX_TOKENS) * read_i64(instr + 8 * APPEND_HEADS)
        begin, end = share(units, tid, threads), share(units, tid + 1, threads)
        part = read_i64(ctx + 8 * CTX_PART_TABLE)
        for _ in range(read_i64(ctx + 8 * CTX_PARTS)):
            append_part(instr, part, begin, end)
            part += 8 * PART_SLOTS

    return append


_append_4 = _make(4)
_append_5 = _make(5)
_append_8 = _make(8)
_append_16 = _make(16)
_append_32 = _make(32)


@kernel
def kv_append_4(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Quantise this thread's share of heads to 4 bits."""
    _append_4(instr, ctx, tid, threads)


@kernel
def kv_append_5(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Quantise this thread's share of heads, keys to 6 and values to 4 bits."""
    _append_5(instr, ctx, tid, threads)


@kernel
def kv_append_8(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Quantise this thread's share of heads to int8."""
    _append_8(instr, ctx, tid, threads)


@kernel
def kv_append_16(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Round this thread's share of heads to float16."""
    _append_16(instr, ctx, tid, threads)


@kernel
def kv_append_32(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Copy this thread's share of heads."""
    _append_32(instr, ctx, tid, threads)
