"""The gated delta rule, over the rows of each part, and its gates.

For each head of values, with state S [key_dim, value_dim], q, k and v after their convolution:

    q, k = scale * q / sqrt(sum(q^2) + 1e-6), k / sqrt(sum(k^2) + 1e-6)
    S = exp(decay) * S
    S = S + outer(k, beta * (v - k S))
    result = q S

A column of S needs no other, so columns are shared out over the threads, up to four vectors of them
at a time; rows of a part follow each other in one thread. While S is changed for one row, q S and
the next row's k S are added up, so that S is read once a row: four multiplications of each element,
of which none waits for a sum. S is float32, and lies in tiles of STATE_TILE columns, [tiles,
key_dim, STATE_TILE] for each head, so that what a thread goes over is one run of memory.

A cache has a ring of STATE_ROWS states; the state behind a token is written beside the one before,
so that the latest tokens can be taken back. Sums go over the rows of S one after the other,
whatever rows a run has, and a column's bits depend on nothing else. Slots: `recurrent/launch.py`.

Sources: arXiv 2412.06464, section 3; transformers `torch_recurrent_gated_delta_rule`.
"""

from __future__ import annotations

import math

import numpy as np

from edgetok.kernels_cpu.program.abi import (
    CTX_PART_TABLE,
    CTX_PARTS,
    CTX_TOKENS,
    PART_FIRST,
    PART_ROWS,
    PART_SEEN,
    PART_SLOTS,
    PART_STATES,
    kernel,
)
from edgetok.kernels_cpu.recurrent.launch import (
    DELTA_BETA,
    DELTA_DECAY,
    DELTA_KEY_DIM,
    DELTA_KEY_HEADS,
    DELTA_RESULT,
    DELTA_ROWS,
    DELTA_SCALE,
    DELTA_SOURCE,
    DELTA_STATE,
    DELTA_VALUE_DIM,
    DELTA_VALUE_HEADS,
    GATES_BETA,
    GATES_BIAS,
    GATES_DECAY,
    GATES_HEADS,
    GATES_LOG_RATE,
    STATE_TILE,
)
from edgetok.kernels_cpu.recurrent.tiles import FOUR, ROW_BYTES, V1, V2, V3, WIDE, clear
from edgetok.kernels_cpu.simd import math as vmath
from edgetok.kernels_cpu.simd.emit import LANES, inline, outline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32,
    load_f32_first,
    read_f32,
    read_i64,
    store_f32,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import add, fma, mul, splat_f32, sub, sum_lanes, zero_f32

_EPS = np.float32(1e-6)
_ONE = np.float32(1.0)


@kernel
def delta_gates(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Compute this thread's share of rows."""
    beta = read_i64(instr + 8 * GATES_BETA)
    decay = read_i64(instr + 8 * GATES_DECAY)
    log_rate = read_i64(instr + 8 * GATES_LOG_RATE)
    bias = read_i64(instr + 8 * GATES_BIAS)
    heads = read_i64(instr + 8 * GATES_HEADS)
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    for row in range(tokens * tid // threads, tokens * (tid + 1) // threads):
        for i in range(0, heads, LANES):
            count = min(LANES, heads - i)
            at = 4 * (heads * row + i)
            store_f32_first(beta + at, vmath.sigmoid(load_f32_first(beta + at, count)), count)
            x = add(load_f32_first(decay + at, count), load_f32_first(bias + 4 * i, count))
            rate = sub(zero_f32(), vmath.exp(load_f32_first(log_rate + 4 * i, count)))
            store_f32_first(decay + at, mul(rate, vmath.softplus(x)), count)


@inline
def _inverse_norm(x, size):  # type: ignore[no-untyped-def]
    """1 / sqrt(sum(x^2) + 1e-6)."""
    total = zero_f32()
    other = zero_f32()
    i = 0
    while i + 2 * LANES <= size:  # two sums, as each waits for its last product
        v = load_f32(x + 4 * i)
        w = load_f32(x + 4 * (i + LANES))
        total = fma(v, v, total)
        other = fma(w, w, other)
        i += 2 * LANES
    while i < size:
        v = load_f32_first(x + 4 * i, min(LANES, size - i))
        total = fma(v, v, total)
        i += LANES
    total = add(total, other)
    return _ONE / math.sqrt(sum_lanes(total) + _EPS)


@outline
def _columns(
    q: int,
    k: int,
    v: int,
    beta: int,
    decay: int,
    y: int,
    states: int,
    count: int,
    key_dim: int,
    scale: float,
    source_bytes: int,
    gate_bytes: int,
    result_bytes: int,
    state_bytes: int,
    seen: int,
    rows: int,
    ring: int,
) -> None:
    """`count` columns of one head over one part's rows; addresses are of the first row.

    `states` is the address of the first column in the ring's first state.
    """
    here = states + state_bytes * ((seen + ring - 1) % ring)
    c0 = min(count, LANES)
    c1 = min(max(count - LANES, 0), LANES)
    c2 = min(max(count - 2 * LANES, 0), LANES)
    c3 = min(max(count - 3 * LANES, 0), LANES)
    if seen == 0:
        clear(here, key_dim)
    m0 = m1 = m2 = m3 = zero_f32()
    for i in range(key_dim):
        at = here + ROW_BYTES * i
        key = splat_f32(read_f32(k + 4 * i))
        m0 = fma(load_f32(at), key, m0)
        m1 = fma(load_f32(at + V1), key, m1)
        if FOUR:
            m2 = fma(load_f32(at + V2), key, m2)
            m3 = fma(load_f32(at + V3), key, m3)
    for row in range(rows):
        # States that the ring will not hold are written over each other.
        there = here
        if row >= rows - ring:
            there = states + state_bytes * ((seen + row) % ring)
        k_factor = _inverse_norm(k, key_dim)
        q_factor = splat_f32(scale * _inverse_norm(q, key_dim))
        kept = vmath.exp(splat_f32(read_f32(decay)))
        factor = mul(kept, splat_f32(k_factor))
        change = splat_f32(read_f32(beta) * k_factor)
        d0 = mul(change, sub(load_f32_first(v, c0), mul(m0, factor)))
        d1 = mul(change, sub(load_f32_first(v + V1, c1), mul(m1, factor)))
        d2 = mul(change, sub(load_f32_first(v + V2, c2), mul(m2, factor)))
        d3 = mul(change, sub(load_f32_first(v + V3, c3), mul(m3, factor)))
        m0 = m1 = m2 = m3 = zero_f32()
        n0 = n1 = n2 = n3 = zero_f32()
        if row + 1 < rows:
            after = k + source_bytes
            for i in range(key_dim):
                at = here + ROW_BYTES * i
                to = there + ROW_BYTES * i
                key = splat_f32(read_f32(k + 4 * i))
                query = splat_f32(read_f32(q + 4 * i))
                next_key = splat_f32(read_f32(after + 4 * i))
                s0 = fma(key, d0, mul(load_f32(at), kept))
                s1 = fma(key, d1, mul(load_f32(at + V1), kept))
                store_f32(to, s0)
                store_f32(to + V1, s1)
                n0 = fma(s0, query, n0)
                n1 = fma(s1, query, n1)
                m0 = fma(s0, next_key, m0)
                m1 = fma(s1, next_key, m1)
                if FOUR:
                    s2 = fma(key, d2, mul(load_f32(at + V2), kept))
                    s3 = fma(key, d3, mul(load_f32(at + V3), kept))
                    store_f32(to + V2, s2)
                    store_f32(to + V3, s3)
                    n2 = fma(s2, query, n2)
                    n3 = fma(s3, query, n3)
                    m2 = fma(s2, next_key, m2)
                    m3 = fma(s3, next_key, m3)
        else:
            for i in range(key_dim):
                at = here + ROW_BYTES * i
                to = there + ROW_BYTES * i
                key = splat_f32(read_f32(k + 4 * i))
                query = splat_f32(read_f32(q + 4 * i))
                s0 = fma(key, d0, mul(load_f32(at), kept))
                s1 = fma(key, d1, mul(load_f32(at + V1), kept))
                store_f32(to, s0)
                store_f32(to + V1, s1)
                n0 = fma(s0, query, n0)
                n1 = fma(s1, query, n1)
                if FOUR:
                    s2 = fma(key, d2, mul(load_f32(at + V2), kept))
                    s3 = fma(key, d3, mul(load_f32(at + V3), kept))
                    store_f32(to + V2, s2)
                    store_f32(to + V3, s3)
                    n2 = fma(s2, query, n2)
                    n3 = fma(s3, query, n3)
        if count == 4 * LANES:  # masked stores are slow on AVX2
            store_f32(y, mul(n0, q_factor))
            store_f32(y + V1, mul(n1, q_factor))
            store_f32(y + V2, mul(n2, q_factor))
            store_f32(y + V3, mul(n3, q_factor))
        else:
            store_f32_first(y, mul(n0, q_factor), c0)
            store_f32_first(y + V1, mul(n1, q_factor), c1)
            store_f32_first(y + V2, mul(n2, q_factor), c2)
            store_f32_first(y + V3, mul(n3, q_factor), c3)
        here = there
        q += source_bytes
        k += source_bytes
        v += source_bytes
        beta += gate_bytes
        decay += gate_bytes
        y += result_bytes


@kernel
def delta_rule(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Run this thread's share of columns over every part's rows."""
    source = read_i64(instr + 8 * DELTA_SOURCE)
    beta = read_i64(instr + 8 * DELTA_BETA)
    decay = read_i64(instr + 8 * DELTA_DECAY)
    result = read_i64(instr + 8 * DELTA_RESULT)
    key_heads = read_i64(instr + 8 * DELTA_KEY_HEADS)
    heads = read_i64(instr + 8 * DELTA_VALUE_HEADS)
    key_dim = read_i64(instr + 8 * DELTA_KEY_DIM)
    value_dim = read_i64(instr + 8 * DELTA_VALUE_DIM)
    scale = f32_from_bits(read_i64(instr + 8 * DELTA_SCALE))
    ring = read_i64(instr + 8 * DELTA_ROWS)
    state = read_i64(instr + 8 * DELTA_STATE)
    width = key_heads * key_dim
    source_bytes = 4 * (2 * width + heads * value_dim)
    tiles = (value_dim + STATE_TILE - 1) // STATE_TILE
    tile_bytes = ROW_BYTES * key_dim
    runs = (value_dim + WIDE - 1) // WIDE
    begin = heads * runs * tid // threads
    end = heads * runs * (tid + 1) // threads
    for p in range(read_i64(ctx + 8 * CTX_PARTS)):
        part = read_i64(ctx + 8 * CTX_PART_TABLE) + 8 * PART_SLOTS * p
        first = read_i64(part + 8 * PART_FIRST)
        rows = read_i64(part + 8 * PART_ROWS)
        seen = read_i64(part + 8 * PART_SEEN)
        states = read_i64(read_i64(part + 8 * PART_STATES) + 8 * state)
        row = source + source_bytes * first
        for unit in range(begin, end):
            head = unit // runs
            column = unit % runs * WIDE
            key_head = head * key_heads // heads
            tile = head * tiles + column // STATE_TILE
            _columns(
                row + 4 * key_dim * key_head,
                row + 4 * (width + key_dim * key_head),
                row + 4 * (2 * width + value_dim * head + column),
                beta + 4 * (heads * first + head),
                decay + 4 * (heads * first + head),
                result + 4 * (value_dim * (heads * first + head) + column),
                states + tile_bytes * tile + 4 * (column % STATE_TILE),
                min(WIDE, value_dim - column),
                key_dim,
                scale,
                source_bytes,
                4 * heads,
                4 * heads * value_dim,
                4 * heads * tiles * key_dim * STATE_TILE,
                seen,
                rows,
                ring,
            )
