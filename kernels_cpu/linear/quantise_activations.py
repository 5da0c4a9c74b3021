"""Activations to int8, in the order in which the products read them.

    q = rint(x * (127 / absmax)), scale = absmax / 127, absmax over blocks of inputs

rint goes to even on ties. Blocks below SMALLEST_ABSMAX become zeros; one that holds a NaN gets a
NaN scale, so that it shows in the product. Layouts: `linear/layout.py`. Work is split over threads
by pieces of a token, so that a single long token is shared too.

The truth: `reference.quantise_activations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.code_orders import BY_PLANE, even_bytes, negate_i32, odd_bytes
from edgetok.kernels_cpu.linear.row_steps import number
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I8,
    _I32,
    F32,
    I32,
    LANES,
    VB,
    _constant,
    _load,
    _shuffle,
    _store,
    i64,
    inline,
    op,
    void,
)
from edgetok.kernels_cpu.simd.memory import (
    load_f32,
    load_f32_first,
    load_u8,
    read_i64,
    repeat_f32,
    store_f32,
    store_i32,
    store_u8,
)
from edgetok.kernels_cpu.simd.ops import (
    dot_u7s8,
    dot_u8s8,
    mul,
    round_i32,
    splat_u8,
    to_f32,
    zero_i32,
)

SMALLEST_ABSMAX = np.float32(1e-36)  # below it 127 / absmax is not a float32
_DECODE_TOKENS = layout.DECODE_TOKENS

_repeat_1, _repeat_2, _repeat_4 = repeat_f32[1], repeat_f32[2], repeat_f32[4]
_repeat_8 = repeat_f32.get(8, _repeat_4)  # no chunk has so many where a vector has fewer lanes

_by_plane_2, _by_plane_4 = BY_PLANE[2], BY_PLANE[4]


def _unit_of(block: int, part: bool) -> Any:
    """Quantise max(block, VB) inputs, whole blocks, to codes in natural order.

    Args of the operation: addresses of the inputs; how many of them there are (only used with
    `part`; zeros follow); addresses of the codes; of int32 -offset * sum of codes, float32 scale
    and scale * sum of codes, one a block, stored in this order; the offset; whether the last is to
    be added to what is there.
    """
    blocks = max(VB // block, 1)
    each = max(block // LANES, 1)  # vectors of inputs in a block

    def fold(b: Any, v: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """Every lane: all lanes of its block together."""
        step = LANES // blocks // 2
        while step:
            v = combine(v, _shuffle(b, v, [lane ^ step for lane in range(LANES)]))
            step //= 2
        return v

    @op(void, *[i64] * 8)
    def unit(
        b: Any, x: Any, valid: Any, codes: Any, starts: Any, scales: Any, sums: Any, *rest: Any
    ) -> None:
        offset, more = rest

        def load(i: int) -> Any:
            place = b.add(x, number(i * VB))
            if not part:
                return load_f32.emit(b, place)
            return load_f32_first.emit(b, place, b.sub(valid, number(i * LANES)))

        def larger(v: Any, w: Any) -> Any:
            return b.select(b.icmp_signed(">", v, w), v, w)

        values = [load(i) for i in range(blocks * each)]
        largest = []
        for first in range(0, len(values), each):
            # Bits of |v| compare as integers like the floats do, and NaN is above all.
            bits = [
                b.and_(b.bitcast(v, I32.ll), _constant(_I32, LANES, 0x7FFFFFFF))
                for v in values[first : first + each]
            ]
            while len(bits) > 1:
                bits = [larger(*bits[i : i + 2]) for i in range(0, len(bits), 2)]
            largest += bits
        if blocks == 2:  # halves of both, side by side
            half = LANES // 2
            low, high = (
                [first + lane for first in (0, LANES) for lane in range(start, start + half)]
                for start in (0, half)
            )
            largest = [larger(*(_shuffle(b, largest[0], i, largest[1]) for i in (low, high)))]
        absmax = b.bitcast(fold(b, largest[0], larger), F32.ll)
        top, zero = _constant(_F32, LANES, 127.0), _constant(_F32, LANES, 0.0)
        small = b.fcmp_ordered("<", absmax, _constant(_F32, LANES, float(SMALLEST_ABSMAX)))
        scale = b.select(small, zero, b.fdiv(absmax, top))
        inverse = b.select(small, zero, b.fdiv(top, absmax))
        totals = zero_i32.emit(b)
        for first in range(0, len(values), 4):
            parts = []
            for i in range(first, first + 4):
                factor = _shuffle(b, inverse, [i // each * (LANES // blocks)] * LANES)
                code = round_i32.emit(b, mul.emit(b, values[i], factor))
                parts.append(b.trunc(code, ir.VectorType(_I8, LANES)))
            while len(parts) > 1:
                parts = [
                    _shuffle(b, v, list(range(2 * v.type.count)), w)
                    for v, w in zip(parts[::2], parts[1::2], strict=True)
                ]
            store_u8.emit(b, b.add(codes, number(first * LANES)), parts[0])
            totals = dot_u7s8.emit(b, totals, _constant(_I8, VB, 1), parts[0])
        totals = fold(b, totals, b.add)
        product = mul.emit(b, scale, to_f32.emit(b, totals))
        for i in range(blocks):
            lane = ir.Constant(_I32, i * (LANES // blocks))
            total = b.mul(b.extract_element(totals, lane), b.trunc(offset, _I32))
            _store(b, b.add(starts, number(4 * i)), b.neg(total))
            _store(b, b.add(scales, number(4 * i)), b.extract_element(scale, lane))
            place = b.add(sums, number(4 * i))
            value = b.extract_element(product, lane)
            before = _load(b, place, _F32)
            add = b.icmp_signed("!=", more, number(0))
            _store(b, place, b.select(add, b.fadd(before, value), value))

    return unit


def _units_of(block: int) -> Any:
    whole, last = _unit_of(block, False), _unit_of(block, True)
    unit = max(block, VB)

    @inline
    def units(x, K, first, piece, group_size, codes, scales, starts, groups, offset):  # type: ignore[no-untyped-def]
        for k in range(first, first + piece, unit):
            b = 4 * (k // block)
            g = groups + 4 * (k // group_size)
            more = k % group_size
            if k + unit <= K:
                whole(x + 4 * k, unit, codes + k, starts + b, scales + b, g, offset, more)
            else:
                last(x + 4 * k, K - k, codes + k, starts + b, scales + b, g, offset, more)

    return units


_units_32, _units_64, _units_128 = (_units_of(block) for block in (32, 64, 128))


@inline
def _piece(x, K, first, piece, group_size, block, codes, scales, starts, groups, offset):  # type: ignore[no-untyped-def]
    """Quantise codes first..first + piece into the arrays of one token."""
    if block == 32:
        _units_32(x, K, first, piece, group_size, codes, scales, starts, groups, offset)
    elif block == 64:
        _units_64(x, K, first, piece, group_size, codes, scales, starts, groups, offset)
    else:
        _units_128(x, K, first, piece, group_size, codes, scales, starts, groups, offset)


@inline
def _lane_scales(address, count):  # type: ignore[no-untyped-def]
    """`count` consecutive scales over the lanes of a vector."""
    if count == 8:
        return _repeat_8(address)
    if count == 4:
        return _repeat_4(address)
    if count == 2:
        return _repeat_2(address)
    return _repeat_1(address)


@inline
def _order_decode(chunks, codes, scales, first, piece, planes, block, middle):  # type: ignore[no-untyped-def]
    """Chunks of the decode layout from natural codes."""
    width = planes * VB
    for c in range(first // width, (first + piece) // width):
        k = c * width
        natural = codes + k
        chunk = chunks + k // planes * (planes + 2)
        if planes == 1:
            store_u8(chunk, load_u8(natural))
        else:
            a, b = load_u8(natural), load_u8(natural + VB)
            if planes == 2:
                store_u8(chunk, even_bytes(a, b))
                store_u8(chunk + VB, odd_bytes(a, b))
            else:
                c, d = load_u8(natural + 2 * VB), load_u8(natural + 3 * VB)
                even, even_high = even_bytes(a, b), even_bytes(c, d)
                odd, odd_high = odd_bytes(a, b), odd_bytes(c, d)
                store_u8(chunk, even_bytes(even, even_high))
                store_u8(chunk + VB, even_bytes(odd, odd_high))
                store_u8(chunk + 2 * VB, odd_bytes(even, even_high))
                store_u8(chunk + 3 * VB, odd_bytes(odd, odd_high))
        sums = zero_i32()
        for plane in range(planes):
            sums = dot_u8s8(sums, splat_u8(middle), load_u8(chunk + plane * VB))
        lanes = chunk + planes * VB
        store_f32(lanes, _lane_scales(scales + 4 * (k // block), width // block))
        store_i32(lanes + VB, negate_i32(sums))


@inline
def _order_tile(codes, first, piece, planes):  # type: ignore[no-untyped-def]
    """The tile layout's order, in place."""
    for k in range(codes + first, codes + first + piece, VB):
        if planes == 2:
            store_u8(k, _by_plane_2(load_u8(k)))
        elif planes == 4:
            store_u8(k, _by_plane_4(load_u8(k)))


@kernel
def quantise(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Int8 activations of all tokens, or of the last one, from float32 [T, x_stride]."""
    x = read_i64(instr + 8 * layout.QUANTISE_X)
    qx = read_i64(instr + 8 * layout.QUANTISE_QX)
    K = read_i64(instr + 8 * layout.QUANTISE_K)
    group_size = read_i64(instr + 8 * layout.QUANTISE_GROUP) & 0xFFFFFFFF
    block = read_i64(instr + 8 * layout.QUANTISE_GROUP) >> 32
    bits = read_i64(instr + 8 * layout.QUANTISE_BITS)
    x_bytes = 4 * read_i64(instr + 8 * layout.QUANTISE_X_STRIDE)
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    if read_i64(instr + 8 * layout.QUANTISE_LAST) != 0:
        x += (tokens - 1) * x_bytes
        tokens = 1
    planes = 1 if bits == 8 else 2 if bits == 4 else 4
    codes = layout.padded_codes(K, group_size, planes, VB)
    # Whole chunks and whole groups: both are powers of two.
    piece = planes * VB if planes * VB > group_size else group_size
    pieces = codes // piece
    total = tokens * pieces
    for i in range(tid * total // threads, (tid + 1) * total // threads):
        t, first = i // pieces, i % pieces * piece
        row = x + t * x_bytes
        if tokens <= _DECODE_TOKENS:
            token = qx + t * layout.decode_token_bytes(codes, block, group_size, planes)
            scales = token + layout.decode_scales_offset(codes, planes)
            groups = scales + layout.blocks_bytes(codes, block)
            natural = groups + layout.blocks_bytes(codes, group_size)
            _piece(row, K, first, piece, group_size, block, natural, scales, scales, groups, 0)
            middle = 1 << (bits - 1)
            _order_decode(token, natural, scales, first, piece, planes, block, middle)
        else:
            token = qx + t * layout.tile_token_bytes(codes, block, group_size)
            scales = token + codes
            starts = scales + layout.blocks_bytes(codes, block)
            groups = starts + layout.blocks_bytes(codes, block)
            offset = 128 if bits == 8 else 1 << bits
            _piece(row, K, first, piece, group_size, block, token, scales, starts, groups, offset)
            _order_tile(token, first, piece, planes)
