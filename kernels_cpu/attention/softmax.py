"""Softmax of scores, COLUMNS vectors of slots at a time: constants are fetched once for them.

Each step is emitted as one operation (see `linear/row_steps.py`).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from edgetok.kernels_cpu.attention.launch import BLOCK
from edgetok.kernels_cpu.attention.steps import COLUMNS, HALF_BITS, WIDE, high_bf16
from edgetok.kernels_cpu.simd.composing import number, pack_tuple, unpack_tuple
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I16,
    _I32,
    F32,
    I32,
    LANES,
    VB,
    _constant,
    _shuffle,
    _store,
    i32,
    i64,
    op,
    void,
)
from edgetok.kernels_cpu.simd.memory import load_f32, load_i32, store_f32, store_i32_u8
from edgetok.kernels_cpu.simd.ops import fma, maximum, round_i32, select_between

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
    """Store round(weight * scale) in halves, low ones BLOCK bytes after high ones; or WIDE.

    Wide ones have 16 bits; of each four slots the middle two are swapped, as `value_step` has them.
    """
    codes = []
    for c in range(COLUMNS):
        scale = load_f32.emit(b, b.add(scales, number(c * VB)))
        codes.append(round_i32.emit(b, b.fmul(b.extract_value(weights, c), scale)))
    if WIDE:
        kind = ir.VectorType(_I16, 2 * LANES)
        first, second = [b.bitcast(code, kind) for code in codes]
        slots = [4 * four + i for four in range(COLUMNS * LANES // 4) for i in (0, 2, 1, 3)]
        _store(b, to, _shuffle(b, first, [2 * slot for slot in slots], second))
        return
    for c, code in enumerate(codes):
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
