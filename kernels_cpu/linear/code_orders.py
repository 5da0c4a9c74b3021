"""Operations of the linear kernels beyond `simd/ops.py`: orders of codes, transposes, tiles."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import register_jitable

from edgetok.kernels_cpu.linear import layout as linear_layout
from edgetok.kernels_cpu.simd.emit import (
    _F16,
    _I8,
    _I16,
    _I32,
    _I64,
    F32,
    I32,
    LANES,
    U8,
    VB,
    _constant,
    _extend_f16,
    _load,
    _masked_load,
    _shuffle,
    i64,
    op,
)

# Kernels call the layout's functions as they are.
for _function in (
    linear_layout.round_up,
    linear_layout.padded_codes,
    linear_layout.blocks_bytes,
    linear_layout.decode_scales_offset,
    linear_layout.decode_token_bytes,
    linear_layout.tile_token_bytes,
):
    register_jitable(error_model="numpy", forceinline=True)(_function)


# Integers


@op(I32, I32)
def negate_i32(b: Any, v: Any) -> Any:
    """-v."""
    return b.neg(v)


# Orders of codes


@op(U8, U8, U8)
def even_bytes(b: Any, x: Any, y: Any) -> Any:
    """Bytes 0, 2, 4, ... of x and then of y."""
    return _shuffle(b, x, list(range(0, 2 * VB, 2)), y)


@op(U8, U8, U8)
def odd_bytes(b: Any, x: Any, y: Any) -> Any:
    """Bytes 1, 3, 5, ... of x and then of y."""
    return _shuffle(b, x, list(range(1, 2 * VB, 2)), y)


def _by_plane(planes: int) -> Any:
    group = 4 * planes
    index = [
        start + planes * byte + plane
        for start in range(0, VB, group)
        for plane in range(planes)
        for byte in range(4)
    ]

    @op(U8, U8)
    def by_plane(b: Any, v: Any) -> Any:
        return _shuffle(b, v, index)

    return by_plane


# BY_PLANE[planes] orders each 4 * planes bytes as those of plane 0, of plane 1, ...
BY_PLANE = {planes: _by_plane(planes) for planes in (2, 4)}


# Weights in memory


@op(U8, i64, i64)
def load_words(b: Any, address: Any, count: Any) -> Any:
    """The first `count` bytes, a multiple of 4, zeros after them; memory past them is not read."""
    words = b.lshr(count, ir.Constant(_I64, 2))
    return b.bitcast(_masked_load(b, address, words, _I32, LANES), U8.ll)


def _spread(b: Any, high: Any) -> Any:
    """Byte j: the j-th four bits, low first, of VB / 2 bytes; the upper half of a byte is noise."""
    wide = b.zext(high, ir.VectorType(_I16, VB // 2))
    return b.bitcast(b.or_(wide, b.shl(wide, _constant(_I16, VB // 2, 4))), U8.ll)


@op(U8, i64)
def load_high(b: Any, address: Any) -> Any:
    """VB / 2 bytes of the high plane of 3 bits: byte j holds the bits of codes 4j..4j + 3."""
    return _spread(b, _load(b, address, ir.VectorType(_I8, VB // 2)))


@op(U8, i64, i64)
def load_high_first(b: Any, address: Any, count: Any) -> Any:
    """As `load_high`, but only the first `count` bytes are read, zeros after them."""
    return _spread(b, _masked_load(b, address, count, _I8, VB // 2))


def _high_bit(position: int) -> Any:
    @op(U8, U8)
    def high_bit(b: Any, v: Any) -> Any:
        wide = b.bitcast(v, ir.VectorType(_I16, VB // 2))
        by = _constant(_I16, VB // 2, abs(position - 2))
        wide = b.shl(wide, by) if position < 2 else b.lshr(wide, by) if position > 2 else wide
        return b.and_(b.bitcast(wide, U8.ll), _constant(_I8, VB, 4))

    return high_bit


# HIGH_BIT[i] takes bit i of every byte, as 4 or 0.
HIGH_BIT = tuple(_high_bit(i) for i in range(4))


def _repeat_f16(count: int) -> Any:
    each = LANES // count

    @op(F32, i64)
    def repeat(b: Any, address: Any) -> Any:
        v = _extend_f16(b, _load(b, address, ir.VectorType(_F16, count)))
        return _shuffle(b, v, [lane // each for lane in range(LANES)])

    return repeat


def _repeat_f16_first(count: int) -> Any:
    each = LANES // count

    @op(F32, i64, i64)
    def repeat(b: Any, address: Any, valid: Any) -> Any:
        v = ir.Constant(ir.VectorType(_F16, count), ir.Undefined)
        for i in range(count):
            last = b.sub(valid, ir.Constant(_I64, 1))
            here = ir.Constant(_I64, i)
            index = b.select(b.icmp_signed("<", here, last), here, last)
            value = _load(b, b.add(address, b.shl(index, ir.Constant(_I64, 1))), _F16)
            v = b.insert_element(v, value, ir.Constant(_I32, i))
        return _shuffle(b, _extend_f16(b, v), [lane // each for lane in range(LANES)])

    return repeat


_COUNTS = tuple(n for n in (1, 2, 4, 8) if n <= LANES)
# REPEAT_F16[n]: n consecutive float16, each over LANES / n lanes: scales over their groups' lanes.
REPEAT_F16 = {n: _repeat_f16(n) for n in _COUNTS}
# The same where only the first `valid` (at least 1) may be read; the others repeat the last.
REPEAT_F16_FIRST = {n: _repeat_f16_first(n) for n in _COUNTS}


@op(F32, i64, i64)
def load_f16_first(b: Any, address: Any, count: Any) -> Any:
    """The first `count` (0..LANES) float16, widened, zeros after them."""
    v = _masked_load(b, address, count, _I16, LANES)
    return _extend_f16(b, b.bitcast(v, ir.VectorType(_F16, LANES)))


def _load_codes(bits: int, first: bool = False) -> Any:
    nbytes = max(LANES * bits // 8, 1)
    wide = 32 if nbytes >= 4 else 8  # bits of what a lane's code is shifted out of

    @op(F32, i64, *[i64] * first)
    def load_codes(b: Any, address: Any, *count: Any) -> Any:
        if first and nbytes > 1:
            used = b.add(b.mul(count[0], ir.Constant(_I64, bits)), ir.Constant(_I64, 7))
            used = b.lshr(used, ir.Constant(_I64, 3))
            packed = _masked_load(b, address, used, _I8, nbytes)
        else:
            packed = _load(b, address, ir.VectorType(_I8, nbytes))
        v = b.bitcast(packed, ir.VectorType(ir.IntType(wide), 8 * nbytes // wide))
        v = _shuffle(b, v, [lane * bits // wide for lane in range(LANES)])
        if wide < 32:
            v = b.zext(v, I32.ll)
        v = b.lshr(v, _constant(_I32, LANES, [lane * bits % wide for lane in range(LANES)]))
        return b.sitofp(b.and_(v, _constant(_I32, LANES, (1 << bits) - 1)), F32.ll)

    return load_codes


# LOAD_CODES[bits]: LANES consecutive packed codes, low bits first, as float32.
LOAD_CODES = {bits: _load_codes(bits) for bits in (2, 4, 8)}
# The same for the first `count` codes (1..LANES); no byte beyond theirs is read.
LOAD_CODES_FIRST = {bits: _load_codes(bits, first=True) for bits in (2, 4, 8)}
