"""Storing keys and values into the slots of the KV cache.

At 8 bits: scale = absmax / 127, code = round(x / scale), to nearest even, of each head's key and
value. At 16 bits values beyond float16 are clamped to its largest number. Layout and instruction
slots: `launch_attention.py`. Heads are shared out as by `rope`, so no barrier is needed after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.launch_attention import (
    APPEND_HEAD_DIM,
    APPEND_HEADS,
    APPEND_K,
    APPEND_RECORD,
    APPEND_V,
    CTX_CACHE,
    DIM_TILE,
    KEY_TILE,
    REC_APPEND,
    REC_KEY_SCALES,
    REC_KEYS,
    REC_MASS,
    REC_VALUE_SCALES,
    REC_VALUES,
    RECORD_SLOTS,
)
from edgetok.kernels_cpu.norm import share
from edgetok.kernels_cpu.simd import (
    LANES,
    absolute,
    add_i32,
    inline,
    load_f32_first,
    max_lanes,
    maximum,
    minimum,
    mul,
    read_f32,
    read_i32,
    read_i64,
    round_i32,
    scatter_i32_u8,
    splat_f32,
    splat_i32,
    store_f16,
    store_f32,
    store_i32_u8,
    write_f16,
    write_f32,
    zero_f32,
)

_F16_LARGEST = np.float32(65504.0)
_SMALLEST_ABSMAX = np.float32(1e-36)  # 127 / absmax would not be a float32 below it


@inline
def absmax(x: int, size: int) -> Any:
    """Largest magnitude of `size` float32."""
    largest = zero_f32()
    for i in range(0, size, LANES):
        largest = maximum(absolute(load_f32_first(x + 4 * i, min(LANES, size - i))), largest)
    return max_lanes(largest)


@inline
def _slot(instr: int, ctx: int, unit: int, heads: int) -> Any:
    """Record address and slot number of (token, head); the slot's attention mass begins at 0."""
    head = unit % heads
    record = read_i64(ctx + 8 * CTX_CACHE) + read_i64(instr + 8 * APPEND_RECORD)
    record += 8 * RECORD_SLOTS * head
    slot = np.int64(read_i32(read_i64(record + 8 * REC_APPEND) + 4 * (unit // heads)))
    mass = read_i64(record + 8 * REC_MASS)
    if mass != 0:
        write_f32(mass + 4 * slot, np.float32(0.0))
    return record, slot


@kernel
def kv_append_8(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Quantise this thread's share of heads to int8."""
    heads = read_i64(instr + 8 * APPEND_HEADS)
    size = read_i64(instr + 8 * APPEND_HEAD_DIM)
    padded = (size + DIM_TILE - 1) // DIM_TILE * DIM_TILE
    units = read_i64(ctx + 8 * CTX_TOKENS) * heads
    for unit in range(share(units, tid, threads), share(units, tid + 1, threads)):
        record, slot = _slot(instr, ctx, unit, heads)
        k = read_i64(instr + 8 * APPEND_K) + 4 * size * unit
        largest = absmax(k, size)
        largest = largest if largest >= _SMALLEST_ABSMAX else np.float32(0.0)
        inverse = np.float32(127.0) / largest if largest > np.float32(0.0) else np.float32(0.0)
        keys = read_i64(record + 8 * REC_KEYS) + padded * (slot // KEY_TILE * KEY_TILE)
        keys += 4 * (slot % KEY_TILE)
        write_f32(
            read_i64(record + 8 * REC_KEY_SCALES) + 4 * slot, largest * np.float32(1.0 / 127.0)
        )
        for i in range(0, padded, LANES):
            count = max(np.int64(0), min(LANES, size - i))
            code = round_i32(mul(load_f32_first(k + 4 * i, count), splat_f32(inverse)))
            code = add_i32(code, splat_i32(np.int32(128)))
            scatter_i32_u8(keys + KEY_TILE * i, code, 4 * KEY_TILE)
        v = read_i64(instr + 8 * APPEND_V) + 4 * size * unit
        largest = absmax(v, size)
        largest = largest if largest >= _SMALLEST_ABSMAX else np.float32(0.0)
        inverse = np.float32(127.0) / largest if largest > np.float32(0.0) else np.float32(0.0)
        values = read_i64(record + 8 * REC_VALUES) + padded * slot
        write_f32(
            read_i64(record + 8 * REC_VALUE_SCALES) + 4 * slot, largest * np.float32(1.0 / 127.0)
        )
        for i in range(0, padded, LANES):
            count = max(np.int64(0), min(LANES, size - i))
            code = round_i32(mul(load_f32_first(v + 4 * i, count), splat_f32(inverse)))
            store_i32_u8(values + i, code)


@kernel
def kv_append_16(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Round this thread's share of heads to float16."""
    heads = read_i64(instr + 8 * APPEND_HEADS)
    size = read_i64(instr + 8 * APPEND_HEAD_DIM)
    padded = (size + DIM_TILE - 1) // DIM_TILE * DIM_TILE
    units = read_i64(ctx + 8 * CTX_TOKENS) * heads
    for unit in range(share(units, tid, threads), share(units, tid + 1, threads)):
        record, slot = _slot(instr, ctx, unit, heads)
        k = read_i64(instr + 8 * APPEND_K) + 4 * size * unit
        keys = read_i64(record + 8 * REC_KEYS) + 2 * padded * (slot // KEY_TILE * KEY_TILE)
        keys += 2 * (slot % KEY_TILE)
        for i in range(size):
            x = min(max(read_f32(k + 4 * i), -_F16_LARGEST), _F16_LARGEST)
            write_f16(keys + 2 * KEY_TILE * i, x)
        v = read_i64(instr + 8 * APPEND_V) + 4 * size * unit
        values = read_i64(record + 8 * REC_VALUES) + 2 * padded * slot
        for i in range(0, padded, LANES):
            count = max(np.int64(0), min(LANES, size - i))
            x = maximum(load_f32_first(v + 4 * i, count), splat_f32(-_F16_LARGEST))
            store_f16(values + 2 * i, minimum(x, splat_f32(_F16_LARGEST)))


@kernel
def kv_append_32(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Copy this thread's share of heads."""
    heads = read_i64(instr + 8 * APPEND_HEADS)
    size = read_i64(instr + 8 * APPEND_HEAD_DIM)
    padded = (size + DIM_TILE - 1) // DIM_TILE * DIM_TILE
    units = read_i64(ctx + 8 * CTX_TOKENS) * heads
    for unit in range(share(units, tid, threads), share(units, tid + 1, threads)):
        record, slot = _slot(instr, ctx, unit, heads)
        k = read_i64(instr + 8 * APPEND_K) + 4 * size * unit
        keys = read_i64(record + 8 * REC_KEYS) + 4 * padded * (slot // KEY_TILE * KEY_TILE)
        keys += 4 * (slot % KEY_TILE)
        for i in range(size):
            write_f32(keys + 4 * KEY_TILE * i, read_f32(k + 4 * i))
        v = read_i64(instr + 8 * APPEND_V) + 4 * size * unit
        values = read_i64(record + 8 * REC_VALUES) + 4 * padded * slot
        for i in range(0, padded, LANES):
            count = max(np.int64(0), min(LANES, size - i))
            store_f32(values + 4 * i, load_f32_first(v + 4 * i, count))
