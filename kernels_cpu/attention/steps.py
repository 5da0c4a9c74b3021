"""The innermost steps of attention, each emitted as one operation (see `linear/row_steps.py`).

Scores: ROWS query rows times COLUMNS vectors of slots (a lane is a slot), a few dims at a time.
Values: ROWS rows of weights times two vectors of dims, one slot at a time, or four where values are
integers. Integer weights have WEIGHT_BITS bits in two halves, each a dot product of its own.

Layouts: `attention/launch.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from edgetok.kernels_cpu.attention.launch import BLOCK, KEY_TILE
from edgetok.kernels_cpu.linear.row_steps import at, number, pack_tuple, unpack_tuple
from edgetok.kernels_cpu.simd.emit import (
    _F32,
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
    i32,
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
    store_i32_u8,
)
from edgetok.kernels_cpu.simd.ops import (
    FIELD,
    add,
    dot_u7s8,
    dot_u8s8,
    fma,
    maximum,
    mul,
    round_i32,
    select_between,
    splat_f32,
    splat_i32,
    to_f32,
)

ROWS = 4
LINE_BYTES = 64
COLUMNS = 4 if LANES == 16 else 2  # 16 sums of 64 bytes fit the registers, 8 of 32
HALF_BITS = 7  # two halves below 128: a product of four cannot saturate, on any instruction set
WEIGHT_BITS = 2 * HALF_BITS

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
    if NAME == "avx2":  # |s| times u with the sign of s: no pair of products can saturate
        half, wide = ir.VectorType(_I16, 16), ir.VectorType(_I8, VB)
        centred = b.xor(u, _constant(_I8, VB, 0x80))
        signed = _call(b, "llvm.x86.avx2.psign.b", wide, centred, s)
        size = _call(b, "llvm.abs.v32i8", wide, s, ir.Constant(ir.IntType(1), 0))
        pairs = _call(b, "llvm.x86.avx2.pmadd.ub.sw", half, size, signed)
        return b.add(acc, _call(b, "llvm.x86.avx2.pmadd.wd", I32.ll, pairs, _constant(_I16, 16, 1)))
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


# Softmax, COLUMNS vectors of slots at a time: constants are fetched once for all of them

_TILE = types.UniTuple(F32, COLUMNS)
# 2^f = 1 + f (c0 + c1 f + ...) for |f| <= 1/2, fitted to 9e-8 by reweighted least squares.
_EXP2 = (
    0.6931470036506653,
    0.24022242426872253,
    0.05550733953714371,
    0.009671513922512531,
    0.0013264719163998961,
)
_LOWEST_POWER = -126.0  # 2^x is a normal float32 down to here, and counted as 0 below
_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves a rounded integer in the low bits


def _float(value: float) -> Any:
    return _constant(_F32, LANES, value)


def _exp2(b: Any, x: Any) -> Any:
    """2^x for x <= 0; relative error 2e-7."""
    seen = b.fcmp_ordered(">=", x, _float(_LOWEST_POWER))
    x = b.select(seen, x, _float(_LOWEST_POWER))
    moved = b.fadd(x, _float(_ROUND))
    f = b.fsub(x, b.fsub(moved, _float(_ROUND)))
    p = _float(_EXP2[-1])
    for c in reversed(_EXP2[:-1]):
        p = fma.emit(b, p, f, _float(c))
    p = fma.emit(b, p, f, _float(1.0))
    power = b.shl(b.bitcast(moved, I32.ll), _constant(_I32, LANES, 23))
    value = b.bitcast(b.add(b.bitcast(p, I32.ll), power), F32.ll)
    return b.select(seen, value, _float(0.0))


@op(F32, F32)
def exp2(b: Any, x: Any) -> Any:
    """2^x for x <= 0; 0 below 2^-126."""
    return _exp2(b, x)


@op(_TILE, i64, F32)
def weights_step(b: Any, s: Any, high: Any) -> Any:
    """2^(score - high)."""
    scores = [load_f32.emit(b, b.add(s, number(c * VB))) for c in range(COLUMNS)]
    return pack_tuple(b, [_exp2(b, b.fsub(score, high)) for score in scores])


@op(F32, F32, _TILE)
def add_step(b: Any, total: Any, weights: Any) -> Any:
    """Total + the sum of the vectors."""
    values = unpack_tuple(b, weights, COLUMNS)
    while len(values) > 1:
        values = [b.fadd(x, y) for x, y in zip(values[::2], values[1::2], strict=True)]
    return b.fadd(total, values[0])


@op(void, i64, _TILE)
def store_step(b: Any, to: Any, weights: Any) -> None:
    """Store the vectors one after the other."""
    for c in range(COLUMNS):
        store_f32.emit(b, b.add(to, number(c * VB)), b.extract_value(weights, c))


@op(void, i64, i64, _TILE)
def codes_step(b: Any, to: Any, scales: Any, weights: Any) -> None:
    """Store round(weight * scale) in halves, the low ones BLOCK bytes after the high ones."""
    for c in range(COLUMNS):
        scale = load_f32.emit(b, b.add(scales, number(c * VB)))
        code = round_i32.emit(b, b.fmul(b.extract_value(weights, c), scale))
        low = b.and_(code, _constant(_I32, LANES, (1 << HALF_BITS) - 1))
        at_c = b.add(to, number(c * LANES))
        store_i32_u8.emit(b, at_c, b.lshr(code, _constant(_I32, LANES, HALF_BITS)))
        store_i32_u8.emit(b, b.add(at_c, number(BLOCK)), low)


@op(F32, F32, i64, _TILE)
def bases_step(b: Any, total: Any, words: Any, weights: Any) -> Any:
    """Total + weight * base, of the slots' words at 4 bits."""
    for c in range(COLUMNS):
        base = high_bf16.emit(b, load_i32.emit(b, b.add(words, number(c * VB))))
        total = fma.emit(b, b.extract_value(weights, c), base, total)
    return total


def _largest(b: Any, best: Any, values: list[Any]) -> Any:
    while len(values) > 1:
        values = [maximum.emit(b, x, y) for x, y in zip(values[::2], values[1::2], strict=True)]
    return maximum.emit(b, values[0], best)


@op(F32, F32, i64)
def max_step(b: Any, best: Any, s: Any) -> Any:
    """The largest score of each lane."""
    values = [load_f32.emit(b, b.add(s, number(c * VB))) for c in range(COLUMNS)]
    return _largest(b, best, values)


@op(F32, F32, i64, i64, i32, i32, F32)
def mask_step(b: Any, best: Any, s: Any, where: Any, low: Any, high: Any, unseen: Any) -> Any:
    """The same, with `unseen` put where a slot's position is not within low..high."""
    values = []
    for c in range(COLUMNS):
        at_c = b.add(s, number(c * VB))
        position = load_i32.emit(b, b.add(where, number(c * VB)))
        value = load_f32.emit(b, at_c)
        value = select_between.emit(b, position, low, high, value, unseen)
        store_f32.emit(b, at_c, value)
        values.append(value)
    return _largest(b, best, values)


# Values


def value_sums(bits: int) -> int:
    """Sums of ROWS rows and two vectors of dims."""
    return ROWS * 2 * (2 if is_integer(bits) else 1)


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
        i = 0
        for r in range(ROWS):
            row = at(b, w, r, wb)
            if is_integer(bits):
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
                    high, low = sums[r * each + c], sums[r * each + 2 + c]
                    high = b.shl(high, _constant(_I32, LANES, HALF_BITS))
                    total = to_f32.emit(b, b.add(high, low))
                    if bits == 4:
                        old[c] = add.emit(b, old[c], row_number(base))
                else:
                    total = sums[r * each + c]
                store_f32.emit(b, to, fma.emit(b, total, row_number(factor), old[c]))

    return op(void, tile, *[i64] * 6)(emit)
