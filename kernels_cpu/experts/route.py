"""The router's choice, and the choices sorted by expert.

    p = softmax(scores) or sigmoid(scores)
    chosen = the `top` experts with the largest p + bias, best first; of equals the first
    share = factor * p[chosen] (/ (sum of p[chosen] + eps)) (* scales[chosen])

One thread does all of it: even 256 tokens of 128 experts take less time than one expert's product.
A token's choice depends on its scores alone. Slots and lists: `experts/launch.py`; the truth:
`reference.route`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.experts.launch import (
    GROUP_EXPERT,
    GROUP_FIRST,
    GROUP_ROWS,
    GROUP_SLOTS,
    LISTS_HEAD,
    ROUTE_BIAS,
    ROUTE_CHOSEN,
    ROUTE_EXPERTS,
    ROUTE_FACTOR,
    ROUTE_LISTS,
    ROUTE_NORMED,
    ROUTE_SCALES,
    ROUTE_SCORES,
    ROUTE_SHARES,
    ROUTE_SIGMOID,
    ROUTE_SUM_EPS,
    ROUTE_TOKENS,
    ROUTE_TOP,
)
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd import math as vmath
from edgetok.kernels_cpu.simd.emit import LANES, outline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32_first,
    read_f32,
    read_i64,
    store_f32_first,
    write_f32,
    write_i64,
)
from edgetok.kernels_cpu.simd.ops import splat_f32, sub

_LOWEST = np.float32(-np.inf)


@outline
def _probabilities(scores: int, out: int, experts: int, sigmoid: int) -> Any:
    """Sigmoids, or what softmax divides by the sum that is returned."""
    greatest = np.float32(0.0)
    if sigmoid == 0:
        greatest = read_f32(scores)
        for e in range(1, experts):
            score = read_f32(scores + 4 * e)
            if score > greatest:
                greatest = score
    for e in range(0, experts, LANES):
        count = min(LANES, experts - e)
        v = load_f32_first(scores + 4 * e, count)
        v = vmath.sigmoid(v) if sigmoid != 0 else vmath.exp(sub(v, splat_f32(greatest)))
        store_f32_first(out + 4 * e, v, count)
    if sigmoid != 0:
        return np.float32(1.0)
    total = np.float32(0.0)
    for e in range(experts):
        total += read_f32(out + 4 * e)
    return total


@outline
def _choose(p: int, whole: Any, bias: int, chosen: int, keys: int, experts: int, top: int) -> None:
    """Numbers of the largest p / whole + bias; `keys` is room for `top` of those sums."""
    for j in range(top):  # NaN is above nothing: then these stay, and are experts that exist
        write_f32(chosen + 4 * j, np.float32(j))
        write_f32(keys + 4 * j, _LOWEST)
    for e in range(experts):
        key = read_f32(p + 4 * e)
        if bias != 0:
            key = key / whole + read_f32(bias + 4 * e)
        if key > read_f32(keys + 4 * (top - 1)):
            j = top - 1
            while j > 0 and key > read_f32(keys + 4 * (j - 1)):
                write_f32(keys + 4 * j, read_f32(keys + 4 * (j - 1)))
                write_f32(chosen + 4 * j, read_f32(chosen + 4 * (j - 1)))
                j -= 1
            write_f32(keys + 4 * j, key)
            write_f32(chosen + 4 * j, np.float32(e))


@outline
def _sort(chosen: int, lists: int, room: int, tokens: int, experts: int, top: int) -> None:
    """Fill the lists from the numbers of the chosen experts."""
    groups = lists + 8 * LISTS_HEAD
    token_of = groups + 8 * GROUP_SLOTS * experts
    row_of = token_of + 8 * room * top
    counters = row_of + 8 * room * top
    for e in range(experts):
        write_i64(counters + 8 * e, 0)
    for i in range(tokens * top):
        at = counters + 8 * int(read_f32(chosen + 4 * i))
        write_i64(at, read_i64(at) + 1)
    first = 0
    count = 0
    for e in range(experts):
        rows = read_i64(counters + 8 * e)
        write_i64(counters + 8 * e, first)
        if rows != 0:
            group = groups + 8 * GROUP_SLOTS * count
            write_i64(group + 8 * GROUP_EXPERT, e)
            write_i64(group + 8 * GROUP_FIRST, first)
            write_i64(group + 8 * GROUP_ROWS, rows)
            count += 1
        first += rows
    write_i64(lists, count)
    for i in range(tokens * top):
        at = counters + 8 * int(read_f32(chosen + 4 * i))
        row = read_i64(at)
        write_i64(at, row + 1)
        write_i64(row_of + 8 * i, row)
        write_i64(token_of + 8 * row, i // top)


@kernel
def route_experts(instr: int, ctx: int, tid: int, threads: int) -> None:
    """All of it, in the first thread."""
    if tid != 0:
        return
    scores = read_i64(instr + 8 * ROUTE_SCORES)
    chosen = read_i64(instr + 8 * ROUTE_CHOSEN)
    shares = read_i64(instr + 8 * ROUTE_SHARES)
    bias = read_i64(instr + 8 * ROUTE_BIAS)
    lists = read_i64(instr + 8 * ROUTE_LISTS)
    experts = read_i64(instr + 8 * ROUTE_EXPERTS)
    top = read_i64(instr + 8 * ROUTE_TOP)
    room = read_i64(instr + 8 * ROUTE_TOKENS)
    sigmoid = read_i64(instr + 8 * ROUTE_SIGMOID)
    normed = read_i64(instr + 8 * ROUTE_NORMED)
    sum_eps = f32_from_bits(read_i64(instr + 8 * ROUTE_SUM_EPS))
    factor = f32_from_bits(read_i64(instr + 8 * ROUTE_FACTOR))
    scales = read_i64(instr + 8 * ROUTE_SCALES)
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    p = lists + 8 * (LISTS_HEAD + (GROUP_SLOTS + 1) * experts + 2 * room * top)
    for t in range(tokens):
        whole = _probabilities(scores + 4 * experts * t, p, experts, sigmoid)
        best = chosen + 4 * top * t
        mine = shares + 4 * top * t
        _choose(p, whole, bias, best, mine, experts, top)
        total = np.float32(0.0)
        for j in range(top):
            share = read_f32(p + 4 * int(read_f32(best + 4 * j))) / whole
            write_f32(mine + 4 * j, share)
            total += share
        total += sum_eps
        for j in range(top):
            share = read_f32(mine + 4 * j)
            if normed != 0:
                share /= total
            share *= factor
            if scales != 0:
                share *= read_f32(scales + 4 * int(read_f32(best + 4 * j)))
            write_f32(mine + 4 * j, share)
    _sort(chosen, lists, room, tokens, experts, top)
