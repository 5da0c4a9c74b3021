"""A run of rows of a product besides its codes: scales, zero points, and where sums go.

A run is a few vectors of rows, a lane is a row. Scales and zero points lie row by row in the
artefact and are brought into scratch group by group: `vectors` vectors for each group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.linear.layout import SUPER_GROUP
from edgetok.kernels_cpu.linear.tile_unpack import (
    floats_of_words,
    points_of_words,
    shifts_of_words,
    transpose_floats,
    transpose_words,
)
from edgetok.kernels_cpu.simd.emit import LANES, VB, inline
from edgetok.kernels_cpu.simd.memory import (
    load_f32,
    load_f32_first,
    prefetch,
    read_f16,
    read_u8,
    store_f32,
    store_f32_first,
    write_f32,
    write_i32,
)
from edgetok.kernels_cpu.simd.ops import add, mul, splat_f32

LINE = 64  # bytes that a prefetch brings


@inline
def clamp(rows, r):  # type: ignore[no-untyped-def]
    """Return the number of the last row of the r-th vector of rows, and of the rows before it.

    Where there are no such rows any will do, as their results are dropped.
    """
    if rows > r * LANES:
        return rows - 1 - r * LANES, r * LANES
    return 0, 0


def make_read_scales(vectors: int, asks: bool = False) -> Any:
    """A function that brings float16 scales of groups first..first + count to vectors of rows.

    With `asks` it prefetches a line from `ask` on for every LANES groups of a vector.
    """
    row_bytes = vectors * VB
    transpose = transpose_floats(16, False, row_bytes)

    @inline
    def read_scales(scales, sb, rows, first, count, out, ask=0):  # type: ignore[no-untyped-def]
        if count >= LANES:
            for r in range(vectors):
                last, skip = clamp(rows, r)
                block = scales + skip * sb + 2 * first
                for i in range(0, count, LANES):
                    if asks:
                        prefetch(ask)
                        ask += LINE
                    g = i if i + LANES <= count else count - LANES
                    transpose(block + 2 * g, sb, last, out + g * row_bytes + r * VB)
            return
        for i in range(vectors * LANES):
            row = scales + (i if i < rows else rows - 1) * sb + 2 * first
            for g in range(count):
                write_f32(out + g * row_bytes + 4 * i, read_f16(row + 2 * g))

    return read_scales


def make_read_numbers(vectors: int, asks: bool = False) -> Any:
    """A function that brings scales or offsets, of either kind, to vectors of rows.

    Without super-scales as `make_read_scales` does it. With them they are int8, times the float16
    at `supers`, `each` bytes from one super-group to the next and `supers_row` to the next row.
    """
    row_bytes = vectors * VB
    read_scales, spread = make_read_scales(vectors, asks), floats_of_words(row_bytes)

    @inline
    def read_numbers(  # type: ignore[no-untyped-def]
        values, row, supers, supers_row, each, group_size, rows, first, count, words, out, ask=0
    ):
        if supers == 0:
            read_scales(values, row, rows, first, count, out, ask)
            return
        per = SUPER_GROUP // group_size
        for r in range(vectors):
            last, skip = clamp(rows, r)
            factor = splat_f32(np.float32(0))
            for start in range(0, count, VB):
                left = count - start if count - start < VB else VB
                transpose_words(values + skip * row + first + start, row, last, left, words)
                for j in range(left // 4):
                    g = start + 4 * j
                    at = out + g * row_bytes + r * VB
                    if g % per == 0:
                        place = supers + skip * supers_row + (first + g) // per * each
                        for i in range(LANES):
                            q = i if i < last else last
                            write_f32(at + 4 * i, read_f16(place + q * supers_row))
                        factor = load_f32(at)
                    spread(words + j * VB, factor, at)

    return read_numbers


def make_read_zeros(bits: int, vectors: int, points: bool) -> Any:
    """A function that brings zero points of groups first..first + count to vectors of rows.

    Args:
        bits: of the weights.
        vectors: of rows.
        points: as float32 (zero - middle) / middle; otherwise as offset - zero in each byte.
    """
    zero_bits = 8 if bits == 3 else bits
    zero_mask = (1 << zero_bits) - 1
    middle, offset = 1 << (bits - 1), 1 << bits
    row_bytes = vectors * VB
    spread = (
        points_of_words(zero_bits, middle, row_bytes)
        if points
        else shifts_of_words(zero_bits, offset, row_bytes)
    )

    @inline
    def read_zeros(zeros, zb, rows, first, count, words, out):  # type: ignore[no-untyped-def]
        begin = first * zero_bits // 8
        nbytes = count * zero_bits // 32 * 4
        for r in range(vectors):
            last, skip = clamp(rows, r)
            at = out + r * VB
            for start in range(0, nbytes, VB):
                left = nbytes - start if nbytes - start < VB else VB
                transpose_words(zeros + skip * zb + begin + start, zb, last, left, words)
                for j in range(left // 4):
                    spread(words + j * VB, at)
                    at += 32 // zero_bits * row_bytes
        for i in range(vectors * LANES):
            row = zeros + (i if i < rows else rows - 1) * zb
            for g in range(nbytes * 8 // zero_bits, count):
                bit = (first + g) * zero_bits
                zero = (read_u8(row + (bit >> 3)) >> (bit & 7)) & zero_mask
                at = out + g * row_bytes + 4 * i
                if points:
                    write_f32(at, np.float32(zero - middle) * np.float32(1 / middle))
                else:
                    write_i32(at, np.int32((offset - zero) * 0x01010101))

    return read_zeros


@inline
def finish(value, y, bias, n, rows, factor, onto, final):  # type: ignore[no-untyped-def]
    """The epilogue of rows n..n + LANES, of which `rows` exist: y = [y +] factor * (value + bias).

    bias: added where there is one and the sum is the `final` one.
    """
    if rows >= LANES:
        if bias != 0 and final:
            value = add(value, load_f32(bias + 4 * n))
        value = mul(value, splat_f32(factor))
        if onto:
            value = add(value, load_f32(y + 4 * n))
        store_f32(y + 4 * n, value)
    elif rows > 0:
        if bias != 0 and final:
            value = add(value, load_f32_first(bias + 4 * n, rows))
        value = mul(value, splat_f32(factor))
        if onto:
            value = add(value, load_f32_first(y + 4 * n, rows))
        store_f32_first(y + 4 * n, value, rows)
