"""Passes over all logits for sampling: changes, the largest, lists of what may be drawn.

The largest of every BLOCK says which of them to look at again; nothing is sorted. A list is int32
ids in rising order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from edgetok.kernels_cpu.elementwise.selection import nth_smallest
from edgetok.kernels_cpu.sampling.launch import (
    BLOCK,
    OPTION_FREQUENCY,
    OPTION_PRESENCE,
    OPTION_REPETITION,
)
from edgetok.kernels_cpu.simd import math
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I64,
    F32,
    I32,
    LANES,
    _constant,
    _first_lanes,
    _masked_load,
    i64,
    op,
    outline,
)
from edgetok.kernels_cpu.simd.math64 import exp64
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32,
    load_f32_first,
    read_f32,
    read_i32,
    read_i64,
    store_f32_first,
    write_f32,
    write_f64,
    write_i32,
    write_i64,
)
from edgetok.kernels_cpu.simd.ops import (
    add,
    div,
    max_lanes,
    maximum,
    splat_f32,
    sub,
    sum_lanes,
    zero_f32,
    zero_i32,
)

_LOWEST = np.float32(-np.inf)
_COLDEST = 1e-30  # a temperature below it is as good as it, and its inverse a float32


@op(I32, I32, F32)
def _or_nan(b: Any, seen: Any, v: Any) -> Any:
    """`seen`, with all bits set in lanes where v is NaN."""
    return b.or_(seen, b.sext(b.fcmp_unordered("uno", v, v), I32.ll))


@op(i64, I32)
def _any_bit(b: Any, v: Any) -> Any:
    """Not 0 where any lane is not 0."""
    some = b.icmp_unsigned("!=", v, ir.Constant(I32.ll, [0] * LANES))
    return b.zext(b.bitcast(some, ir.IntType(LANES)), _I64)


@op(F32, i64, i64)
def _load_or_lowest(b: Any, address: Any, count: Any) -> Any:
    """The first `count` float32 (0..LANES), -inf after them."""
    v = _masked_load(b, address, count, _F32, LANES)
    lowest = _constant(_F32, LANES, float("-inf"))
    return b.select(_first_lanes(b, count, LANES), v, lowest)


@outline
def copy_logits(x: int, to: int, size: int) -> None:
    """Copy `size` float32."""
    for i in range(0, size, LANES):
        count = min(LANES, size - i)
        store_f32_first(to + 4 * i, load_f32_first(x + 4 * i, count), count)


@outline
def penalise(x: int, seen: int, count: int, options: int) -> None:
    """Change the logits of tokens that were seen, in place."""
    repetition = f32_from_bits(read_i64(options + 8 * OPTION_REPETITION))
    presence = f32_from_bits(read_i64(options + 8 * OPTION_PRESENCE))
    frequency = f32_from_bits(read_i64(options + 8 * OPTION_FREQUENCY))
    for i in range(count):
        at = x + 4 * np.int64(read_i32(seen + 8 * i))
        times = read_i32(seen + 8 * i + 4)
        v = read_f32(at)
        v = v * repetition if v < np.float32(0.0) else v / repetition
        if times > 0:
            v = (v - presence) - frequency * np.float32(times)
        write_f32(at, v)


@outline
def exclude(x: int, mask: int, size: int) -> None:
    """Make the logits of tokens that the mask does not allow -inf."""
    for first in range(0, size, 32):
        word = np.int64(read_i32(mask + first // 8)) & 0xFFFFFFFF
        if word == 0xFFFFFFFF:
            continue
        for i in range(first, min(first + 32, size)):
            if word & 1 == 0:
                write_f32(x + 4 * i, _LOWEST)
            word >>= 1


@outline
def largest(x: int, size: int, maxima: int) -> Any:
    """Write the largest of every BLOCK; where the first largest is, or -1 - i: i is not finite."""
    nan = zero_i32()
    whole = size // BLOCK * BLOCK
    best = _LOWEST
    block = 0
    for i in range(0, whole, BLOCK):
        high = splat_f32(_LOWEST)
        for k in range(0, BLOCK, LANES):
            v = load_f32(x + 4 * (i + k))
            nan = _or_nan(nan, v)
            high = maximum(v, high)
        m = max_lanes(high)
        write_f32(maxima + i // (BLOCK // 4), m)
        if m > best:
            best = m
            block = i
    bad = _any_bit(nan)
    if whole < size:
        m = _LOWEST
        for i in range(whole, size):
            v = read_f32(x + 4 * i)
            bad |= v != v
            m = max(m, v)
        write_f32(maxima + whole // (BLOCK // 4), m)
        if m > best:
            best = m
            block = whole
    if bad != 0:
        for i in range(size):
            v = read_f32(x + 4 * i)
            if v != v:
                return -1 - i
    for i in range(block, min(block + BLOCK, size)):
        if read_f32(x + 4 * i) == best:
            return i if abs(best) < np.float32(np.inf) else -1 - i
    return -1


@outline
def _at_least(x: int, size: int, maxima: int, bar: float, ids: int) -> int:
    """List tokens with a logit of at least `bar` and above -inf, in rising order; how many."""
    count = 0
    for first in range(0, size, BLOCK):
        if read_f32(maxima + first // (BLOCK // 4)) < bar:
            continue
        for i in range(first, min(first + BLOCK, size)):
            v = read_f32(x + 4 * i)
            if v >= bar and v > _LOWEST:
                write_i32(ids + 4 * count, np.int32(i))
                count += 1
    return count


@outline
def list_top_k(x: int, size: int, maxima: int, k: int, ids: int, work: int) -> Any:
    """List tokens whose logit is at least the k-th largest, 0 < k < size; how many."""
    blocks = (size + BLOCK - 1) // BLOCK
    bar = _LOWEST
    if blocks > k:  # k blocks have a maximum of at least this: the k-th largest is not below it
        copy_logits(maxima, work, blocks)
        bar = nth_smallest(work, blocks, blocks - k)
    count = _at_least(x, size, maxima, bar, ids)
    if count <= k:
        return count
    for j in range(count):
        write_f32(work + 4 * j, read_f32(x + 4 * np.int64(read_i32(ids + 4 * j))))
    bar = nth_smallest(work, count, count - k)
    kept = 0
    for j in range(count):
        i = read_i32(ids + 4 * j)
        if read_f32(x + 4 * np.int64(i)) >= bar:
            write_i32(ids + 4 * kept, i)
            kept += 1
    return kept


@outline
def list_above(
    x: int, size: int, maxima: int, high: float, temperature: float, least: float, ids: int
) -> int:
    """List tokens whose weight is at least `least`, and others of their BLOCK; how many."""
    count = 0
    for first in range(0, size, BLOCK):
        most = np.float64(read_f32(maxima + first // (BLOCK // 4)))
        if exp64((most - np.float64(high)) / temperature) >= least:
            for i in range(first, min(first + BLOCK, size)):
                write_i32(ids + 4 * count, np.int32(i))
                count += 1
    return count


@outline
def rough_weights(
    x: int, size: int, high: float, temperature: float, to: int, maxima: int, sums: int
) -> float:
    """exp((x - high) / temperature) of all in float32; returns their sum.

    Writes the largest of each BLOCK (float32) and its sum (float64), too.
    """
    top, cold = splat_f32(high), splat_f32(np.float32(max(temperature, _COLDEST)))
    total = 0.0
    for first in range(0, size, BLOCK):
        most = zero_f32()
        here = zero_f32()
        end = min(first + BLOCK, size)
        for i in range(first, end, LANES):
            count = min(LANES, end - i)
            # Lanes past the last token are as unlikely as can be.
            v = sub(_load_or_lowest(x + 4 * i, count), top)
            w = math.exp(div(v, cold))
            store_f32_first(to + 4 * i, w, count)
            most = maximum(w, most)
            here = add(w, here)
        write_f32(maxima + first // (BLOCK // 4), max_lanes(most))
        s = np.float64(sum_lanes(here))
        write_f64(sums + first // (BLOCK // 8), s)
        total += s
    return total


@outline
def list_heavy(rough: int, size: int, maxima: int, bar: float, ids: int) -> float:
    """List tokens with a rough weight of at least `bar`; their sum. How many goes before `ids`."""
    count = 0
    total = 0.0
    for first in range(0, size, BLOCK):
        if np.float64(read_f32(maxima + first // (BLOCK // 4))) < bar:
            continue
        for i in range(first, min(first + BLOCK, size)):
            w = np.float64(read_f32(rough + 4 * i))
            if w >= bar and w > 0.0:
                total += w
                write_i32(ids + 4 * count, np.int32(i))
                count += 1
    write_i64(ids - 8, count)
    return total
