"""Operations of the linear kernels beyond `simd/ops.py`: orders of codes, planes, tables."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.simd.emit import (
    _F16,
    _I8,
    _I16,
    _I32,
    _I64,
    F32,
    LANES,
    NAME,
    U8,
    VB,
    _call,
    _constant,
    _extend_f16,
    _load,
    _masked_load,
    _shuffle,
    i64,
    op,
)

# Orders of codes


@op(U8, U8, U8)
def even_bytes(b: Any, x: Any, y: Any) -> Any:
    """Bytes 0, 2, 4, ... of x and then of y."""
    return _shuffle(b, x, list(range(0, 2 * VB, 2)), y)


@op(U8, U8, U8)
def odd_bytes(b: Any, x: Any, y: Any) -> Any:
    """Bytes 1, 3, 5, ... of x and then of y."""
    return _shuffle(b, x, list(range(1, 2 * VB, 2)), y)


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
    """VB / 2 bytes of the high plane of 3 or 6 bits: byte j holds four bits of byte j's codes."""
    return _spread(b, _load(b, address, ir.VectorType(_I8, VB // 2)))


@op(U8, i64, i64)
def load_high_first(b: Any, address: Any, count: Any) -> Any:
    """Load like `load_high`, but only the first `count` bytes, zeros after them."""
    return _spread(b, _masked_load(b, address, count, _I8, VB // 2))


def _replicated(b: Any, high: Any) -> Any:
    """Byte j: the byte j / 4 of VB / 4 bytes."""
    return _shuffle(b, high, [j // 4 for j in range(VB)])


@op(U8, i64)
def load_bits(b: Any, address: Any) -> Any:
    """VB / 4 bytes of the high plane of 5 bits: byte j holds the bits of codes 2j and 2j + 1."""
    return _replicated(b, _load(b, address, ir.VectorType(_I8, VB // 4)))


@op(U8, i64, i64)
def load_bits_first(b: Any, address: Any, count: Any) -> Any:
    """Load like `load_bits`, but only the first `count` bytes, zeros after them."""
    return _replicated(b, _masked_load(b, address, count, _I8, VB // 4))


def _bit_of_pair(plane: int) -> Any:
    @op(U8, U8)
    def bit_of_pair(b: Any, v: Any) -> Any:
        mask = ir.Constant(U8.ll, [1 << (2 * (j % 4) + plane) for j in range(VB)])
        there = b.icmp_signed("==", b.and_(v, mask), mask)
        return b.and_(b.sext(there, U8.ll), _constant(_I8, VB, 16))

    return bit_of_pair


# PAIR_BIT[i] takes the bit of code 2j + i out of byte j of `load_bits`, as 16 or 0.
PAIR_BIT = tuple(_bit_of_pair(i) for i in range(2))


def _pair_field(plane: int) -> Any:
    @op(U8, U8)
    def pair_field(b: Any, v: Any) -> Any:
        wide = b.bitcast(v, ir.VectorType(_I16, VB // 2))
        wide = b.shl(wide, _constant(_I16, VB // 2, 4 - 2 * plane))
        return b.and_(b.bitcast(wide, U8.ll), _constant(_I8, VB, 0x30))

    return pair_field


# PAIR_FIELD[i] takes the i-th two bits of every byte, times 16.
PAIR_FIELD = tuple(_pair_field(i) for i in range(2))


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


# A table of 16 levels


def load_table(b: Any, address: Any, signed: bool) -> Any:
    """An emitter: 16 int8 once in each 128 bits, plus 128 unless `signed`."""
    v = _load(b, address, ir.VectorType(_I8, 16))
    v = _shuffle(b, v, [i % 16 for i in range(VB)])
    return v if signed else b.xor(v, _constant(_I8, VB, 0x80))


def look_up(b: Any, table: Any, codes: Any) -> Any:
    """An emitter: the bytes of a table that codes, each below 16, choose."""
    names = {
        "avx512": "llvm.x86.avx512.pshuf.b.512",
        "avxvnni": "llvm.x86.avx2.pshuf.b",
        "avx2": "llvm.x86.avx2.pshuf.b",
        "neon": "llvm.aarch64.neon.tbl1.v16i8",
    }
    if NAME in names:
        return _call(b, names[NAME], U8.ll, table, codes)
    # LLVM's shuffles have constant orders: choose between halves of the table, bit by bit.
    levels = [_shuffle(b, table, [i] * VB) for i in range(16)]
    for bit in range(4):
        there = b.and_(codes, _constant(_I8, VB, 1 << bit))
        there = b.icmp_signed("!=", there, _constant(_I8, VB, 0))
        pairs = zip(levels[::2], levels[1::2], strict=True)
        levels = [b.select(there, high, low) for low, high in pairs]
    return levels[0]


@op(F32, i64, i64)
def load_f16_first(b: Any, address: Any, count: Any) -> Any:
    """The first `count` (0..LANES) float16, widened, zeros after them."""
    v = _masked_load(b, address, count, _I16, LANES)
    return _extend_f16(b, b.bitcast(v, ir.VectorType(_F16, LANES)))
