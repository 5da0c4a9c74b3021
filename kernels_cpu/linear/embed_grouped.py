"""Rows of an embedding table of grouped weights: x[t] = scale * table[tokens[t]].

Each value is (code - middle) * scale, code * scale + offset or table[code] * scale, in float32; see
`linear/embed.py`.
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
    read_i32,
    read_i64,
    read_u8,
    write_f32,
)


@inline
def _number(values, supers, which, each, per, i):  # type: ignore[no-untyped-def]
    """The i-th scale or offset of the table."""
    if supers == 0:
        return read_f16(values + 2 * i)
    integer = (read_u8(values + i) ^ 128) - 128
    return np.float32(integer) * read_f16(supers + i // per * each + which)


def _make_embed(bits: int, group_size: int, levels: bool = False) -> Any:
    low_bits, high_bits = layout.LOW_BITS[bits], layout.HIGH_BITS.get(bits, 0)
    middle = 1 << (bits - 1)
    low_mask, high_mask = (1 << low_bits) - 1, (1 << high_bits) - 1
    per = layout.SUPER_GROUP // group_size

    @inline
    def rows(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        x = read_i64(instr + 8 * layout.EMBED_X)
        ids = read_i64(instr + 8 * layout.EMBED_TOKENS)
        table = read_i64(instr + 8 * layout.EMBED_QWEIGHT)
        high = read_i64(instr + 8 * layout.EMBED_HIGH)
        scales = read_i64(instr + 8 * layout.EMBED_SCALES)
        offsets = read_i64(instr + 8 * layout.EMBED_ZEROS)
        supers = read_i64(instr + 8 * layout.EMBED_SUPERS)
        K = read_i64(instr + 8 * layout.EMBED_K)
        factor = f32_from_bits(read_i64(instr + 8 * layout.EMBED_SCALE))
        tokens = read_i64(ctx + 8 * CTX_TOKENS)
        G, each = K // group_size, 4 if offsets != 0 else 2
        for t in range(tid * tokens // threads, (tid + 1) * tokens // threads):
            row = np.int64(read_i32(ids + 4 * t))
            for g in range(G):
                scale = _number(scales, supers, 0, each, per, row * G + g)
                zero, offset = 0 if levels else middle, np.float32(0)
                if offsets != 0:
                    zero, offset = 0, _number(offsets, supers, 2, each, per, row * G + g)
                first = (row * G + g) * group_size
                out = x + 4 * (t * K + g * group_size)
                for i in range(group_size):
                    bit = (first + i) * low_bits
                    code = (read_u8(table + (bit >> 3)) >> (bit & 7)) & low_mask
                    if high_bits:
                        bit = (first + i) * high_bits
                        above = (read_u8(high + (bit >> 3)) >> (bit & 7)) & high_mask
                        code += above << low_bits
                    if levels:
                        code = (read_u8(high + code) ^ 128) - 128
                    write_f32(out + 4 * i, (np.float32(code - zero) * scale + offset) * factor)

    return rows


_q3, _q4, _q5, _q6 = (_make_embed(bits, g) for bits, g in ((3, 16), (4, 32), (5, 32), (6, 16)))
_q6_scales, _q4_table = _make_embed(6, 32), _make_embed(4, 32, levels=True)


@kernel
def embed_q3_supers(instr: int, ctx: int, tid: int, threads: int) -> None:
    """3-bit table that has super-scales."""
    _q3(instr, ctx, tid, threads)


@kernel
def embed_q4_offsets(instr: int, ctx: int, tid: int, threads: int) -> None:
    """4-bit table that has offsets."""
    _q4(instr, ctx, tid, threads)


@kernel
def embed_q4_table(instr: int, ctx: int, tid: int, threads: int) -> None:
    """4-bit table whose codes choose levels."""
    _q4_table(instr, ctx, tid, threads)


@kernel
def embed_q5(instr: int, ctx: int, tid: int, threads: int) -> None:
    """5-bit table."""
    _q5(instr, ctx, tid, threads)


@kernel
def embed_q6(instr: int, ctx: int, tid: int, threads: int) -> None:
    """6-bit table that has super-scales."""
    _q6(instr, ctx, tid, threads)


@kernel
def embed_q6_scales(instr: int, ctx: int, tid: int, threads: int) -> None:
    """6-bit table that has none."""
    _q6_scales(instr, ctx, tid, threads)
