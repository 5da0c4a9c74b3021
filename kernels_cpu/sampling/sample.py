"""The next token from logits, as `edgetok/sampling/sampler.py` defines it.

Repetition, presence and frequency penalties, mask, temperature, top-k, top-p, min-p, then a draw in
rising order of ids with the number that seed and place give (`sampling/random.py`). Logits are read
once where there are many (`sampling/scan.py`), and exact weights (float64) are computed of what may
be drawn alone. Thread 0 does it all. Slots: `sampling/launch.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.elementwise.selection import nucleus
from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.sampling.launch import (
    BLOCK,
    FEW,
    OPTION_MIN_P,
    OPTION_TEMPERATURE,
    OPTION_TOP_K,
    OPTION_TOP_P,
    SAMPLE_INDEX,
    SAMPLE_LOGITS,
    SAMPLE_MASK,
    SAMPLE_OPTIONS,
    SAMPLE_OUT,
    SAMPLE_SCRATCH,
    SAMPLE_SEED,
    SAMPLE_SEEN,
    SAMPLE_SEEN_COUNT,
    SAMPLE_SIZE,
)
from edgetok.kernels_cpu.sampling.random import random_share
from edgetok.kernels_cpu.sampling.scan import (
    copy_logits,
    exclude,
    largest,
    list_above,
    list_heavy,
    list_top_k,
    penalise,
    rough_weights,
)
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.math64 import exp64, f64_from_bits
from edgetok.kernels_cpu.simd.memory import (
    read_f32,
    read_f64,
    read_i32,
    read_i64,
    write_f64,
    write_i64,
)

# Weights from these on usually hold the nucleus, so that the others are not looked at.
_BARS = (2.0**-6, 2.0**-12, 2.0**-18)


@outline
def _draw_any(rough: int, size: int, sums: int, goal: float) -> int:
    """The token at which the sum of rough weights passes `goal`: first its BLOCK, then itself."""
    before = 0.0
    offset = 0.0
    chosen = 0
    for first in range(0, size, BLOCK):
        here = read_f64(sums + first // (BLOCK // 8))
        if here > 0.0:
            chosen = first
            offset = before
        before += here
        if before > goal:
            break
    place = chosen
    before = offset
    for i in range(chosen, min(chosen + BLOCK, size)):
        w = np.float64(read_f32(rough + 4 * i))
        if w > 0.0:
            place = i
        before += w
        if before > goal:
            break
    return place


@outline
def _draw(
    x: int,
    ids: int,
    count: int,
    high: float,
    options: int,
    total: float,
    share: float,
    weights: int,
) -> Any:
    """One of the listed tokens. top-p is a part of `total`; 0 means the sum of their weights."""
    temperature = f64_from_bits(read_i64(options + 8 * OPTION_TEMPERATURE))
    top_p = f64_from_bits(read_i64(options + 8 * OPTION_TOP_P))
    min_p = f64_from_bits(read_i64(options + 8 * OPTION_MIN_P))
    order = weights + 8 * count
    found = 0.0
    for j in range(count):
        v = np.float64(read_f32(x + 4 * np.int64(read_i32(ids + 4 * j))))
        w = exp64((v - np.float64(high)) / temperature)
        write_f64(weights + 8 * j, w)
        write_f64(order + 8 * j, w)
        found += w
    bar = 0.0
    equals = count
    if top_p < 1.0:
        goal = top_p * (total if total > 0.0 else found)
        equals = nucleus(order, count, goal, order + 8 * count)
        bar = read_f64(order + 8 * count)
    kept = 0.0
    for j in range(count):
        w = read_f64(weights + 8 * j)
        keep = w > bar
        if w == bar and equals > 0:
            equals -= 1
            keep = True
        if not keep or w < min_p:
            w = 0.0
            write_f64(weights + 8 * j, w)
        kept += w
    goal = share * kept
    place = 0
    before = 0.0
    for j in range(count):
        w = read_f64(weights + 8 * j)
        if w > 0.0:
            place = j
        before += w
        if before > goal:
            break
    return np.int64(read_i32(ids + 4 * place))


@outline
def _draw_nucleus(
    x: int,
    size: int,
    ids: int,
    rough: int,
    maxima: int,
    high: float,
    options: int,
    total: float,
    top_p: float,
    share: float,
    weights: int,
) -> Any:
    """One of the most likely tokens of a large vocabulary."""
    for bar in _BARS:
        if list_heavy(rough, size, maxima, bar, ids) > top_p * total * (1.0 + 1e-6):
            break
    else:
        list_heavy(rough, size, maxima, 0.0, ids)
    return _draw(x, ids, read_i64(ids - 8), high, options, total, share, weights)


@inline
def _choose(instr: int, x: int, size: int, options: int, scratch: int) -> Any:
    """The token, or -1 - token."""
    blocks = (size + BLOCK - 1) // BLOCK
    maxima = scratch
    sums = scratch + (4 * blocks + 7) // 8 * 8
    ids = sums + 8 * blocks + 8
    rough = ids + 4 * BLOCK * blocks
    weights = rough + 4 * BLOCK * blocks
    best = largest(x, size, maxima)
    temperature = f64_from_bits(read_i64(options + 8 * OPTION_TEMPERATURE))
    if best < 0 or temperature == 0.0:
        return best
    high = read_f32(x + 4 * best)
    top_k = read_i64(options + 8 * OPTION_TOP_K)
    top_p = f64_from_bits(read_i64(options + 8 * OPTION_TOP_P))
    min_p = f64_from_bits(read_i64(options + 8 * OPTION_MIN_P))
    seed, index = read_i64(instr + 8 * SAMPLE_SEED), read_i64(instr + 8 * SAMPLE_INDEX)
    share = random_share(seed, index)
    if top_k > 0 and top_k < size:
        count = list_top_k(x, size, maxima, top_k, ids, weights)
        return _draw(x, ids, count, high, options, 0.0, share, weights)
    if top_p >= 1.0 and min_p > 0.0:
        count = list_above(x, size, maxima, high, temperature, min_p, ids)
        return _draw(x, ids, count, high, options, 0.0, share, weights)
    total = rough_weights(x, size, high, temperature, rough, maxima, sums)
    if size > FEW:
        if top_p < 1.0:
            return _draw_nucleus(
                x, size, ids, rough, maxima, high, options, total, top_p, share, weights
            )
        return _draw_any(rough, size, sums, share * total)
    list_heavy(rough, size, maxima, 0.0, ids)
    return _draw(x, ids, read_i64(ids - 8), high, options, 0.0, share, weights)


@kernel
def sample(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Choose one token."""
    if tid != 0:
        return
    x = read_i64(instr + 8 * SAMPLE_LOGITS)
    size = read_i64(instr + 8 * SAMPLE_SIZE)
    options = read_i64(instr + 8 * SAMPLE_OPTIONS)
    scratch = read_i64(instr + 8 * SAMPLE_SCRATCH)
    seen = read_i64(instr + 8 * SAMPLE_SEEN_COUNT)
    mask = read_i64(instr + 8 * SAMPLE_MASK)
    if seen > 0 or mask != 0:
        copy_logits(x, scratch, size)
        x = scratch
        scratch += 4 * ((size + BLOCK - 1) // BLOCK * BLOCK)
        if seen > 0:
            penalise(x, read_i64(instr + 8 * SAMPLE_SEEN), seen, options)
        if mask != 0:
            exclude(x, mask, size)
    write_i64(read_i64(instr + 8 * SAMPLE_OUT), _choose(instr, x, size, options, scratch))
