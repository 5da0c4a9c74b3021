"""The inner steps of row products, each emitted as one operation.

Numba takes milliseconds to type and lower every small operation, LLVM microseconds to compile it.
So what the innermost loops do is composed here, of the emitters of `simd/ops.py`, for a strip of
rows and a few tokens, and the loops around it stay ordinary Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.byte_products import (
    absolute_bytes,
    in_order,
    signed_codes,
    with_signs,
)
from edgetok.kernels_cpu.linear.code_orders import (
    HIGH_BIT,
    PAIR_BIT,
    PAIR_FIELD,
    load_bits,
    load_bits_first,
    load_f16_first,
    load_high,
    load_high_first,
    load_table,
    load_words,
    look_up,
)
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I8,
    _I32,
    _I64,
    F32,
    I32,
    LANES,
    NAME,
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
    load_f16,
    load_f32,
    load_f32_first,
    load_i32,
    load_u8,
    prefetch,
    store_f32,
)
from edgetok.kernels_cpu.simd.ops import (
    FIELD,
    dot_u7s8,
    dot_u8s8,
    fma,
    mul,
    multiply_pairs,
    or_u8,
    to_f32,
    widen_pairs,
    zero_i32,
)

STRIP = 4  # rows side by side
_LINE = 64  # bytes that a prefetch brings


def number(value: int) -> ir.Constant:
    """An int64 constant."""
    return ir.Constant(_I64, value)


def at(b: Any, address: Any, index: int, stride: Any) -> Any:
    """The address `index` strides further on."""
    return b.add(address, b.mul(number(index), stride)) if index else address


def unpack_tuple(b: Any, values: Any, count: int) -> list[Any]:
    """Elements of a UniTuple."""
    return [b.extract_value(values, i) for i in range(count)]


def pack_tuple(b: Any, values: list[Any]) -> Any:
    """A UniTuple of the values."""
    packed = ir.Constant(ir.ArrayType(values[0].type, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        packed = b.insert_value(packed, value, i)
    return packed


def clamped(b: Any, address: Any, index: int, last: Any, stride: Any) -> Any:
    """The address min(index, last) strides further on."""
    if not index:
        return address
    here = number(index)
    reached = b.select(b.icmp_signed("<", here, last), here, last)
    return b.add(address, b.mul(reached, stride))


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
    """How to load high bits, and how many bytes of codes come with one of theirs."""
    part_of = layout.LOW_BITS[bits] // layout.HIGH_BITS[bits]
    if part_of == 4:
        return load_bits_first if part else load_bits, part_of
    return load_high_first if part else load_high, part_of


# Sums of integers that may still be in 16 bits


@dataclass(frozen=True, slots=True)
class Sum:
    """Integers to be added up: LANES of int32, or pairs of int16 (AVX2) of at most `bound`."""

    value: Any
    bound: int = 0


def products(b: Any, codes: Any, values: Any, most: int) -> Sum:
    """Products of 4 bytes each, codes of at most `most` by int8; in 16 bits where it saves work.

    AVX2 multiplies bytes to pairs of int16 and adds pairs in a second, as slow, instruction. Small
    codes leave room to add several pairs before.
    """
    if NAME == "avx2":
        if most < 128:
            return Sum(multiply_pairs(b, codes, values), 2 * most * 128)
        sizes = absolute_bytes(b, codes)
        return Sum(multiply_pairs(b, sizes, with_signs(b, values, codes)), 2 * 128 * 127)
    dot = dot_u7s8 if most < 128 else dot_u8s8
    return Sum(dot.emit(b, zero_i32.emit(b), codes, values))


def added(b: Any, x: Sum, y: Sum) -> Sum:
    """x + y, widened where 16 bits could overflow."""
    if x.bound and y.bound and x.bound + y.bound < 1 << 15:
        return Sum(b.add(x.value, y.value), x.bound + y.bound)
    return Sum(b.add(widened(b, x), widened(b, y)))


def widened(b: Any, x: Sum) -> Any:
    """The sum in int32."""
    return widen_pairs(b, x.value) if x.bound else x.value


def plus_products(b: Any, total: Sum | None, codes: Any, values: Any, most: int) -> Sum:
    """total + products."""
    if total is None:
        return products(b, codes, values, most)
    if NAME == "avx2":
        return added(b, total, products(b, codes, values, most))
    dot = dot_u7s8 if most < 128 else dot_u8s8
    return Sum(dot.emit(b, total.value, codes, values))


def _pick(b: Any, index: list[int], x: Sum, y: Sum | None = None) -> Sum:
    """Elements of 32 bits of x and y, by 128 bits: 0..3 are x's four, 4..7 y's."""
    lanes = [
        block + k if k < 4 else LANES + block + k - 4 for block in range(0, LANES, 4) for k in index
    ]
    first = b.bitcast(x.value, I32.ll)
    second = None if y is None else b.bitcast(y.value, I32.ll)
    value = b.bitcast(_shuffle(b, first, lanes, second), x.value.type)
    return Sum(value, max(x.bound, 0 if y is None else y.bound))


def _across(b: Any, x: Sum, step: int) -> Sum:
    """Each 128 bits plus those whose number differs in the bit `step`."""
    lanes = [4 * ((i // 4) ^ step) + i % 4 for i in range(LANES)]
    value = b.bitcast(_shuffle(b, b.bitcast(x.value, I32.ll), lanes), x.value.type)
    return added(b, x, Sum(value, x.bound))


def strip_sums(b: Any, rows: list[Sum], width: int) -> list[Any]:
    """Sums of each `width` lanes of STRIP rows: for each block in turn, 128 bits of STRIP int32.

    Only moves inside 128 bits until blocks are longer: cheap everywhere. LLVM makes `addp` of sums
    of even and odd lanes on Arm, and three sums of six `unpck` elsewhere.
    """
    x, y, z, w = rows
    even, odd = [0, 2, 4, 6], [1, 3, 5, 7]
    low, high, low_half, high_half = [0, 4, 1, 5], [2, 6, 3, 7], [0, 1, 4, 5], [2, 3, 6, 7]

    def folded(x: Sum, y: Sum, first: list[int], second: list[int]) -> Sum:
        return added(b, _pick(b, first, x, y), _pick(b, second, x, y))

    if width == 1:
        pairs = [(_pick(b, index, x, y), _pick(b, index, z, w)) for index in (low, high)]
        sums = [_pick(b, half, *pair) for pair in pairs for half in (low_half, high_half)]
    elif width == 2:
        if NAME == "neon":
            xy, zw = folded(x, y, even, odd), folded(z, w, even, odd)
            sums = [_pick(b, even, xy, zw), _pick(b, odd, xy, zw)]
        else:
            sums = [
                folded(_pick(b, index, x, y), _pick(b, index, z, w), low_half, high_half)
                for index in (low, high)
            ]
    elif NAME == "neon":
        sums = [folded(folded(x, y, even, odd), folded(z, w, even, odd), even, odd)]
    else:
        xy, zw = folded(x, y, low, high), folded(z, w, low, high)
        sums = [folded(xy, zw, low_half, high_half)]
    step = 1
    while 4 * step < width:
        sums = [_across(b, sums[0], step)]
        step *= 2
    found = []
    for block in range(0, LANES // 4, max(width // 4, 1)):
        for total in sums:
            value = widened(b, total)
            index = list(range(4 * block, 4 * block + 4))
            found.append(value if LANES == 4 else _shuffle(b, value, index))
    return found


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
    bits: int, vectors: int, tokens: int, zeros: bool, offsets: bool = False, table: bool = False
) -> Any:
    """Add one block's products to the sums of vectors of rows by tokens.

    f + float(sum of codes * activations - zero point * sum of activations) * scale * a_scale
    f + (float(sum of codes * activations) * scale + offset * sum of activations) * a_scale

    Args of the operation: UniTuple of vectors * tokens sums; address of the first token's integers,
    bytes to the next token's, bytes from one vector of rows to the next; address of its middle
    sum, distance to the scale, bytes to the next token; addresses of the group's scales and (zero -
    middle) / middle, or with `offsets` the group's offsets, of all rows. With `table` the middle
    is 128, and middle sums are those of codes of `bits`.
    """
    by = 8 - bits if table else 0
    unit = _constant(_F32, LANES, -1.0 / (1 << (bits - 1)))
    tile = types.UniTuple(F32, vectors * tokens)

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
                scale = load_f32.emit(b, b.add(scales, number(v * VB)))
                if offsets:
                    value = mul.emit(b, to_f32.emit(b, found), scale)
                    offset = load_f32.emit(b, b.add(points, number(v * VB)))
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


def transposed(b: Any, rows: list[Any]) -> list[Any]:
    """LANES vectors of LANES 32-bit elements, transposed by swapping halves of halves."""
    lanes = list(range(LANES))
    step = LANES // 2
    while step:
        swapped = list(rows)
        for i in lanes:
            if not i & step:
                x, y = rows[i], rows[i + step]
                low = [LANES + k - step if k & step else k for k in lanes]
                high = [LANES + k if k & step else k + step for k in lanes]
                swapped[i] = _shuffle(b, x, low, y)
                swapped[i + step] = _shuffle(b, x, high, y)
        rows = swapped
        step //= 2
    return rows


def float_row_step(bits: int, rows: int, tokens: int, lanes: int, part: bool) -> Any:
    """Add `lanes` inputs' products of rows x tokens to their sums; 16 or 32-bit weights.

    Args of the operation: UniTuple of sums, by row, token and then lane; w, x addresses of the
    first row and token; wb, xb bytes to the next ones; rows and tokens after number `last_row` and
    `last` repeat those; with `part` how many inputs are left; otherwise how far ahead of w to
    prefetch.
    """
    vectors = lanes // LANES
    full, first = (load_f16, load_f16_first) if bits == 16 else (load_f32, load_f32_first)

    def emit(b: Any, f: Any, w: Any, x: Any, *rest: Any) -> Any:
        wb, xb, last_row, last, end = rest
        sums = unpack_tuple(b, f, rows * tokens * vectors)
        for v in range(vectors):
            left = b.sub(end, number(v * LANES))
            inputs = []
            for t in range(tokens):
                place = b.add(clamped(b, x, t, last, xb), number(4 * v * LANES))
                value = load_f32_first.emit(b, place, left) if part else load_f32.emit(b, place)
                inputs.append(value)
            for r in range(rows):
                place = b.add(clamped(b, w, r, last_row, wb), number(bits // 8 * v * LANES))
                weights = first.emit(b, place, left) if part else full.emit(b, place)
                if not part and v * LANES * bits // 8 % _LINE == 0:
                    prefetch.emit(b, b.add(place, end))
                for t in range(tokens):
                    i = (r * tokens + t) * vectors + v
                    sums[i] = fma.emit(b, weights, inputs[t], sums[i])
        return pack_tuple(b, sums)

    tile = types.UniTuple(F32, rows * tokens * vectors)
    return op(tile, tile, *[i64] * 7)(emit)


def store_chains(rows: int, tokens: int, lanes: int, rowb: int, tokenb: int) -> Any:
    """Sums of `float_row_step` to memory: rows `rowb` bytes apart, tokens `tokenb`."""
    vectors = lanes // LANES

    @op(void, types.UniTuple(F32, rows * tokens * vectors), i64)
    def store(b: Any, f: Any, out: Any) -> None:
        for i, value in enumerate(unpack_tuple(b, f, rows * tokens * vectors)):
            r, t, v = i // (tokens * vectors), i // vectors % tokens, i % vectors
            store_f32.emit(b, b.add(out, number(r * rowb + t * tokenb + v * VB)), value)

    return store


def sum_chains(chains: int, distance: int) -> Any:
    """Lane i: the sum of the i-th row's `chains` sums, one after the other.

    Args of the operation: address of the first row's; the others follow `distance` apart.
    """

    @op(F32, i64)
    def sum_chains(b: Any, address: Any) -> Any:
        total = None
        for v in range(chains // LANES):
            places = [b.add(address, number(i * distance + v * VB)) for i in range(LANES)]
            for column in transposed(b, [load_f32.emit(b, place) for place in places]):
                total = column if total is None else b.fadd(total, column)
        return total

    return sum_chains
