"""The inner steps of row products, each emitted as one operation.

Numba takes milliseconds to type and lower every small operation, LLVM microseconds to compile it.
So what the innermost loops do is composed here, of the emitters of `simd/ops.py`, for a strip of
rows and a few tokens, and the loops around it stay ordinary Python.
"""

from __future__ import annotations

from typing import Any

from numba import types

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.code_orders import (
    HIGH_BIT,
    PAIR_BIT,
    PAIR_FIELD,
    load_bits,
    load_bits_first,
    load_high,
    load_high_first,
    load_table,
    load_words,
    look_up,
)
from edgetok.kernels_cpu.linear.integer_sums import Sum, plus_products, strip_sums
from edgetok.kernels_cpu.simd.byte_products import (
    in_order,
    signed_codes,
)
from edgetok.kernels_cpu.simd.composing import at, clamped, number, pack_tuple, unpack_tuple
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I8,
    _I32,
    F32,
    LANES,
    NAME,
    VB,
    _constant,
    _load,
    _splat,
    _store,
    i64,
    op,
    void,
)
from edgetok.kernels_cpu.simd.memory import (
    load_f16,
    load_f32,
    load_i32,
    load_u8,
    prefetch,
    store_f32,
)
from edgetok.kernels_cpu.simd.ops import (
    FIELD,
    fma,
    mul,
    or_u8,
    to_f32,
)

STRIP = 4  # rows side by side
_LINE = 64  # bytes that a prefetch brings


def fields(b: Any, bits: int, w: Any, high: Any, table: bool = False) -> list[Any]:
    """The codes of a vector of packed bytes, plane by plane; `high` from `load_plane`.

    Those of 8 bits are less 128 where `signed_codes`. With `table` levels; `high` is the table.
    """
    if table:
        return [look_up(b, high, field.emit(b, w)) for field in FIELD[4]]
    if bits == 8:
        return [b.xor(w, _constant(_I8, VB, 0x80))] if signed_codes(bits) else [w]
    if bits == 4:
        return [field.emit(b, w) for field in FIELD[4]]
    if bits in (5, 6):
        above = PAIR_BIT if bits == 5 else PAIR_FIELD
        planes = zip(FIELD[4], above, strict=True)
        return [or_u8.emit(b, field.emit(b, w), of.emit(b, high)) for field, of in planes]
    low = [field.emit(b, w) for field in FIELD[2]]
    if bits == 2:
        return low
    return [or_u8.emit(b, q, bit.emit(b, high)) for q, bit in zip(low, HIGH_BIT, strict=True)]


def load_plane(bits: int, part: bool) -> tuple[Any, int]:
    """Return the loader of high bits, and how many bytes of codes come with one of theirs."""
    part_of = layout.LOW_BITS[bits] // layout.HIGH_BITS[bits]
    if part_of == 4:
        return load_bits_first if part else load_bits, part_of
    return load_high_first if part else load_high, part_of


def row_step(bits: int, block: int, tokens: int, part: bool, table: bool = False) -> Any:
    """Integer sums of a strip of rows by a few tokens over the blocks of one unit, to memory.

    A unit is a chunk or, where that is longer, a block. int32 of its i-th block, row r and token t
    are stored at out + t * outb + i * VB + 4 * r.

    Args of the operation:
        w, h: addresses of the first row's codes and high bits of this unit.
        wb, hb: bytes from one row to the next; rows after number `last` repeat it.
        last: see there.
        x, xb: address of the first token's unit, bytes to the next token's.
        out, outb: where results go.
        ask, ask_high, ask_scales: where to prefetch as many codes as the step reads, and a line of
            scales. With `part` `ask` is how many bytes of codes are left of the row.

    Args:
        bits: of the weights.
        block: inputs that share an activation scale.
        tokens: how many.
        part: for the last unit of a row, where it is not a whole one.
        table: codes choose levels; `h` is the table's address.
    """
    planes = layout.PLANES[bits]
    most = 255 if table else (1 << bits) - 1
    chunk = planes * VB
    chunks = max(block // chunk, 1)
    width = min(block * LANES // chunk, LANES)  # lanes of a block
    length = chunks * VB  # bytes of a row's unit
    planar = bits in layout.HIGH_BITS
    load_above, part_of = load_plane(bits, part) if planar else (None, 1)

    # With 16 registers all codes of the rows stay there, and tokens come one after the other.
    token_by_token = NAME == "avx2" and tokens > 1 and STRIP * chunks * planes <= 8

    def total(b: Any, codes: list[Any], x: Any) -> Sum | None:
        """Products of a row's codes and a token's."""
        found = None
        for i, code in enumerate(codes):
            values = load_u8.emit(b, b.add(x, number(i * VB)))
            found = plus_products(b, found, code, values, most)
        return found

    def emit(b: Any, w: Any, h: Any, *rest: Any) -> None:
        wb, hb, last, x, xb, out, outb, ask, ask_high, ask_scales = rest
        sums: list[list[Any]] = [[None] * STRIP for _ in range(tokens)]
        unpacked: list[list[Any]] = []
        levels = load_table(b, h, signed_codes(bits, table)) if table else None
        for r in range(STRIP):
            wr, hr = clamped(b, w, r, last, wb), clamped(b, h, r, last, hb)
            codes: list[Any] = []
            for c in range(chunks):
                wc, high = b.add(wr, number(c * VB)), levels
                packed = load_words.emit(b, wc, ask) if part else load_u8.emit(b, wc)
                if load_above is not None:
                    hc = b.add(hr, number(c * VB // part_of))
                    left = [b.udiv(ask, number(part_of))] if part else []
                    high = load_above.emit(b, hc, *left)
                codes += fields(b, bits, packed, high, table)
            unpacked.append(codes)
            if not token_by_token:
                for t in range(tokens):
                    sums[t][r] = total(b, codes, at(b, x, t, xb))
        if not part:
            for i in range(0, STRIP * length, _LINE):
                prefetch.emit(b, b.add(ask, number(i)))
            for i in range(0, STRIP * length // part_of if planar else 0, _LINE):
                prefetch.emit(b, b.add(ask_high, number(i)))
            prefetch.emit(b, ask_scales)
        for t in range(tokens):
            rows = sums[t]
            if token_by_token:
                rows = [total(b, codes, at(b, x, t, xb)) for codes in unpacked]
            values = strip_sums(b, rows, width)
            if token_by_token:
                kept = in_order(b, values + [code for codes in unpacked for code in codes])
                values, kept = kept[: len(values)], kept[len(values) :]
                each = len(kept) // STRIP
                unpacked = [kept[r * each : (r + 1) * each] for r in range(STRIP)]
            for i, value in enumerate(values):
                _store(b, b.add(at(b, out, t, outb), number(i * VB)), value)

    return op(void, *[i64] * 12)(emit)


def fold_step(
    bits: int, vectors: int, tokens: int, zeros: bool, offsets: bool = False, table: bool = False,
    halves: bool = True,
) -> Any:  # fmt: skip
    """Add one block's products to the sums of vectors of rows by tokens.

    f + float(sum of codes * activations - zero point * sum of activations) * scale * a_scale
    f + (float(sum of codes * activations) * scale + offset * sum of activations) * a_scale

    Args of the operation: UniTuple of vectors * tokens sums; address of the first token's integers,
    bytes to the next token's, bytes from one vector of rows to the next; address of its middle
    sum, distance to the scale, bytes to the next token; addresses of the group's scales and (zero -
    middle) / middle, or with `offsets` the group's offsets, of all rows. With `table` the middle
    is 128, and middle sums are those of codes of `bits`. Scales and offsets are float16 with
    `halves`, otherwise float32.
    """
    by = 8 - bits if table else 0
    unit = _constant(_F32, LANES, -1.0 / (1 << (bits - 1)))
    tile = types.UniTuple(F32, vectors * tokens)
    load, nbytes = (load_f16, VB // 2) if halves else (load_f32, VB)

    @op(tile, tile, *[i64] * 8)
    def fold(b: Any, f: Any, sums: Any, sumb: Any, rowb: Any, middles: Any, *rest: Any) -> Any:
        away, xb, scales, points = rest
        totals = unpack_tuple(b, f, vectors * tokens)
        for t in range(tokens):
            middle = _splat(b, _load(b, at(b, middles, t, xb), _I32), LANES)
            a = _splat(b, _load(b, b.add(at(b, middles, t, xb), away), _F32), LANES)
            for v in range(vectors):
                i = t * vectors + v
                found = load_i32.emit(b, at(b, at(b, sums, t, sumb), v, rowb))
                scale = load.emit(b, b.add(scales, number(v * nbytes)))
                if offsets:
                    value = mul.emit(b, to_f32.emit(b, found), scale)
                    offset = load.emit(b, b.add(points, number(v * nbytes)))
                    total = mul.emit(b, to_f32.emit(b, middle), unit)
                    value = fma.emit(b, offset, total, value)
                    totals[i] = fma.emit(b, value, a, totals[i])
                    continue
                if not signed_codes(bits, table):
                    found = b.add(found, b.shl(middle, _constant(_I32, LANES, by)))
                value = to_f32.emit(b, found)
                if zeros:  # exact: all three are integers below 2^24
                    point = load_f32.emit(b, b.add(points, number(v * VB)))
                    value = fma.emit(b, point, to_f32.emit(b, middle), value)
                totals[i] = fma.emit(b, mul.emit(b, value, scale), a, totals[i])
        return pack_tuple(b, totals)

    return fold


def zero_sums(count: int) -> Any:
    """`count` sums of nothing."""

    @op(types.UniTuple(F32, count))
    def zero(b: Any) -> Any:
        return pack_tuple(b, [_constant(_F32, LANES, 0.0)] * count)

    return zero


def store_sums(count: int) -> Any:
    """`count` sums to memory, one vector after the other."""

    @op(void, types.UniTuple(F32, count), i64)
    def store(b: Any, f: Any, out: Any) -> None:
        for i, value in enumerate(unpack_tuple(b, f, count)):
            store_f32.emit(b, b.add(out, number(i * VB)), value)

    return store
