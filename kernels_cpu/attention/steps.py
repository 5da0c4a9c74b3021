"""The innermost steps of attention, each emitted as one operation (see `linear/row_steps.py`).

Scores: ROWS query rows times COLUMNS vectors of slots (a lane is a slot), a few dims at a time.
Values: ROWS rows of weights times two vectors of dims, one slot at a time, or four where values are
integers. Integer weights have WEIGHT_BITS bits, in two halves of a dot product each or, on AVX2, in
16 bits; the sums are the same.

Layouts: `attention/launch.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from edgetok.kernels_cpu.attention.launch import BLOCK, KEY_TILE
from edgetok.kernels_cpu.simd.byte_products import absolute_bytes, with_signs
from edgetok.kernels_cpu.simd.composing import at, number, pack_tuple, unpack_tuple
from edgetok.kernels_cpu.simd.emit import (
    _I8,
    _I16,
    _I32,
    F32,
    I32,
    LANES,
    NAME,
    VB,
    _call,
    _constant,
    i64,
    op,
    void,
)
from edgetok.kernels_cpu.simd.memory import (
    broadcast_i32,
    load_f16,
    load_f32,
    load_i32,
    load_u8,
    prefetch,
    read_f32,
    read_i32,
    store_f32,
)
from edgetok.kernels_cpu.simd.ops import (
    FIELD,
    add,
    dot_u7s8,
    dot_u8s8,
    fma,
    mul,
    multiply_pairs,
    splat_f32,
    splat_i32,
    to_f32,
    wide_pairs,
    widen_pairs,
)

_PAIRS = ir.VectorType(_I16, 2 * LANES)
ROWS = 4
LINE_BYTES = 64
COLUMNS = 4 if LANES == 16 else 2  # 16 sums of 64 bytes fit the registers, 8 of 32
HALF_BITS = 7  # two halves below 128: a product of four cannot saturate, on any instruction set
WEIGHT_BITS = 2 * HALF_BITS
# AVX2 has no dot product of bytes: three instructions for a half of 32 weights, and so six. Weights
# and values of 16 bits take four, and leave half as many sums, which then fit the registers.
WIDE = NAME == "avx2"
# A row of a block's weights has 2 BLOCK bytes: bytes from one slot's to the next one's in it.
WEIGHT_STRIDE = 2 if WIDE else 1

# Codes of 8-bit keys are stored + 128. Where the dot product takes them as they are, 128 * sum of
# the query has to be taken off afterwards.
KEY_OFFSET = 0 if NAME in ("avx2", "neon") else 128
KEY_OFFSET_6 = 32  # codes of 6-bit keys are stored + 32


def is_integer(bits: int) -> bool:
    """Whether codes are multiplied, not floats."""
    return bits <= 8


def dims_at_once(bits: int) -> int:
    """Dims that `score_step` takes."""
    return {4: 8, 6: 16, 8: 4}.get(bits, 1)


def slots_at_once(bits: int) -> int:
    """Slots that `value_step` takes."""
    return 4 if is_integer(bits) else 1


def _dot_key(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """Acc + (u - 128 + KEY_OFFSET) s, four bytes at a time."""
    if NAME == "avx2":  # |u| times s with the sign of u: no pair of products can saturate
        centred = b.xor(u, _constant(_I8, VB, 0x80))
        pairs = multiply_pairs(b, absolute_bytes(b, centred), with_signs(b, s, centred))
        return b.add(acc, widen_pairs(b, pairs))
    if NAME == "neon":
        centred = b.xor(u, _constant(_I8, VB, 0x80))
        return _call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", I32.ll, acc, centred, s)
    return dot_u8s8.emit(b, acc, u, s)


@op(F32, I32)
def low_bf16(b: Any, v: Any) -> Any:
    """The low 16 bits of each lane as bfloat16."""
    return b.bitcast(b.shl(v, _constant(_I32, LANES, 16)), F32.ll)


@op(F32, I32)
def high_bf16(b: Any, v: Any) -> Any:
    """The high 16 bits of each lane as bfloat16."""
    return b.bitcast(b.and_(v, _constant(_I32, LANES, 0xFFFF0000)), F32.ll)


def _load_float(bits: int) -> Any:
    return load_f16 if bits == 16 else load_f32


def _sum_type(bits: int) -> Any:
    return I32 if is_integer(bits) else F32


def zeros(bits: int, count: int) -> Any:
    """`count` sums of nothing."""
    kind = _sum_type(bits)

    @op(types.UniTuple(kind, count))
    def zero(b: Any) -> Any:
        return pack_tuple(b, [ir.Constant(kind.ll, None)] * count)

    return zero


# Scores


def _add_products_6(b: Any, sums: list[Any], k: Any, kb: Any, q: Any, qb: Any) -> None:
    """`score_step` of 6-bit keys: their codes are put together once for all rows."""
    words = ir.VectorType(_I32, LANES)
    lines = [
        [load_u8.emit(b, b.add(at(b, k, c, kb), number(4 * KEY_TILE * i))) for i in range(3)]
        for c in range(COLUMNS)
    ]
    for part in range(4):
        codes = []
        for line in lines:
            high = b.bitcast(FIELD[4][part % 2].emit(b, line[part // 2]), words)
            high = b.bitcast(b.shl(high, _constant(_I32, LANES, 2)), line[2].type)
            codes.append(b.or_(high, FIELD[2][part].emit(b, line[2])))
        for r in range(ROWS):
            x = broadcast_i32.emit(b, b.add(at(b, q, r, qb), number(4 * part)))
            for c, code in enumerate(codes):
                i = r * COLUMNS + c
                sums[i] = dot_u7s8.emit(b, sums[i], code, x)


def score_step(bits: int) -> Any:
    """Add the products of `dims_at_once` dims to ROWS x COLUMNS sums, row by row.

    Args of the operation: the sums; k, kb: first column's keys of these dims, bytes to the next
    column's; q, qb: first row's query, likewise.
    """
    tile = types.UniTuple(_sum_type(bits), ROWS * COLUMNS)

    def emit(b: Any, f: Any, k: Any, kb: Any, q: Any, qb: Any) -> Any:
        sums = unpack_tuple(b, f, ROWS * COLUMNS)
        if bits == 6:
            _add_products_6(b, sums, k, kb, q, qb)
            return pack_tuple(b, sums)
        load = load_u8 if is_integer(bits) else _load_float(bits)
        keys = [load.emit(b, at(b, k, c, kb)) for c in range(COLUMNS)]
        for r in range(ROWS):
            row = at(b, q, r, qb)
            for c, key in enumerate(keys):
                i = r * COLUMNS + c
                if bits == 8:
                    sums[i] = _dot_key(b, sums[i], key, broadcast_i32.emit(b, row))
                elif bits == 4:
                    for part, field in enumerate(FIELD[4]):
                        x = broadcast_i32.emit(b, b.add(row, number(4 * part)))
                        sums[i] = dot_u7s8.emit(b, sums[i], field.emit(b, key), x)
                else:
                    x = splat_f32.emit(b, read_f32.emit(b, row))
                    sums[i] = fma.emit(b, key, x, sums[i])
        return pack_tuple(b, sums)

    return op(tile, tile, *[i64] * 4)(emit)


@op(void, i64)
def prefetch_lines(b: Any, address: Any) -> None:
    """Ask for COLUMNS cache lines."""
    for c in range(COLUMNS):
        prefetch.emit(b, b.add(address, number(LINE_BYTES * c)))


def score_store(bits: int) -> Any:
    """Store scores of ROWS x COLUMNS sums.

    Args of the operation: the sums; out, ob: first row's scores, bytes to the next one's; factor,
    offset: addresses of a float32 and an int32 for each row; scales: address of the slots'.
    """
    tile = types.UniTuple(_sum_type(bits), ROWS * COLUMNS)

    def emit(b: Any, f: Any, out: Any, ob: Any, factor: Any, offset: Any, scales: Any) -> None:
        columns = [b.add(scales, number(c * VB)) for c in range(COLUMNS)]
        if bits in (6, 8):
            wide = [load_f32.emit(b, column) for column in columns]
        elif bits == 4:
            words = [load_i32.emit(b, column) for column in columns]
        for r in range(ROWS):
            to = at(b, out, r, ob)
            if is_integer(bits):
                times = splat_f32.emit(b, read_f32.emit(b, b.add(factor, number(4 * r))))
                more = splat_i32.emit(b, read_i32.emit(b, b.add(offset, number(4 * r))))
            for c in range(COLUMNS):
                value = b.extract_value(f, r * COLUMNS + c)
                if bits in (6, 8):
                    value = mul.emit(b, to_f32.emit(b, b.add(value, more)), times)
                    value = mul.emit(b, value, wide[c])
                elif bits == 4:  # q (scale code + base)
                    base = mul.emit(b, to_f32.emit(b, more), high_bf16.emit(b, words[c]))
                    value = fma.emit(b, to_f32.emit(b, value), low_bf16.emit(b, words[c]), base)
                    value = mul.emit(b, value, times)
                store_f32.emit(b, b.add(to, number(c * VB)), value)

    return op(void, tile, *[i64] * 5)(emit)


# Values


def value_sums(bits: int) -> int:
    """Sums of ROWS rows and two vectors of dims."""
    return ROWS * 2 * (2 if is_integer(bits) and not WIDE else 1)


def _slot_pairs(b: Any, value: Any) -> tuple[Any, Any]:
    """Four slots' bytes of each dim as int16: slots 0 and 2 of all dims, slots 1 and 3."""
    both = b.bitcast(value, _PAIRS)
    eight = _constant(_I16, 2 * LANES, 8)
    return b.ashr(b.shl(both, eight), eight), b.ashr(both, eight)


def _wide_dot(b: Any, acc: Any, weights: Any, values: Any) -> Any:
    return b.add(acc, wide_pairs(b, b.bitcast(weights, _PAIRS), values))


def value_step(bits: int) -> Any:
    """Add `slots_at_once` slots' values times ROWS rows of weights to `value_sums` sums.

    Args of the operation: the sums; v, other: these slots' values of the first vector of dims, and
    of the second; w, wb: first row's weights, bytes to the next one's.
    """
    count = value_sums(bits)
    tile = types.UniTuple(_sum_type(bits), count)

    def emit(b: Any, f: Any, v: Any, other: Any, w: Any, wb: Any) -> Any:
        sums = unpack_tuple(b, f, count)
        if bits == 4:
            packed = load_u8.emit(b, v)
            values = [field.emit(b, packed) for field in FIELD[4]]
        else:
            load = load_u8 if bits == 8 else _load_float(bits)
            values = [load.emit(b, v), load.emit(b, other)]
        if is_integer(bits) and WIDE:
            pairs = [_slot_pairs(b, value) for value in values]
        i = 0
        for r in range(ROWS):
            row = at(b, w, r, wb)
            if is_integer(bits) and WIDE:
                for half in range(2):
                    p = broadcast_i32.emit(b, b.add(row, number(4 * half)))
                    for c in range(2):
                        sums[i + c] = _wide_dot(b, sums[i + c], p, pairs[c][half])
                i += 2
            elif is_integer(bits):
                for half in (0, BLOCK):
                    p = broadcast_i32.emit(b, b.add(row, number(half)))
                    for value in values:
                        sums[i] = dot_u7s8.emit(b, sums[i], p, value)
                        i += 1
            else:
                p = splat_f32.emit(b, read_f32.emit(b, row))
                for value in values:
                    sums[i] = fma.emit(b, value, p, sums[i])
                    i += 1
        return pack_tuple(b, sums)

    return op(tile, tile, *[i64] * 4)(emit)


def value_store(bits: int) -> Any:
    """acc = acc * keep + sums * factor, for ROWS rows and two vectors of dims.

    Args of the operation: the sums; acc, other: first row's result of the first vector of dims, and
    of the second (it may be the first again); ab: bytes to the next row's; keep, factor, base:
    addresses of a float32 for each row; 4 bits add `base`.
    """
    count = value_sums(bits)
    tile = types.UniTuple(_sum_type(bits), count)

    def emit(
        b: Any, f: Any, acc: Any, other: Any, ab: Any, keep: Any, factor: Any, base: Any
    ) -> None:
        sums = unpack_tuple(b, f, count)
        each = count // ROWS
        for r in range(ROWS):

            def row_number(address: Any, row: int = r) -> Any:
                return splat_f32.emit(b, read_f32.emit(b, b.add(address, number(4 * row))))

            places = [at(b, acc, r, ab), at(b, other, r, ab)]
            old = [mul.emit(b, load_f32.emit(b, to), row_number(keep)) for to in places]
            for c, to in enumerate(places):
                if is_integer(bits):
                    total = sums[r * each + c]
                    if not WIDE:
                        high = b.shl(total, _constant(_I32, LANES, HALF_BITS))
                        total = b.add(high, sums[r * each + 2 + c])
                    total = to_f32.emit(b, total)
                    if bits == 4:
                        old[c] = add.emit(b, old[c], row_number(base))
                else:
                    total = sums[r * each + c]
                store_f32.emit(b, to, fma.emit(b, total, row_number(factor), old[c]))

    return op(void, tile, *[i64] * 6)(emit)
