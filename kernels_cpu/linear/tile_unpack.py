"""Steps that bring a tile's codes, scales and zero points to a lane for each row."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.linear.code_orders import (
    load_table,
)
from edgetok.kernels_cpu.linear.layout import HIGH_BITS, LOW_BITS, PLANES
from edgetok.kernels_cpu.linear.row_steps import fields
from edgetok.kernels_cpu.linear.tile_matrices import in_matrices
from edgetok.kernels_cpu.linear.tile_shape import ROW_BYTES
from edgetok.kernels_cpu.simd.byte_products import signed_codes
from edgetok.kernels_cpu.simd.composing import at, number, transposed
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I8,
    _I32,
    F32,
    I32,
    LANES,
    MATRICES,
    U8,
    VB,
    _constant,
    _load,
    _shuffle,
    _splat,
    _store,
    i64,
    op,
    void,
)
from edgetok.kernels_cpu.simd.memory import (
    load_f32,
    load_i32,
    load_u8,
    store_f32,
    store_u8,
)
from edgetok.kernels_cpu.simd.ops import (
    fma,
    mul,
    sub,
    to_f32,
)


def unpack_words(bits: int, shifted: bool, table: bool = False, count: int = 1) -> Any:
    """`count` words of LANES rows to unsigned codes, four inputs of a row to a lane.

    Where MATRICES pairs of steps are stored as in `in_matrices`.

    Args of the operation: addresses of the vector of words (others VB apart) and (3, 5, 6 bits) of
    that of high words, how far to shift the latter right, address of the bytes to add (only where
    `shifted`), address of the first plane's result; the others follow ROW_BYTES apart. With `table`
    codes become levels, and that of high words is the table's address.
    """

    @op(void, i64, i64, i64, i64, i64)
    def unpack(b: Any, words: Any, high: Any, by: Any, shift: Any, out: Any) -> None:
        codes, levels = [], None
        if table:
            levels = load_table(b, high, signed_codes(bits, table))
        for i in range(count):
            w, h = load_u8.emit(b, b.add(words, number(i * VB)) if i else words), levels
            if bits in HIGH_BITS:
                past = b.add(by, number(i * HIGH_BITS[bits] * 32 // LOW_BITS[bits])) if i else by
                h = b.lshr(load_i32.emit(b, high), _splat(b, b.trunc(past, _I32), LANES))
            codes += _codes(b, bits, w, h, load_u8.emit(b, shift) if shifted else None, table)
        _store_codes(b, codes, PLANES[bits], out)

    return unpack


def _store_codes(b: Any, codes: list[Any], planes: int, out: Any) -> None:
    """Vectors of the steps of one or two words, in order, ROW_BYTES apart."""
    for step, u in enumerate(in_matrices(b, codes, planes) if MATRICES else codes):
        store_u8.emit(b, at(b, out, step, number(ROW_BYTES)), u)


def _codes(b: Any, bits: int, w: Any, high: Any, shift: Any, table: bool) -> list[Any]:
    """The codes of a vector of words; the low half (5 bits: byte) of `high`'s belongs to them."""
    spread = high
    if bits == 5:  # a byte four times
        h = b.and_(high, _constant(_I32, LANES, 0xFF))
        spread = b.bitcast(b.mul(h, _constant(_I32, LANES, 0x01010101)), U8.ll)
    elif bits in HIGH_BITS:  # four bits of each of four bytes, out of sixteen
        h = b.and_(high, _constant(_I32, LANES, 0xFFFF))
        h = b.or_(h, b.shl(h, _constant(_I32, LANES, 8)))
        h = b.and_(h, _constant(_I32, LANES, 0x00FF00FF))
        h = b.or_(h, b.shl(h, _constant(_I32, LANES, 4)))
        spread = b.bitcast(h, U8.ll)
    found = fields(b, bits, w, spread, table)
    return [q if shift is None else b.add(q, shift) for q in found]


def unpack_rows(bits: int, shifted: bool, table: bool = False, count: int = 1) -> Any:
    """VB packed bytes of each of LANES rows to unsigned codes, four inputs of a row to a lane.

    As `transpose_words` and then `unpack_words` of every word, but nothing waits in memory.

    Args of the operation: address of the first row's bytes, bytes to the next row's; the same of
    the high plane (3, 5, 6 bits); address of the bytes to add of the first group, log2 of how many
    times 32 inputs a group has, and how many times 32 inputs lie between its first one and these
    (only where `shifted`); address of the first result, the others follow ROW_BYTES apart. With
    `table` the high plane's address is the table's.
    """
    planes = PLANES[bits]
    words_of_32 = 8 // planes

    @op(void, *[i64] * 8)
    def unpack(
        b: Any, w: Any, wb: Any, h: Any, hb: Any, shifts: Any, by: Any, unit: Any, out: Any
    ) -> None:
        rows = [b.bitcast(load_u8.emit(b, at(b, w, r, wb)), I32.ll) for r in range(LANES)]
        words, highs = transposed(b, rows), []
        part_of = LOW_BITS[bits] // HIGH_BITS.get(bits, 1)
        if bits in HIGH_BITS:
            nbytes = VB // part_of
            part = ir.VectorType(_I8, nbytes)
            wide = list(range(nbytes)) + [nbytes] * (VB - nbytes)
            rows = []
            for r in range(LANES):
                v = _load(b, at(b, h, r, hb), part)
                v = _shuffle(b, v, wide, ir.Constant(part, [0] * nbytes))
                rows.append(b.bitcast(v, I32.ll))
            highs = transposed(b, rows)
        shift, codes = None, []
        levels = load_table(b, h, signed_codes(bits, table)) if table else None
        for j, word in enumerate(words):
            if shifted and j % words_of_32 == 0:
                group = b.lshr(b.add(unit, number(j // words_of_32)), by)
                shift = load_u8.emit(b, b.add(shifts, b.mul(group, number(ROW_BYTES))))
            high = levels
            if highs:
                by_bits = _constant(_I32, LANES, j % part_of * (32 // part_of))
                high = b.lshr(highs[j // part_of], by_bits)
            codes += _codes(b, bits, b.bitcast(word, U8.ll), high, shift, table)
            if (j + 1) % count == 0:
                place = b.add(out, number((j + 1 - count) * planes * ROW_BYTES))
                _store_codes(b, codes, planes, place)
                codes = []

    return unpack


def _zeros_of_words(zero_bits: int, row_bytes: int, use: Any) -> Any:
    @op(void, i64, i64)
    def spread(b: Any, words: Any, out: Any) -> None:
        w = load_i32.emit(b, words)
        for i in range(32 // zero_bits):
            z = b.lshr(w, _constant(_I32, LANES, i * zero_bits))
            z = b.and_(z, _constant(_I32, LANES, (1 << zero_bits) - 1))
            _store(b, b.add(out, number(i * row_bytes)), use(b, z))

    return spread


def shifts_of_words(zero_bits: int, offset: int, row_bytes: int) -> Any:
    """Zero points, one word of every row, to offset - zero in every byte.

    Args of the operation: addresses of the vector of words and of the first group's result; the
    others follow `row_bytes` apart.
    """

    def use(b: Any, z: Any) -> Any:
        v = b.sub(_constant(_I32, LANES, offset), z)
        v = b.or_(v, b.shl(v, _constant(_I32, LANES, 8)))
        return b.or_(v, b.shl(v, _constant(_I32, LANES, 16)))

    return _zeros_of_words(zero_bits, row_bytes, use)


def points_of_words(zero_bits: int, middle: int, row_bytes: int) -> Any:
    """Zero points, one word of every row, to float32 (zero - middle) / middle; otherwise so."""

    def use(b: Any, z: Any) -> Any:
        v = to_f32.emit(b, b.sub(z, _constant(_I32, LANES, middle)))
        return mul.emit(b, v, _constant(_F32, LANES, 1 / middle))

    return _zeros_of_words(zero_bits, row_bytes, use)


def floats_of_words(row_bytes: int) -> Any:
    """Int8, one word of every row, to float32 times the row's factor.

    Args of the operation: address of the vector of words; factors; address of the first column's
    result; the others follow `row_bytes` apart.
    """

    @op(void, i64, F32, i64)
    def spread(b: Any, words: Any, factor: Any, out: Any) -> None:
        w = load_i32.emit(b, words)
        for i in range(4):
            v = b.shl(w, _constant(_I32, LANES, 24 - 8 * i)) if i < 3 else w
            v = to_f32.emit(b, b.ashr(v, _constant(_I32, LANES, 24)))
            store_f32.emit(b, b.add(out, number(i * row_bytes)), mul.emit(b, v, factor))

    return spread


def unpack_floats(bits: int, offsets: bool = False) -> Any:
    """Words of LANES rows to (code - zero) * scale, one input of all rows to a vector.

    With `offsets` to code * scale + offset. Args of the operation: words, high and by as in
    `unpack_words`; addresses of LANES scales and zeros, or offsets, in float32; address of the
    first input's result; the others follow ROW_BYTES apart.
    """
    stored, above = LOW_BITS[bits], HIGH_BITS.get(bits, 0)

    @op(void, i64, i64, i64, i64, i64, i64)
    def unpack(b: Any, words: Any, high: Any, by: Any, scales: Any, zeros: Any, out: Any) -> None:
        w = load_i32.emit(b, words)
        h = None
        if above:
            h = b.lshr(load_i32.emit(b, high), _splat(b, b.trunc(by, _I32), LANES))
        s, z = load_f32.emit(b, scales), load_f32.emit(b, zeros)
        for i in range(32 // stored):
            q = b.lshr(w, _constant(_I32, LANES, i * stored))
            q = b.and_(q, _constant(_I32, LANES, (1 << stored) - 1))
            if h is not None:
                more = b.lshr(h, _constant(_I32, LANES, i * above))
                more = b.and_(more, _constant(_I32, LANES, (1 << above) - 1))
                q = b.or_(q, b.shl(more, _constant(_I32, LANES, stored)))
            value = to_f32.emit(b, q)
            value = fma.emit(b, value, s, z) if offsets else mul.emit(b, sub.emit(b, value, z), s)
            store_f32.emit(b, at(b, out, i, number(ROW_BYTES)), value)

    return unpack


def look_up_floats() -> Any:
    """Words of LANES rows to table[code] * scale, one input of all rows to a vector.

    Args of the operation are those of `unpack_floats`, with the table's address in place of the
    high words' and the zeros' without meaning.
    """

    @op(void, i64, i64, i64, i64, i64, i64)
    def unpack(b: Any, words: Any, table: Any, by: Any, scales: Any, zeros: Any, out: Any) -> None:
        levels, scale = load_table(b, table, True), load_f32.emit(b, scales)
        planes = fields(b, 4, load_u8.emit(b, words), levels, table=True)
        for i in range(8):
            v = b.bitcast(planes[i % 2], I32.ll)
            v = b.shl(v, _constant(_I32, LANES, 24 - i // 2 * 8))
            value = to_f32.emit(b, b.ashr(v, _constant(_I32, LANES, 24)))
            store_f32.emit(b, at(b, out, i, number(ROW_BYTES)), mul.emit(b, value, scale))

    return unpack
