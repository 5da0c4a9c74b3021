"""The inner steps of tile products, each emitted as one operation; see `linear/row_steps.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types

from edgetok.kernels_cpu.linear.layout import PLANES
from edgetok.kernels_cpu.linear.tile_matrices import by_token, multiply_steps
from edgetok.kernels_cpu.linear.tile_shape import ROW_BYTES, STEPS, R
from edgetok.kernels_cpu.simd.byte_products import (
    absolute_bytes,
    in_order,
    signed_codes,
    with_signs,
)
from edgetok.kernels_cpu.simd.composing import at, number, pack_tuple, unpack_tuple
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I32,
    F32,
    I32,
    LANES,
    MATRICES,
    NAME,
    U8,
    VB,
    _constant,
    _load,
    _shuffle,
    _splat,
    i64,
    op,
    void,
)
from edgetok.kernels_cpu.simd.memory import (
    broadcast_i32,
    load_f32,
    load_u8,
    store_f32,
)
from edgetok.kernels_cpu.simd.ops import (
    dot_u7s8,
    dot_u8s8,
    fma,
    mul,
    multiply_pairs,
    to_f32,
    widen_pairs,
)


def _started(b: Any, tokens: int, starts: Any, xb: Any, signed: bool, by: int) -> list[Any]:
    """R * tokens vectors of int32: in all lanes what the token's block starts with, times 2^by.

    Where MATRICES two vectors of two tokens: [row, token] of rows 0 and 1, and of rows 2 and 3.
    """
    if signed:
        return [_constant(_I32, LANES, 0)] * (R * tokens)
    first = [_load(b, at(b, starts, t, xb), _I32) for t in range(tokens)]
    found = [_splat(b, b.shl(value, ir.Constant(_I32, by)), LANES) for value in first]
    if MATRICES:
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [_shuffle(b, x, [0, 4, 1, 5], y) for x, y in pairs for _ in range(2)]
    return found * R


def _multiplied(
    b: Any, bits: int, most: int, acc: list[Any], u: Any, x: Any, xb: Any, tokens: int,
    steps: int = STEPS, table: bool = False,
) -> list[Any]:  # fmt: skip
    """`acc` plus `steps` steps of products of unpacked codes, at most `most`, and activations."""
    planes = PLANES[bits]
    if MATRICES:
        return multiply_steps(b, planes, acc, u, x, xb, tokens, steps)
    # Where bytes are multiplied to pairs of int16 (AVX2), so many steps are added before they are
    # widened.
    room = (1 << 15) // (2 * most * 128)
    narrow, signed = NAME == "avx2" and room > 0, signed_codes(bits, table)
    dot = dot_u8s8 if bits == 8 or table else dot_u7s8
    acc, pairs = list(acc), [None] * (R * tokens)
    rows = [at(b, x, t, xb) for t in range(tokens)]
    # neon's `sdot` takes four inputs out of a vector of 16, where the block has all of them.
    elements = NAME == "neon" and 4 * planes <= steps
    quads: list[Any] = []
    for k in sorted(range(steps), key=lambda k: k % planes) if elements else range(steps):
        word, plane = divmod(k, planes)
        if elements and word % 4 == 0:
            places = [b.add(row, number(plane * VB + 4 * word)) for row in rows]
            quads = [b.bitcast(load_u8.emit(b, place), I32.ll) for place in places]
        weights = [load_u8.emit(b, b.add(u, number(k * ROW_BYTES + r * VB))) for r in range(R)]
        sizes = [absolute_bytes(b, w) for w in weights] if signed else weights
        for t in range(tokens):
            if elements:
                a = b.bitcast(_shuffle(b, quads[t], [word % 4] * LANES), U8.ll)
            else:
                a = broadcast_i32.emit(b, b.add(rows[t], number(plane * VB + 4 * word)))
            for r in range(R):
                i = r * tokens + t
                if signed:
                    products = multiply_pairs(b, sizes[r], with_signs(b, a, weights[r]))
                    acc[i] = b.add(acc[i], widen_pairs(b, products))
                elif not narrow:
                    acc[i] = dot.emit(b, acc[i], weights[r], a)
                else:
                    more = multiply_pairs(b, weights[r], a)
                    pairs[i] = more if pairs[i] is None else b.add(pairs[i], more)
                    if k % room == room - 1 or k == steps - 1:
                        acc[i], pairs[i] = b.add(acc[i], widen_pairs(b, pairs[i])), None
        if narrow:
            kept = acc if pairs[0] is None else pairs
            kept[:] = in_order(b, kept)
    return acc


def _folded_in(b: Any, f: Any, acc: list[Any], tokens: int, *places: Any, unit: float = 0) -> Any:
    """`_folded` for sums in a tuple, or in memory."""
    fold: Any = partial(_folded, unit=unit)
    if not _in_memory(tokens):
        sums = unpack_tuple(b, f, R * tokens)
        found = dict(fold(b, sums.__getitem__, acc, tokens, *places))
        return pack_tuple(b, [found[i] for i in range(R * tokens)])
    kept = _tile_places(b, tokens, f)
    for i, value in fold(b, lambda i: load_f32.emit(b, kept[i]), acc, tokens, *places):
        store_f32.emit(b, kept[i], value)
    return f


def _folded(
    b: Any, sum_of: Any, acc: list[Any], tokens: int, scales: Any, x_scales: Any, xb: Any,
    middles: Any = None, points: Any = None, unit: float = 0,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """Sums plus float(acc) * row's scale * token's scale, one after the other with its number.

    With `unit` points are offsets: (float(acc) * row's scale + offset * middle * unit) * token's.
    """
    acc = by_token(b, acc) if MATRICES else acc
    rows = [load_f32.emit(b, b.add(scales, number(r * VB))) for r in range(R)]
    for t in range(tokens):
        a = _splat(b, _load(b, at(b, x_scales, t, xb), _F32), LANES)
        if points is not None:
            middle = to_f32.emit(b, _splat(b, _load(b, at(b, middles, t, xb), _I32), LANES))
        for r in range(R):
            i = r * tokens + t
            value = to_f32.emit(b, acc[i])
            if unit:
                offset = load_f32.emit(b, b.add(points, number(r * VB)))
                total = mul.emit(b, middle, _constant(_F32, LANES, unit))
                value = fma.emit(b, offset, total, mul.emit(b, value, rows[r]))
                yield i, fma.emit(b, value, a, sum_of(i))
                continue
            if points is not None:  # exact: all three are integers below 2^24
                point = load_f32.emit(b, b.add(points, number(r * VB)))
                value = fma.emit(b, point, middle, value)
            # A product of the scales alone would be ready early and be computed before dot
            # products that others wait for: a quarter slower on Zen 5.
            yield i, fma.emit(b, mul.emit(b, value, rows[r]), a, sum_of(i))


def _tile_start(bits: int, tokens: int, offsets: bool, table: bool) -> Any:
    signed, by = offsets or signed_codes(bits, table), 8 - bits if table else 0

    @op(types.UniTuple(I32, R * tokens), i64, i64)
    def tile_start(b: Any, starts: Any, xb: Any) -> Any:
        return pack_tuple(b, _started(b, tokens, starts, xb, signed, by))

    return tile_start


def _tile_dot(bits: int, tokens: int, most: int, steps: int, table: bool) -> Any:
    tile_type = types.UniTuple(I32, R * tokens)

    @op(tile_type, tile_type, i64, i64, i64)
    def tile_dot(b: Any, tile: Any, u: Any, x: Any, xb: Any) -> Any:
        acc = unpack_tuple(b, tile, R * tokens)
        return pack_tuple(b, _multiplied(b, bits, most, acc, u, x, xb, tokens, steps, table))

    return tile_dot


def _in_memory(tokens: int) -> bool:
    """Whether the registers have no room for the float sums beside those of a block."""
    return NAME == "avx2" and R * tokens > 6


def _float_sums(tokens: int) -> Any:
    """Type of a tile's float sums: a tuple of vectors, or the address of those in memory."""
    return i64 if _in_memory(tokens) else types.UniTuple(F32, R * tokens)


def _tile_fold(tokens: int, points: bool, unit: float) -> Any:
    f_type, i_type = _float_sums(tokens), types.UniTuple(I32, R * tokens)

    @op(f_type, f_type, i_type, *[i64] * (5 if points else 3))
    def tile_fold(b: Any, f: Any, tile: Any, *places: Any) -> Any:
        acc = unpack_tuple(b, tile, R * tokens)
        return _folded_in(b, f, acc, tokens, *places, unit=unit)

    return tile_fold


def _tile_block(
    bits: int, tokens: int, most: int, points: bool, steps: int, unit: float, table: bool
) -> Any:
    """`start`, `dot` and `fold` of a block of 4 * steps inputs: no sums wait in memory between."""
    f_type = _float_sums(tokens)
    signed, by = bool(unit) or signed_codes(bits, table), 8 - bits if table else 0

    @op(f_type, f_type, *[i64] * (8 if points else 6))
    def tile_block(b: Any, f: Any, starts: Any, u: Any, x: Any, *places: Any) -> Any:
        xb = places[2]
        acc = _started(b, tokens, starts, xb, signed, by)
        acc = _multiplied(b, bits, most, acc, u, x, xb, tokens, steps, table)
        return _folded_in(b, f, acc, tokens, *places, unit=unit)

    return tile_block


def tile_fma(tokens: int, steps: int, distance: int) -> Any:
    """Add `steps` inputs' products of R vectors of rows and `tokens` tokens to their sums.

    Args of the operation: sums; addresses of the first input's weights, the others ROW_BYTES apart,
    and of the first token's first input, the others `distance` apart; bytes to the next token.
    """
    tile_type = types.UniTuple(F32, R * tokens)

    @op(tile_type, tile_type, i64, i64, i64)
    def tile_fma(b: Any, f: Any, w: Any, x: Any, xb: Any) -> Any:
        sums = unpack_tuple(b, f, R * tokens)
        rows = [at(b, x, t, xb) for t in range(tokens)]
        for k in range(steps):
            places = [b.add(w, number(k * ROW_BYTES + r * VB)) for r in range(R)]
            weights = [load_f32.emit(b, place) for place in places]
            for t in range(tokens):
                a = _splat(b, _load(b, b.add(rows[t], number(k * distance)), _F32), LANES)
                for r in range(R):
                    i = r * tokens + t
                    sums[i] = fma.emit(b, weights[r], a, sums[i])
        return pack_tuple(b, sums)

    return tile_fma


def tile_zero(tokens: int) -> Any:
    """Sums of nothing."""

    @op(types.UniTuple(F32, R * tokens))
    def tile_zero(b: Any) -> Any:
        return pack_tuple(b, [_constant(_F32, LANES, 0.0)] * (R * tokens))

    return tile_zero


def _tile_places(b: Any, tokens: int, out: Any) -> list[Any]:
    return [b.add(out, number(t * ROW_BYTES + r * VB)) for r in range(R) for t in range(tokens)]


def tile_store(tokens: int) -> Any:
    """Sums to memory: for each token the rows in order."""

    @op(void, types.UniTuple(F32, R * tokens), i64)
    def tile_store(b: Any, f: Any, out: Any) -> None:
        for i, place in enumerate(_tile_places(b, tokens, out)):
            store_f32.emit(b, place, b.extract_value(f, i))

    return tile_store


def tile_add_to(tokens: int) -> Any:
    """Add sums to those in memory."""

    @op(void, types.UniTuple(F32, R * tokens), i64)
    def tile_add_to(b: Any, f: Any, out: Any) -> None:
        for i, place in enumerate(_tile_places(b, tokens, out)):
            total = b.fadd(load_f32.emit(b, place), b.extract_value(f, i))
            store_f32.emit(b, place, total)

    return tile_add_to


def kept_zero(tokens: int) -> Any:
    """Sums of nothing; where they are kept in memory, at the address that is the argument."""
    f_type = _float_sums(tokens)

    @op(f_type, i64)
    def zero(b: Any, keep: Any) -> Any:
        nothing = [_constant(_F32, LANES, 0.0)] * (R * tokens)
        if not _in_memory(tokens):
            return pack_tuple(b, nothing)
        for place, value in zip(_tile_places(b, tokens, keep), nothing, strict=True):
            store_f32.emit(b, place, value)
        return keep

    return zero


def kept_load(tokens: int) -> Any:
    """Sums from memory; where they are kept in memory, at the address that is the 2nd argument."""
    f_type = _float_sums(tokens)

    @op(f_type, i64, i64)
    def load(b: Any, sums: Any, keep: Any) -> Any:
        values = [load_f32.emit(b, place) for place in _tile_places(b, tokens, sums)]
        if not _in_memory(tokens):
            return pack_tuple(b, values)
        for place, value in zip(_tile_places(b, tokens, keep), values, strict=True):
            store_f32.emit(b, place, value)
        return keep

    return load


def kept_store(tokens: int) -> Any:
    """Sums to memory: for each token the rows in order."""

    @op(void, _float_sums(tokens), i64)
    def store(b: Any, f: Any, out: Any) -> None:
        if _in_memory(tokens):
            values = [load_f32.emit(b, place) for place in _tile_places(b, tokens, f)]
        else:
            values = unpack_tuple(b, f, R * tokens)
        for place, value in zip(_tile_places(b, tokens, out), values, strict=True):
            store_f32.emit(b, place, value)

    return store


@dataclass(frozen=True, slots=True)
class IntegerTile:
    """Operations on R vectors of rows by `tokens` tokens of int8, for weights of one width.

    Attributes:
        start: int32 of each token's block, in all lanes, from their address and the distance
            between tokens.
        dot: adds some steps of products of unpacked codes and activations.
        fold: f + float(tile) * row's scale * token's scale; with `points` after adding (zero -
            middle) / middle * the token's middle sum, or with offsets their products with the
            token's sum.
        block: all three for a block of as many inputs as `dot` multiplies.
        zero, store, load: float sums; in memory for each token the rows in order.
    """

    start: Any
    dot: Any
    fold: Any
    block: Any
    zero: Any
    store: Any
    load: Any


def integer_tile(
    bits: int,
    tokens: int,
    shifted: bool,
    points: bool,
    steps: int = STEPS,
    offsets: bool = False,
    table: bool = False,
) -> IntegerTile:
    """Operations for a register tile that is `tokens` wide.

    Args:
        bits: of the weights.
        tokens: side by side.
        shifted: codes have had offset - zero point added.
        points: zero points are subtracted from sums.
        steps: of four inputs each, in one operation.
        offsets: points are offsets.
        table: unpacked codes are levels of a table; `start` is given middle sums of `bits`.
    """
    unit = -1.0 / (1 << (bits - 1)) if offsets else 0.0
    most = 255 if bits == 8 or table else (2 << bits) - 1 if shifted else (1 << bits) - 1
    return IntegerTile(
        start=_tile_start(bits, tokens, offsets, table),
        dot=_tile_dot(bits, tokens, most, steps, table),
        fold=_tile_fold(tokens, points, unit),
        block=_tile_block(bits, tokens, most, points, steps, unit, table),
        zero=kept_zero(tokens),
        store=kept_store(tokens),
        load=kept_load(tokens),
    )
