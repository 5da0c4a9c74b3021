"""How codes get to their places in a slot, each emitted as one operation. See `kv_append.py`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.attention.launch import KEY_TILE, VALUE_TILE
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I8,
    _I32,
    _I64,
    F32,
    I32,
    LANES,
    _constant,
    _masked_load,
    _splat,
    _store,
    f32,
    i64,
    op,
    void,
)

_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves a rounded integer in the low bits
_ROUND_BITS = 0x4B400000


@op(i64, f32)
def f32_bits(b: Any, x: Any) -> Any:
    """The 32 bits of a float32."""
    return b.zext(b.bitcast(x, _I32), _I64)


@op(F32, F32)
def round_f32(b: Any, x: Any) -> Any:
    """The nearest integer, even on ties, of numbers below 2^22: as `store_nibbles` rounds."""
    magic = _constant(_F32, LANES, _ROUND)
    return b.fsub(b.fadd(x, magic), magic)


def _scatter(b: Any, to: Any, code: Any, lanes: int, stride: int) -> None:
    codes = b.trunc(code, ir.VectorType(_I8, lanes))
    for i in range(lanes):
        address = b.add(to, ir.Constant(_I64, i * stride))
        _store(b, address, b.extract_element(codes, ir.Constant(_I32, i)))


@op(void, i64, I32)
def store_value_codes(b: Any, to: Any, code: Any) -> None:
    """The low 8 bits of LANES int32, VALUE_TILE bytes apart: other slots lie in between."""
    _scatter(b, to, code, LANES, VALUE_TILE)


@op(void, i64, i64, i64, f32)
def store_key_6(b: Any, to: Any, x: Any, count: Any, inverse: Any) -> None:
    """Store 6-bit codes round(x * inverse) + 32 of 16 dims; `count` are there, 0 past them.

    Three words of 4 bytes, as far apart as keys of KEY_TILE slots: the high four bits of dims j and
    j + 4, of j + 8 and j + 12, and the low two bits of all four in byte j.
    """
    wide = ir.VectorType(_I32, 4)
    codes = []
    for first in range(0, 16, 4):
        left = b.sub(count, ir.Constant(_I64, first))
        at = b.add(x, ir.Constant(_I64, 4 * first))
        v = b.fmul(_masked_load(b, at, left, _F32, 4), _splat(b, inverse, 4))
        v = b.fadd(v, _constant(_F32, 4, _ROUND))
        codes.append(b.sub(b.bitcast(v, wide), _constant(_I32, 4, _ROUND_BITS - 32)))
    high = [b.lshr(code, _constant(_I32, 4, 2)) for code in codes]
    words = [b.or_(high[i], b.shl(high[i + 1], _constant(_I32, 4, 4))) for i in (0, 2)]
    low = [b.and_(code, _constant(_I32, 4, 3)) for code in codes]
    last = low[0]
    for i in range(1, 4):
        last = b.or_(last, b.shl(low[i], _constant(_I32, 4, 2 * i)))
    for i, word in enumerate((*words, last)):
        _scatter(b, b.add(to, ir.Constant(_I64, 4 * KEY_TILE * i)), word, 4, 1)


def store_nibbles(lanes: int, stride: int) -> Any:
    """Store 4-bit codes of 2 * lanes dims: byte j holds dims j and j + lanes.

    Bytes are `stride` apart.

    Args of the operation: to; x, count: address of the dims, how many there are (0 past them);
    inverse, low: code = round((x - low) * inverse).
    """

    @op(void, i64, i64, i64, f32, f32)
    def store(b: Any, to: Any, x: Any, count: Any, inverse: Any, low: Any) -> None:
        wide = ir.VectorType(_I32, lanes)
        halves = []
        for first in (0, lanes):
            left = b.sub(count, ir.Constant(_I64, first))
            at = b.add(x, ir.Constant(_I64, 4 * first))
            v = b.fsub(_masked_load(b, at, left, _F32, lanes), _splat(b, low, lanes))
            v = b.fadd(b.fmul(v, _splat(b, inverse, lanes)), _constant(_F32, lanes, _ROUND))
            halves.append(b.sub(b.bitcast(v, wide), _constant(_I32, lanes, _ROUND_BITS)))
        code = b.or_(halves[0], b.shl(halves[1], _constant(_I32, lanes, 4)))
        _scatter(b, to, code, lanes, stride)

    return store
