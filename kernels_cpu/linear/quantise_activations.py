"""Activations to int8, in the order in which the products read them, for any number of tokens.

    q = rint(x * (127 / absmax)), scale = absmax / 127, absmax over blocks of inputs

rint goes to even on ties. Blocks below SMALLEST_ABSMAX become zeros; one that holds a NaN gets a
NaN scale, so that it shows in the product. Layouts: `linear/layout.py`. Work is split over threads
by pieces of a token, so that a single long token is shared too.

The truth: `reference_linear.quantise_activations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.code_orders import even_bytes, odd_bytes
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.composing import number
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I8,
    _I32,
    F32,
    I32,
    LANES,
    VB,
    _constant,
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
    store_u8,
)
from edgetok.kernels_cpu.simd.ops import dot_u7s8, mul, round_i32, zero_i32

SMALLEST_ABSMAX = np.float32(1e-36)  # below it 127 / absmax is not a float32


def _unit_of(block: int, part: bool) -> Any:
    """Quantise max(block, VB) inputs, whole blocks, to codes in natural order.

    Args of the operation: addresses of the inputs; how many of them there are (only used with
    `part`; zeros follow); addresses of the codes and, one a block, of the float32 scale, of int32
    -middle * sum of codes and -offset * sum of codes; the middle; the offset.
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
    def unit(b: Any, x: Any, valid: Any, codes: Any, scales: Any, *rest: Any) -> None:
        middles, starts, middle, offset = rest

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
        elif blocks == 4:  # a quarter of each
            quarters = []
            for v in largest:
                width = LANES
                while width > LANES // blocks:
                    width //= 2
                    low, high = list(range(width)), list(range(width, 2 * width))
                    v = larger(*(_shuffle(b, v, half) for half in (low, high)))
                quarters.append(v)
            while len(quarters) > 1:
                quarters = [
                    _shuffle(b, v, list(range(2 * v.type.count)), w)
                    for v, w in zip(quarters[::2], quarters[1::2], strict=True)
                ]
            largest = quarters
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
        for i in range(blocks):
            lane = ir.Constant(_I32, i * (LANES // blocks))
            _store(b, b.add(scales, number(4 * i)), b.extract_element(scale, lane))
            total = b.neg(b.extract_element(totals, lane))
            for sums, factor in ((middles, middle), (starts, offset)):
                _store(b, b.add(sums, number(4 * i)), b.mul(total, b.trunc(factor, _I32)))

    return unit


def _units_of(block: int) -> Any:
    whole, last = _unit_of(block, False), _unit_of(block, True)
    unit = max(block, VB)

    @inline
    def units(x, K, first, piece, codes, scales, middles, starts, middle, offset):  # type: ignore[no-untyped-def]
        for k in range(first, first + piece, unit):
            b = 4 * (k // block)
            s, m, o = scales + b, middles + b, starts + b
            if k + unit <= K:
                whole(x + 4 * k, unit, codes + k, s, m, o, middle, offset)
            else:
                last(x + 4 * k, K - k, codes + k, s, m, o, middle, offset)

    return units


_units_16, _units_32, _units_64, _units_128 = (_units_of(block) for block in (16, 32, 64, 128))


@inline
def _order(codes, first, piece, planes):  # type: ignore[no-untyped-def]
    """Codes first..first + piece, whole chunks in natural order, to planes, in place."""
    for chunk in range(codes + first, codes + first + piece, planes * VB):
        if planes == 2:
            a, b = load_u8(chunk), load_u8(chunk + VB)
            store_u8(chunk, even_bytes(a, b))
            store_u8(chunk + VB, odd_bytes(a, b))
        elif planes == 4:
            a, b = load_u8(chunk), load_u8(chunk + VB)
            c, d = load_u8(chunk + 2 * VB), load_u8(chunk + 3 * VB)
            even, even_high = even_bytes(a, b), even_bytes(c, d)
            odd, odd_high = odd_bytes(a, b), odd_bytes(c, d)
            store_u8(chunk, even_bytes(even, even_high))
            store_u8(chunk + VB, even_bytes(odd, odd_high))
            store_u8(chunk + 2 * VB, odd_bytes(even, even_high))
            store_u8(chunk + 3 * VB, odd_bytes(odd, odd_high))


@kernel
def quantise(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Int8 activations of all tokens, from float32 [T, x_stride]."""
    x = read_i64(instr + 8 * layout.QUANTISE_X)
    qx = read_i64(instr + 8 * layout.QUANTISE_QX)
    K = read_i64(instr + 8 * layout.QUANTISE_K)
    group_size = read_i64(instr + 8 * layout.QUANTISE_GROUP) & 0xFFFFFFFF
    block = read_i64(instr + 8 * layout.QUANTISE_GROUP) >> 32
    bits = read_i64(instr + 8 * layout.QUANTISE_BITS)
    x_bytes = 4 * read_i64(instr + 8 * layout.QUANTISE_X_STRIDE)
    tokens = read_i64(ctx + 8 * CTX_TOKENS) * read_i64(instr + 8 * layout.QUANTISE_ROWS)
    planes = 1 if bits == 8 else 2 if bits >= 4 else 4
    codes = layout.padded_codes(K, group_size, planes, VB)
    blocks_bytes = layout.blocks_bytes(codes, block)
    middle, offset = 1 << (bits - 1), layout.offset_of(bits)
    # Whole chunks and whole groups: both are powers of two.
    piece = planes * VB if planes * VB > group_size else group_size
    pieces = codes // piece
    total = tokens * pieces
    for i in range(tid * total // threads, (tid + 1) * total // threads):
        t, first = i // pieces, i % pieces * piece
        row = x + t * x_bytes
        token = qx + t * layout.token_bytes(codes, block)
        scales = token + codes
        middles = scales + blocks_bytes
        starts = middles + blocks_bytes
        if block == 16:
            _units_16(row, K, first, piece, token, scales, middles, starts, middle, offset)
        elif block == 32:
            _units_32(row, K, first, piece, token, scales, middles, starts, middle, offset)
        elif block == 64:
            _units_64(row, K, first, piece, token, scales, middles, starts, middle, offset)
        else:
            _units_128(row, K, first, piece, token, scales, middles, starts, middle, offset)
        _order(token, first, piece, planes)
