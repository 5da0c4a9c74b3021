"""The inner steps of products of 16 and 32-bit weights, each emitted as one operation.

See `linear/row_steps.py`.
"""

from __future__ import annotations

from typing import Any

from numba import types

from edgetok.kernels_cpu.linear.code_orders import load_f16_first
from edgetok.kernels_cpu.simd.composing import clamped, number, pack_tuple, transposed, unpack_tuple
from edgetok.kernels_cpu.simd.emit import F32, LANES, VB, i64, op, void
from edgetok.kernels_cpu.simd.memory import (
    load_f16,
    load_f32,
    load_f32_first,
    prefetch,
    store_f32,
)
from edgetok.kernels_cpu.simd.ops import fma

_LINE = 64  # bytes that a prefetch brings


def float_row_step(bits: int, rows: int, tokens: int, lanes: int, part: bool) -> Any:
    """Add `lanes` inputs' products of rows x tokens to their sums; 16 or 32-bit weights.

    Args of the operation: UniTuple of sums, by row, token and then lane; w, x addresses of the
    first row and token; wb, xb bytes to the next ones; rows and tokens after number `last_row` and
    `last` repeat those; with `part` how many inputs are left; otherwise how far ahead of w to
    prefetch.
    """
    vectors = lanes // LANES
    full, first = (load_f16, load_f16_first) if bits == 16 else (load_f32, load_f32_first)

    def emit(b: Any, f: Any, w: Any, x: Any, *rest: Any) -> Any:
        wb, xb, last_row, last, end = rest
        sums = unpack_tuple(b, f, rows * tokens * vectors)
        for v in range(vectors):
            left = b.sub(end, number(v * LANES))
            inputs = []
            for t in range(tokens):
                place = b.add(clamped(b, x, t, last, xb), number(4 * v * LANES))
                value = load_f32_first.emit(b, place, left) if part else load_f32.emit(b, place)
                inputs.append(value)
            for r in range(rows):
                place = b.add(clamped(b, w, r, last_row, wb), number(bits // 8 * v * LANES))
                weights = first.emit(b, place, left) if part else full.emit(b, place)
                if not part and v * LANES * bits // 8 % _LINE == 0:
                    prefetch.emit(b, b.add(place, end))
                for t in range(tokens):
                    i = (r * tokens + t) * vectors + v
                    sums[i] = fma.emit(b, weights, inputs[t], sums[i])
        return pack_tuple(b, sums)

    tile = types.UniTuple(F32, rows * tokens * vectors)
    return op(tile, tile, *[i64] * 7)(emit)


def store_chains(rows: int, tokens: int, lanes: int, rowb: int, tokenb: int) -> Any:
    """Sums of `float_row_step` to memory: rows `rowb` bytes apart, tokens `tokenb`."""
    vectors = lanes // LANES

    @op(void, types.UniTuple(F32, rows * tokens * vectors), i64)
    def store(b: Any, f: Any, out: Any) -> None:
        for i, value in enumerate(unpack_tuple(b, f, rows * tokens * vectors)):
            r, t, v = i // (tokens * vectors), i // vectors % tokens, i % vectors
            store_f32.emit(b, b.add(out, number(r * rowb + t * tokenb + v * VB)), value)

    return store


def sum_chains(chains: int, distance: int) -> Any:
    """Lane i: the sum of the i-th row's `chains` sums, one after the other.

    Args of the operation: address of the first row's; the others follow `distance` apart.
    """

    @op(F32, i64)
    def sum_chains(b: Any, address: Any) -> Any:
        total = None
        for v in range(chains // LANES):
            places = [b.add(address, number(i * distance + v * VB)) for i in range(LANES)]
            for column in transposed(b, [load_f32.emit(b, place) for place in places]):
                total = column if total is None else b.fadd(total, column)
        return total

    return sum_chains
