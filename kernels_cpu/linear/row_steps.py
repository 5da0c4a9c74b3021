"""The inner steps of products, each emitted as one operation.

Numba takes milliseconds to type and lower every small operation, LLVM microseconds to compile it.
So what the innermost loops do is composed here, of the emitters of `simd/ops.py`, for a rectangle
of rows and tokens, and the loops around it stay ordinary Python.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.code_orders import (
    HIGH_BIT,
    REPEAT_F16,
    REPEAT_F16_FIRST,
    load_f16_first,
    load_high,
    load_high_first,
    load_words,
)
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I64,
    F32,
    LANES,
    VB,
    _constant,
    _shuffle,
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
    or_u8,
    to_f32,
    zero_i32,
)

# How far ahead weights are asked for. Tuned in November 2026 on a Zen 5 core that reads 30 to 36
# GB/s (4 bits, groups of 32, rows of 2048 and 8192): 4096 loses up to 15 %, 16384 up to 8 %.
AHEAD_BYTES = 8192


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


def fields(b: Any, bits: int, w: Any, high: Any) -> list[Any]:
    """The codes of a vector of packed bytes, plane by plane; `high` (3 bits) from `load_high`."""
    if bits == 8:
        return [w]
    if bits == 4:
        return [field.emit(b, w) for field in FIELD[4]]
    low = [field.emit(b, w) for field in FIELD[2]]
    if bits == 2:
        return low
    return [or_u8.emit(b, q, bit.emit(b, high)) for q, bit in zip(low, HIGH_BIT, strict=True)]


def row_step(bits: int, count: int, rows: int, tokens: int, part: bool) -> Any:
    """Add a chunk's products of rows x tokens to their sums by lane.

    Args of the operation:
        f: UniTuple of rows * tokens sums, row by row.
        w, h, s: addresses of the first row's codes, high bits and scales of this chunk.
        x: address of the first token's chunk.
        wb, hb, sb: bytes from one row to the next.
        xb, last: bytes from one token to the next; tokens after number `last` repeat it. With one
            token: where to prefetch, `rows` vectors of codes and a line of scales.
        nbytes, valid: only with `part`: bytes of codes and scales that are left of the row.

    Args:
        bits: of the weights.
        count: scales that a chunk needs.
        rows: of the rectangle.
        tokens: of the rectangle.
        part: for the last chunk of a row, where it is not a whole one.
    """
    planes = layout.PLANES[bits]
    dot = dot_u8s8 if bits == 8 else dot_u7s8

    def emit(b: Any, f: Any, w: Any, h: Any, s: Any, x: Any, *rest: Any) -> Any:
        wb, hb, sb, xb, last, *ends = rest
        sums = unpack_tuple(b, f, rows * tokens)
        for r in range(rows):
            wr, hr, sr = at(b, w, r, wb), at(b, h, r, hb), at(b, s, r, sb)
            if part:
                nbytes, valid = ends
                packed, high = load_words.emit(b, wr, nbytes), None
                if bits == 3:
                    high = load_high_first.emit(b, hr, b.lshr(nbytes, number(1)))
                scales = REPEAT_F16_FIRST[count].emit(b, sr, valid)
            else:
                packed, high = load_u8.emit(b, wr), None
                if bits == 3:
                    high = load_high.emit(b, hr)
                scales = REPEAT_F16[count].emit(b, sr)
                if tokens == 1:
                    prefetch.emit(b, b.add(xb, number(r * VB)))
                    if r == 0:
                        prefetch.emit(b, last)
                    if bits == 3:
                        prefetch.emit(b, b.add(hr, number(AHEAD_BYTES // 2)))
            codes = fields(b, bits, packed, high)
            for t in range(tokens):
                xt = clamped(b, x, t, last, xb)  # t = 0 does not look at `last`
                acc = load_i32.emit(b, b.add(xt, number((planes + 1) * VB)))
                # Two chains of dot products where one would be long: they wait for each other.
                chains = [acc, zero_i32.emit(b)] if planes == 4 else [acc]
                for plane, code in enumerate(codes):
                    values = load_u8.emit(b, b.add(xt, number(plane * VB)))
                    chain = plane % len(chains)
                    chains[chain] = dot.emit(b, chains[chain], code, values)
                acc = chains[0] if len(chains) == 1 else b.add(*chains)
                a = load_f32.emit(b, b.add(xt, number(planes * VB)))
                i = r * tokens + t
                sums[i] = fma.emit(b, mul.emit(b, to_f32.emit(b, acc), a), scales, sums[i])
        return pack_tuple(b, sums)

    tile = types.UniTuple(F32, rows * tokens)
    return op(tile, tile, *[i64] * (11 if part else 9))(emit)


def zero_tokens(rows: int, tokens: int) -> Any:
    """rows * tokens sums of nothing."""

    @op(types.UniTuple(F32, rows * tokens))
    def zero(b: Any) -> Any:
        return pack_tuple(b, [_constant(_F32, LANES, 0.0)] * (rows * tokens))

    return zero


def store_tokens(rows: int, tokens: int) -> Any:
    """Store rows * tokens sums: tokens LANES vectors apart, the rows of one side by side."""

    @op(void, types.UniTuple(F32, rows * tokens), i64)
    def store(b: Any, f: Any, out: Any) -> None:
        for r in range(rows):
            for t in range(tokens):
                value = b.extract_value(f, r * tokens + t)
                store_f32.emit(b, b.add(out, number((t * LANES + r) * VB)), value)

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


@op(F32, i64)
def sum_vectors(b: Any, address: Any) -> Any:
    """Lane i: the sum of the lanes of the i-th of LANES vectors in memory, as a tree."""
    rows = [load_f32.emit(b, b.add(address, number(i * VB))) for i in range(LANES)]
    columns = transposed(b, rows)
    while len(columns) > 1:
        half = len(columns) // 2
        columns = [b.fadd(columns[i], columns[i + half]) for i in range(half)]
    return columns[0]


def float_row_step(bits: int, rows: int, tokens: int, part: bool) -> Any:
    """Add LANES inputs' products of rows x tokens to their sums by lane; 16 or 32-bit weights.

    Args of the operation: f as in `row_step`; w, x addresses of the first row and token; wb, xb
    bytes to the next ones; last as there; count, only with `part`: how many inputs are left.
    """

    def emit(b: Any, f: Any, w: Any, x: Any, wb: Any, xb: Any, last: Any, *ends: Any) -> Any:
        sums = unpack_tuple(b, f, rows * tokens)
        full, first = (load_f16, load_f16_first) if bits == 16 else (load_f32, load_f32_first)
        inputs = []
        for t in range(tokens):
            xt = clamped(b, x, t, last, xb)
            inputs.append(load_f32_first.emit(b, xt, *ends) if part else load_f32.emit(b, xt))
        for r in range(rows):
            wr = at(b, w, r, wb)
            weights = first.emit(b, wr, *ends) if part else full.emit(b, wr)
            if tokens == 1 and not part:
                prefetch.emit(b, b.add(wr, number(AHEAD_BYTES)))
            for t in range(tokens):
                sums[r * tokens + t] = fma.emit(b, weights, inputs[t], sums[r * tokens + t])
        return pack_tuple(b, sums)

    tile = types.UniTuple(F32, rows * tokens)
    return op(tile, tile, *[i64] * (6 if part else 5))(emit)
