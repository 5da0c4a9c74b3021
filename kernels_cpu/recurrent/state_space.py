"""The recurrence of Mamba2, over the rows of each part, and its step sizes.

For each head, with state S [state_dim, head_dim], B and C of its group and x of its own:

    S = exp(-exp(log_rate) * step) * S + outer(B, step * x)
    result = C S + skip * x

An element of S needs no other, and a column of the result one column of S. So columns are shared
out over the threads, up to four vectors of them at a time, and rows of a part follow each other in
one thread, two of them for each time that S is read. The order of operations on an element, and of
the sum over the rows of S, is the same for one token as for two, so a token's bits do not depend on
where a prompt was cut.

S is float32 and lies in tiles of STATE_TILE columns, as in `recurrent/gated_delta.py`, in the
same ring of STATE_ROWS states behind the latest tokens. Slots: `recurrent/launch.py`.

Sources: arXiv 2405.21060, section 7; transformers `GraniteMoeHybridMambaLayer`.
"""

from __future__ import annotations

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
    SPACE_GROUPS,
    SPACE_HEAD_DIM,
    SPACE_HEADS,
    SPACE_LOG_RATE,
    SPACE_RESULT,
    SPACE_ROWS,
    SPACE_SKIP,
    SPACE_SOURCE,
    SPACE_STATE,
    SPACE_STATE_DIM,
    SPACE_STEPS,
    STATE_TILE,
    STEPS_BIAS,
    STEPS_HEADS,
    STEPS_VALUE,
)
from edgetok.kernels_cpu.recurrent.tiles import FOUR, ROW_BYTES, V1, V2, V3, WIDE, clear
from edgetok.kernels_cpu.simd import math as vmath
from edgetok.kernels_cpu.simd.emit import LANES, inline, outline
from edgetok.kernels_cpu.simd.memory import (
    load_f32,
    load_f32_first,
    read_f32,
    read_i64,
    store_f32,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import add, fma, mul, splat_f32, sub, zero_f32


@kernel
def state_steps(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Compute this thread's share of rows: value = softplus(value + bias)."""
    value = read_i64(instr + 8 * STEPS_VALUE)
    bias = read_i64(instr + 8 * STEPS_BIAS)
    heads = read_i64(instr + 8 * STEPS_HEADS)
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    for row in range(tokens * tid // threads, tokens * (tid + 1) // threads):
        for i in range(0, heads, LANES):
            count = min(LANES, heads - i)
            at = value + 4 * (heads * row + i)
            x = add(load_f32_first(at, count), load_f32_first(bias + 4 * i, count))
            store_f32_first(at, vmath.softplus(x), count)


@inline
def _kept(rate, step):  # type: ignore[no-untyped-def]
    """The factor of a state from the token before."""
    return vmath.exp(mul(rate, splat_f32(read_f32(step))))


@inline
def _new(step, x, count):  # type: ignore[no-untyped-def]
    """step * x, of the columns that there are."""
    return mul(splat_f32(read_f32(step)), load_f32_first(x, count))


@inline
def _write(y, x, total, skip, count):  # type: ignore[no-untyped-def]
    """Store C S + skip * x."""
    value = fma(skip, load_f32_first(x, count), total)
    if count == LANES:  # masked stores are slow on AVX2
        store_f32(y, value)
    else:
        store_f32_first(y, value, count)


@outline
def _columns(
    x: int,
    b: int,
    c: int,
    step: int,
    y: int,
    states: int,
    count: int,
    state_dim: int,
    log_rate: float,
    skip_factor: float,
    source_bytes: int,
    step_bytes: int,
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
    rate = sub(zero_f32(), vmath.exp(splat_f32(log_rate)))
    skip = splat_f32(skip_factor)
    if seen == 0:
        clear(here, state_dim)
    row = 0
    while row < rows:
        kept = _kept(rate, step)
        d0, d1 = _new(step, x, c0), _new(step, x + V1, c1)
        d2, d3 = _new(step, x + V2, c2), _new(step, x + V3, c3)
        m0 = m1 = m2 = m3 = zero_f32()
        if rows - row >= 2 + ring:  # states that the ring will not hold
            b_next, c_next, x_next = b + source_bytes, c + source_bytes, x + source_bytes
            step_next, y_next = step + step_bytes, y + result_bytes
            kept_next = _kept(rate, step_next)
            e0, e1 = _new(step_next, x_next, c0), _new(step_next, x_next + V1, c1)
            e2, e3 = _new(step_next, x_next + V2, c2), _new(step_next, x_next + V3, c3)
            n0 = n1 = n2 = n3 = zero_f32()
            for i in range(state_dim):
                at = here + ROW_BYTES * i
                key = splat_f32(read_f32(b + 4 * i))
                query = splat_f32(read_f32(c + 4 * i))
                key_next = splat_f32(read_f32(b_next + 4 * i))
                query_next = splat_f32(read_f32(c_next + 4 * i))
                s0 = fma(key, d0, mul(load_f32(at), kept))
                s1 = fma(key, d1, mul(load_f32(at + V1), kept))
                m0 = fma(s0, query, m0)
                m1 = fma(s1, query, m1)
                s0 = fma(key_next, e0, mul(s0, kept_next))
                s1 = fma(key_next, e1, mul(s1, kept_next))
                n0 = fma(s0, query_next, n0)
                n1 = fma(s1, query_next, n1)
                store_f32(at, s0)
                store_f32(at + V1, s1)
                if FOUR:
                    s2 = fma(key, d2, mul(load_f32(at + V2), kept))
                    s3 = fma(key, d3, mul(load_f32(at + V3), kept))
                    m2 = fma(s2, query, m2)
                    m3 = fma(s3, query, m3)
                    s2 = fma(key_next, e2, mul(s2, kept_next))
                    s3 = fma(key_next, e3, mul(s3, kept_next))
                    n2 = fma(s2, query_next, n2)
                    n3 = fma(s3, query_next, n3)
                    store_f32(at + V2, s2)
                    store_f32(at + V3, s3)
            _write(y_next, x_next, n0, skip, c0)
            _write(y_next + V1, x_next + V1, n1, skip, c1)
            _write(y_next + V2, x_next + V2, n2, skip, c2)
            _write(y_next + V3, x_next + V3, n3, skip, c3)
            passed = 2
        else:
            there = here
            if row >= rows - ring:
                there = states + state_bytes * ((seen + row) % ring)
            for i in range(state_dim):
                at = here + ROW_BYTES * i
                to = there + ROW_BYTES * i
                key = splat_f32(read_f32(b + 4 * i))
                query = splat_f32(read_f32(c + 4 * i))
                s0 = fma(key, d0, mul(load_f32(at), kept))
                s1 = fma(key, d1, mul(load_f32(at + V1), kept))
                m0 = fma(s0, query, m0)
                m1 = fma(s1, query, m1)
                store_f32(to, s0)
                store_f32(to + V1, s1)
                if FOUR:
                    s2 = fma(key, d2, mul(load_f32(at + V2), kept))
                    s3 = fma(key, d3, mul(load_f32(at + V3), kept))
                    m2 = fma(s2, query, m2)
                    m3 = fma(s3, query, m3)
                    store_f32(to + V2, s2)
                    store_f32(to + V3, s3)
            here = there
            passed = 1
        _write(y, x, m0, skip, c0)
        _write(y + V1, x + V1, m1, skip, c1)
        _write(y + V2, x + V2, m2, skip, c2)
        _write(y + V3, x + V3, m3, skip, c3)
        x += passed * source_bytes
        b += passed * source_bytes
        c += passed * source_bytes
        step += passed * step_bytes
        y += passed * result_bytes
        row += passed


@kernel
def state_space(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Run this thread's share of columns over every part's rows."""
    source = read_i64(instr + 8 * SPACE_SOURCE)
    steps = read_i64(instr + 8 * SPACE_STEPS)
    result = read_i64(instr + 8 * SPACE_RESULT)
    log_rate = read_i64(instr + 8 * SPACE_LOG_RATE)
    skip = read_i64(instr + 8 * SPACE_SKIP)
    heads = read_i64(instr + 8 * SPACE_HEADS)
    groups = read_i64(instr + 8 * SPACE_GROUPS)
    head_dim = read_i64(instr + 8 * SPACE_HEAD_DIM)
    state_dim = read_i64(instr + 8 * SPACE_STATE_DIM)
    ring = read_i64(instr + 8 * SPACE_ROWS)
    state = read_i64(instr + 8 * SPACE_STATE)
    width = heads * head_dim
    source_bytes = 4 * (width + 2 * groups * state_dim)
    tiles = (head_dim + STATE_TILE - 1) // STATE_TILE
    tile_bytes = ROW_BYTES * state_dim
    runs = (head_dim + WIDE - 1) // WIDE
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
            group = head * groups // heads
            tile = head * tiles + column // STATE_TILE
            _columns(
                row + 4 * (head_dim * head + column),
                row + 4 * (width + state_dim * group),
                row + 4 * (width + state_dim * (groups + group)),
                steps + 4 * (heads * first + head),
                result + 4 * (width * first + head_dim * head + column),
                states + tile_bytes * tile + 4 * (column % STATE_TILE),
                min(WIDE, head_dim - column),
                state_dim,
                read_f32(log_rate + 4 * head),
                read_f32(skip + 4 * head),
                source_bytes,
                4 * heads,
                4 * width,
                4 * heads * tiles * state_dim * STATE_TILE,
                seen,
                rows,
                ring,
            )
