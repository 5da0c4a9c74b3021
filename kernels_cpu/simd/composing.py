"""Parts of emitters that are made of others: constants, addresses, tuples, transposing."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.simd.emit import _I64, LANES, _shuffle


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
