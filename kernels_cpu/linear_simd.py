"""Operations of the linear kernels beyond `simd.py`: orders of codes, transposes, register tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit
from numba.extending import register_jitable

from edgetok.kernels_cpu import linear_layout
from edgetok.kernels_cpu.simd import (
    _I8,
    _I32,
    F32,
    I32,
    LANES,
    U8,
    VB,
    _constant,
    _shuffle,
    i32,
    op,
)


def inline(function: Callable[..., Any]) -> Any:
    """Compile a helper into its callers."""
    return njit(error_model="numpy", forceinline=True)(function)


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


@op(I32, F32)
def absolute_bits(b: Any, v: Any) -> Any:
    """Bits of |v|: they compare as integers like the floats do, and NaN is above all."""
    return b.and_(b.bitcast(v, I32.ll), _constant(_I32, LANES, 0x7FFFFFFF))


@op(I32, I32, I32)
def max_i32(b: Any, x: Any, y: Any) -> Any:
    """Larger of each lane, signed."""
    return b.select(b.icmp_signed(">", x, y), x, y)


def _reduce(b: Any, v: Any, combine: Callable[[Any, Any], Any]) -> Any:
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        low = _shuffle(b, v, list(range(lanes)))
        v = combine(low, _shuffle(b, v, list(range(lanes, 2 * lanes))))
    return b.extract_element(v, ir.Constant(_I32, 0))


@op(i32, I32)
def max_lanes_i32(b: Any, v: Any) -> Any:
    """Largest of all lanes, signed."""
    return _reduce(b, v, lambda x, y: b.select(b.icmp_signed(">", x, y), x, y))


@op(i32, I32)
def sum_lanes_i32(b: Any, v: Any) -> Any:
    """Sum of all lanes."""
    return _reduce(b, v, b.add)


@op(I32, I32)
def negate_i32(b: Any, v: Any) -> Any:
    """-v."""
    return b.neg(v)


@op(U8)
def zero_u8(b: Any) -> Any:
    """Zeros."""
    return _constant(_I8, VB, 0)


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
