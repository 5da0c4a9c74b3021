"""Sums of products of integers, which may still be in 16 bits, in the emitters of row products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgetok.kernels_cpu.simd.byte_products import absolute_bytes, with_signs
from edgetok.kernels_cpu.simd.emit import I32, LANES, NAME, _shuffle
from edgetok.kernels_cpu.simd.ops import dot_u7s8, dot_u8s8, multiply_pairs, widen_pairs, zero_i32


@dataclass(frozen=True, slots=True)
class Sum:
    """Integers to be added up: LANES of int32, or pairs of int16 (AVX2) of at most `bound`."""

    value: Any
    bound: int = 0


def products(b: Any, codes: Any, values: Any, most: int) -> Sum:
    """Products of 4 bytes each, codes of at most `most` by int8; in 16 bits where it saves work.

    AVX2 multiplies bytes to pairs of int16 and adds pairs in a second, as slow, instruction. Small
    codes leave room to add several pairs before.
    """
    if NAME == "avx2":
        if most < 128:
            return Sum(multiply_pairs(b, codes, values), 2 * most * 128)
        sizes = absolute_bytes(b, codes)
        return Sum(multiply_pairs(b, sizes, with_signs(b, values, codes)), 2 * 128 * 127)
    dot = dot_u7s8 if most < 128 else dot_u8s8
    return Sum(dot.emit(b, zero_i32.emit(b), codes, values))


def added(b: Any, x: Sum, y: Sum) -> Sum:
    """x + y, widened where 16 bits could overflow."""
    if x.bound and y.bound and x.bound + y.bound < 1 << 15:
        return Sum(b.add(x.value, y.value), x.bound + y.bound)
    return Sum(b.add(widened(b, x), widened(b, y)))


def widened(b: Any, x: Sum) -> Any:
    """The sum in int32."""
    return widen_pairs(b, x.value) if x.bound else x.value


def plus_products(b: Any, total: Sum | None, codes: Any, values: Any, most: int) -> Sum:
    """total + products."""
    if total is None:
        return products(b, codes, values, most)
    if NAME == "avx2":
        return added(b, total, products(b, codes, values, most))
    dot = dot_u7s8 if most < 128 else dot_u8s8
    return Sum(dot.emit(b, total.value, codes, values))


def _pick(b: Any, index: list[int], x: Sum, y: Sum | None = None) -> Sum:
    """Elements of 32 bits of x and y, by 128 bits: 0..3 are x's four, 4..7 y's."""
    lanes = [
        block + k if k < 4 else LANES + block + k - 4 for block in range(0, LANES, 4) for k in index
    ]
    first = b.bitcast(x.value, I32.ll)
    second = None if y is None else b.bitcast(y.value, I32.ll)
    value = b.bitcast(_shuffle(b, first, lanes, second), x.value.type)
    return Sum(value, max(x.bound, 0 if y is None else y.bound))


def _across(b: Any, x: Sum, step: int) -> Sum:
    """Each 128 bits plus those whose number differs in the bit `step`."""
    lanes = [4 * ((i // 4) ^ step) + i % 4 for i in range(LANES)]
    value = b.bitcast(_shuffle(b, b.bitcast(x.value, I32.ll), lanes), x.value.type)
    return added(b, x, Sum(value, x.bound))


def strip_sums(b: Any, rows: list[Sum], width: int) -> list[Any]:
    """Sums of each `width` lanes of STRIP rows: for each block in turn, 128 bits of STRIP int32.

    Only moves inside 128 bits until blocks are longer: cheap everywhere. LLVM makes `addp` of sums
    of even and odd lanes on Arm, and three sums of six `unpck` elsewhere.
    """
    x, y, z, w = rows
    even, odd = [0, 2, 4, 6], [1, 3, 5, 7]
    low, high, low_half, high_half = [0, 4, 1, 5], [2, 6, 3, 7], [0, 1, 4, 5], [2, 3, 6, 7]

    def folded(x: Sum, y: Sum, first: list[int], second: list[int]) -> Sum:
        return added(b, _pick(b, first, x, y), _pick(b, second, x, y))

    if width == 1:
        pairs = [(_pick(b, index, x, y), _pick(b, index, z, w)) for index in (low, high)]
        sums = [_pick(b, half, *pair) for pair in pairs for half in (low_half, high_half)]
    elif width == 2:
        if NAME == "neon":
            xy, zw = folded(x, y, even, odd), folded(z, w, even, odd)
            sums = [_pick(b, even, xy, zw), _pick(b, odd, xy, zw)]
        else:
            sums = [
                folded(_pick(b, index, x, y), _pick(b, index, z, w), low_half, high_half)
                for index in (low, high)
            ]
    elif NAME == "neon":
        sums = [folded(folded(x, y, even, odd), folded(z, w, even, odd), even, odd)]
    else:
        xy, zw = folded(x, y, low, high), folded(z, w, low, high)
        sums = [folded(xy, zw, low_half, high_half)]
    step = 1
    while 4 * step < width:
        sums = [_across(b, sums[0], step)]
        step *= 2
    found = []
    for block in range(0, LANES // 4, max(width // 4, 1)):
        for total in sums:
            value = widened(b, total)
            index = list(range(4 * block, 4 * block + 4))
            found.append(value if LANES == 4 else _shuffle(b, value, index))
    return found
