"""Rows of an embedding table, in float32: x[t] = scale * table[tokens[t]].

Quantised tables are read in the artefact's layout (`docs/architecture.md`): each value is
(code - zero) * scale, exact in float32 before the last factor. Rows are few, so the loop is plain.
Tokens are split over threads; the caller has checked their range.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import inline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    read_f16,
    read_f32,
    read_i32,
    read_i64,
    read_u8,
    write_f32,
)


def make_embed(bits: int) -> Any:
    """The kernel body for a quantised table."""
    stored_bits = 2 if bits == 3 else bits
    zero_bits = 8 if bits == 3 else bits
    three = bits == 3
    mask, zero_mask = (1 << stored_bits) - 1, (1 << zero_bits) - 1
    middle = 1 << (bits - 1)

    @inline
    def rows(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        x = read_i64(instr + 8 * layout.EMBED_X)
        ids = read_i64(instr + 8 * layout.EMBED_TOKENS)
        table = read_i64(instr + 8 * layout.EMBED_QWEIGHT)
        high = read_i64(instr + 8 * layout.EMBED_HIGH)
        scales = read_i64(instr + 8 * layout.EMBED_SCALES)
        zeros = read_i64(instr + 8 * layout.EMBED_ZEROS)
        K = read_i64(instr + 8 * layout.EMBED_K)
        group_size = read_i64(instr + 8 * layout.EMBED_GROUP_SIZE)
        factor = f32_from_bits(read_i64(instr + 8 * layout.EMBED_SCALE))
        tokens = read_i64(ctx + 8 * CTX_TOKENS)
        G = (K + group_size - 1) // group_size
        zb = (G * zero_bits + 7) // 8
        for t in range(tid * tokens // threads, (tid + 1) * tokens // threads):
            row = np.int64(read_i32(ids + 4 * t))
            for g in range(G):
                zero = middle
                if zeros != 0:
                    bit = g * zero_bits
                    zero = (read_u8(zeros + row * zb + (bit >> 3)) >> (bit & 7)) & zero_mask
                scale = read_f16(scales + 2 * (row * G + g))
                count = K - g * group_size
                if count > group_size:
                    count = group_size
                first = (row * G + g) * group_size
                out = x + 4 * (t * K + g * group_size)
                for i in range(count):
                    bit = (first + i) * stored_bits
                    code = (read_u8(table + (bit >> 3)) >> (bit & 7)) & mask
                    if three:
                        c = first + i
                        code += ((read_u8(high + (c >> 3)) >> (c & 7)) & 1) << 2
                    write_f32(out + 4 * i, np.float32(code - zero) * scale * factor)

    return rows


def make_float_embed(bits: int) -> Any:
    """The kernel body for a float16 or float32 table."""
    half = bits == 16

    @inline
    def rows(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        x = read_i64(instr + 8 * layout.EMBED_X)
        ids = read_i64(instr + 8 * layout.EMBED_TOKENS)
        table = read_i64(instr + 8 * layout.EMBED_QWEIGHT)
        K = read_i64(instr + 8 * layout.EMBED_K)
        factor = f32_from_bits(read_i64(instr + 8 * layout.EMBED_SCALE))
        tokens = read_i64(ctx + 8 * CTX_TOKENS)
        for t in range(tid * tokens // threads, (tid + 1) * tokens // threads):
            row, out = np.int64(read_i32(ids + 4 * t)) * K, x + 4 * t * K
            for i in range(K):
                value = read_f16(table + 2 * (row + i)) if half else read_f32(table + 4 * (row + i))
                write_f32(out + 4 * i, value * factor)

    return rows


_q2, _q3, _q4, _q8 = (make_embed(bits) for bits in (2, 3, 4, 8))
_f16, _f32 = make_float_embed(16), make_float_embed(32)


@kernel
def embed_q2(instr: int, ctx: int, tid: int, threads: int) -> None:
    """2-bit table."""
    _q2(instr, ctx, tid, threads)


@kernel
def embed_q3(instr: int, ctx: int, tid: int, threads: int) -> None:
    """3-bit table."""
    _q3(instr, ctx, tid, threads)


@kernel
def embed_q4(instr: int, ctx: int, tid: int, threads: int) -> None:
    """4-bit table."""
    _q4(instr, ctx, tid, threads)


@kernel
def embed_q8(instr: int, ctx: int, tid: int, threads: int) -> None:
    """8-bit table."""
    _q8(instr, ctx, tid, threads)


@kernel
def embed_f16(instr: int, ctx: int, tid: int, threads: int) -> None:
    """float16 table."""
    _f16(instr, ctx, tid, threads)


@kernel
def embed_f32(instr: int, ctx: int, tid: int, threads: int) -> None:
    """float32 table."""
    _f32(instr, ctx, tid, threads)
