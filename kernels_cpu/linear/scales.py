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
)
from edgetok.kernels_cpu.linear.transposing import (
    transpose_halves,
    transpose_pieces,
    transpose_words,
)
from edgetok.kernels_cpu.simd.emit import LANES, VB, inline
from edgetok.kernels_cpu.simd.memory import (
    load_f16,
    load_f32,
    load_f32_first,
    prefetch,
    read_u8,
    read_u16,
    store_f32,
    store_f32_first,
    write_f32,
    write_i32,
    write_u16,
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


def make_read_halves(vectors: int, asks: bool = False) -> Any:
    """A function that brings float16 of groups first..first + count to vectors of rows, as float16.

    Those of a group lie side by side. With `asks` it prefetches from `ask` on: a line for every
    LANES groups of a vector.
    """
    run, row_bytes = vectors * LANES, 2 * vectors * LANES
    transpose, lines = transpose_halves(run), 8 * vectors // LANES

    @inline
    def read_halves(scales, sb, rows, first, count, out, ask=0):  # type: ignore[no-untyped-def]
        place = scales + 2 * first
        if count >= 8 and rows >= run:
            for i in range(0, count, 8):
                if asks:
                    for line in range(max(lines, 1)):
                        prefetch(ask + line * LINE)
                    ask += 8 * vectors * LINE // LANES
                g = i if i + 8 <= count else count - 8
                transpose(place + 2 * g, sb, out + g * row_bytes)
            return
        for i in range(run if rows > run else rows):
            for g in range(count):
                write_u16(out + g * row_bytes + 2 * i, read_u16(place + i * sb + 2 * g))

    return read_halves


def make_read_scales(vectors: int) -> Any:
    """A function that does as `make_read_halves`, but makes float32 of them."""
    row_bytes = vectors * VB
    read_halves = make_read_halves(vectors)

    @inline
    def read_scales(scales, sb, rows, first, count, words, out):  # type: ignore[no-untyped-def]
        step = count if count < 8 else 8
        for start in range(0, count, 8):
            begin = start if start + step <= count else count - step
            read_halves(scales, sb, rows, first + begin, step, words)
            here = out + begin * row_bytes
            for i in range(step * vectors):
                store_f32(here + i * VB, load_f16(words + i * (VB // 2)))

    return read_scales


def make_read_supers(vectors: int, asks: bool = False) -> Any:
    """A function that brings int8 scales or offsets, times their super-scales, to vectors of rows.

    Super-scales are float16 from `supers` on, `each` bytes from one super-group to the next and
    `supers_row` to the next row. With `asks` it prefetches as `make_read_halves` does.
    """
    row_bytes = vectors * VB
    spread = floats_of_words(row_bytes)

    @inline
    def read_supers(  # type: ignore[no-untyped-def]
        values, row, supers, supers_row, each, group_size, rows, first, count, words, out, ask=0
    ):
        per = SUPER_GROUP // group_size
        for r in range(vectors):
            last, skip = clamp(rows, r)
            factor = splat_f32(np.float32(0))
            for start in range(0, count, VB):
                left = count - start if count - start < VB else VB
                if asks:
                    for _ in range(left // LANES):
                        prefetch(ask)
                        ask += LINE
                transpose_words(values + skip * row + first + start, row, last, left, words)
                for j in range(left // 4):
                    g = start + 4 * j
                    at = out + g * row_bytes + r * VB
                    if g % per == 0:
                        place = supers + skip * supers_row + (first + g) // per * each
                        for i in range(LANES):
                            q = i if i < last else last
                            write_u16(at + 2 * i, read_u16(place + q * supers_row))
                        factor = load_f16(at)
                    spread(words + j * VB, factor, at)

    return read_supers


def make_read_numbers(vectors: int) -> Any:
    """A function that brings scales or offsets, of either kind, to vectors of rows as float32."""
    read_scales, read_supers = make_read_scales(vectors), make_read_supers(vectors)

    @inline
    def read_numbers(  # type: ignore[no-untyped-def]
        values, row, supers, supers_row, each, group_size, rows, first, count, words, out
    ):
        if supers == 0:
            read_scales(values, row, rows, first, count, words, out)
        else:
            read_supers(
                values, row, supers, supers_row, each, group_size, rows, first, count, words, out
            )  # fmt: skip

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
    run, row_bytes = vectors * LANES, vectors * VB
    spread = (
        points_of_words(zero_bits, middle, row_bytes)
        if points
        else shifts_of_words(zero_bits, offset, row_bytes)
    )
    of_8, of_4 = transpose_pieces(8), transpose_pieces(4)

    @inline
    def read_zeros(zeros, zb, rows, first, count, words, out):  # type: ignore[no-untyped-def]
        place = zeros + first * zero_bits // 8
        nbytes = count * zero_bits // 8
        piece = 8 if nbytes >= 8 else 4
        done = 0
        if nbytes >= piece and rows >= run:
            for r in range(vectors):
                row = place + r * LANES * zb
                for start in range(0, nbytes, piece):
                    begin = start if start + piece <= nbytes else nbytes - piece
                    if piece == 8:
                        of_8(row + begin, zb, words)
                    else:
                        of_4(row + begin, zb, words)
                    for j in range((start - begin) // 4, piece // 4):
                        group = (begin + 4 * j) * 8 // zero_bits
                        spread(words + j * VB, out + group * row_bytes + r * VB)
            done = nbytes * 8 // zero_bits
        for i in range(run if rows > run else rows):
            row = place + i * zb
            for g in range(done, count):
                bit = g * zero_bits
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
