"""The recurrence of Mamba2, over the rows of each part, and its step sizes.

For each head, with state S [state_dim, head_dim], B and C of its group and x of its own:

    S = exp(-exp(log_rate) * step) * S + outer(B, step * x)
    result = C S + skip * x

An element of S needs no other, and a column of the result one column of S. So columns are shared
out over the threads, two vectors of them at a time, and rows of a part follow each other in one
thread, four of them for each time that S is read: an element stays in a register meanwhile. The
order of operations on an element, and of the sum over the rows of S, is the same for one token as
for four, so a token's bits do not depend on where a prompt was cut.

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

_WIDE = 2 * LANES  # columns that are computed together
_ROW_BYTES = 4 * STATE_TILE
_TOGETHER = 4  # tokens


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
    store_f32_first(y, fma(skip, load_f32_first(x, count), total), count)


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
    low = min(count, LANES)
    high = count - low
    rate = sub(zero_f32(), vmath.exp(splat_f32(log_rate)))
    skip = splat_f32(skip_factor)
    if seen == 0:
        for i in range(state_dim):
            store_f32(here + _ROW_BYTES * i, zero_f32())
            store_f32(here + _ROW_BYTES * i + 4 * LANES, zero_f32())
    row = 0
    while rows - row >= _TOGETHER + ring:  # states that the ring will not hold
        b1, b2, b3 = b + source_bytes, b + 2 * source_bytes, b + 3 * source_bytes
        c1, c2, c3 = c + source_bytes, c + 2 * source_bytes, c + 3 * source_bytes
        x1, x2, x3 = x + source_bytes, x + 2 * source_bytes, x + 3 * source_bytes
        step1, step2, step3 = step + step_bytes, step + 2 * step_bytes, step + 3 * step_bytes
        y1, y2, y3 = y + result_bytes, y + 2 * result_bytes, y + 3 * result_bytes
        k0, k1 = _kept(rate, step), _kept(rate, step1)
        k2, k3 = _kept(rate, step2), _kept(rate, step3)
        d00, d01 = _new(step, x, low), _new(step, x + 4 * low, high)
        d10, d11 = _new(step1, x1, low), _new(step1, x1 + 4 * low, high)
        d20, d21 = _new(step2, x2, low), _new(step2, x2 + 4 * low, high)
        d30, d31 = _new(step3, x3, low), _new(step3, x3 + 4 * low, high)
        m00 = m01 = m10 = m11 = m20 = m21 = m30 = m31 = zero_f32()
        for i in range(state_dim):
            at = here + _ROW_BYTES * i
            s0 = load_f32(at)
            s1 = load_f32(at + 4 * LANES)
            key = splat_f32(read_f32(b + 4 * i))
            query = splat_f32(read_f32(c + 4 * i))
            s0 = fma(key, d00, mul(s0, k0))
            s1 = fma(key, d01, mul(s1, k0))
            m00 = fma(s0, query, m00)
            m01 = fma(s1, query, m01)
            key = splat_f32(read_f32(b1 + 4 * i))
            query = splat_f32(read_f32(c1 + 4 * i))
            s0 = fma(key, d10, mul(s0, k1))
            s1 = fma(key, d11, mul(s1, k1))
            m10 = fma(s0, query, m10)
            m11 = fma(s1, query, m11)
            key = splat_f32(read_f32(b2 + 4 * i))
            query = splat_f32(read_f32(c2 + 4 * i))
            s0 = fma(key, d20, mul(s0, k2))
            s1 = fma(key, d21, mul(s1, k2))
            m20 = fma(s0, query, m20)
            m21 = fma(s1, query, m21)
            key = splat_f32(read_f32(b3 + 4 * i))
            query = splat_f32(read_f32(c3 + 4 * i))
            s0 = fma(key, d30, mul(s0, k3))
            s1 = fma(key, d31, mul(s1, k3))
            m30 = fma(s0, query, m30)
            m31 = fma(s1, query, m31)
            store_f32(at, s0)
            store_f32(at + 4 * LANES, s1)
        _write(y, x, m00, skip, low)
        _write(y + 4 * low, x + 4 * low, m01, skip, high)
        _write(y1, x1, m10, skip, low)
        _write(y1 + 4 * low, x1 + 4 * low, m11, skip, high)
        _write(y2, x2, m20, skip, low)
        _write(y2 + 4 * low, x2 + 4 * low, m21, skip, high)
        _write(y3, x3, m30, skip, low)
        _write(y3 + 4 * low, x3 + 4 * low, m31, skip, high)
        x += _TOGETHER * source_bytes
        b += _TOGETHER * source_bytes
        c += _TOGETHER * source_bytes
        step += _TOGETHER * step_bytes
        y += _TOGETHER * result_bytes
        row += _TOGETHER
    while row < rows:
        there = here
        if row >= rows - ring:
            there = states + state_bytes * ((seen + row) % ring)
        k0 = _kept(rate, step)
        d00, d01 = _new(step, x, low), _new(step, x + 4 * low, high)
        m00 = m01 = zero_f32()
        for i in range(state_dim):
            at = _ROW_BYTES * i
            key = splat_f32(read_f32(b + 4 * i))
            query = splat_f32(read_f32(c + 4 * i))
            s0 = fma(key, d00, mul(load_f32(here + at), k0))
            s1 = fma(key, d01, mul(load_f32(here + at + 4 * LANES), k0))
            m00 = fma(s0, query, m00)
            m01 = fma(s1, query, m01)
            store_f32(there + at, s0)
            store_f32(there + at + 4 * LANES, s1)
        _write(y, x, m00, skip, low)
        _write(y + 4 * low, x + 4 * low, m01, skip, high)
        here = there
        x += source_bytes
        b += source_bytes
        c += source_bytes
        step += step_bytes
        y += result_bytes
        row += 1


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
    tile_bytes = _ROW_BYTES * state_dim
    runs = (head_dim + _WIDE - 1) // _WIDE
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
            column = unit % runs * _WIDE
            group = head * groups // heads
            tile = head * tiles + column // STATE_TILE
            _columns(
                row + 4 * (head_dim * head + column),
                row + 4 * (width + state_dim * group),
                row + 4 * (width + state_dim * (groups + group)),
                steps + 4 * (heads * first + head),
                result + 4 * (width * first + head_dim * head + column),
                states + tile_bytes * tile + 4 * (column % STATE_TILE),
                min(_WIDE, head_dim - column),
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
