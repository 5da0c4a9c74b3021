"""Lower positions, for heads that evicted. Slots: `launch.py`.

Of a head's tokens in the order of their positions, those before `front` get their rank 0, 1, ...,
the others max(rank, position - `shift`): distances stay as they were, and what would lie before
position 0 is moved together there, in order.
"""

from __future__ import annotations

import numpy as np

from edgetok.kernels_cpu.attention.launch import EMPTY
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.elementwise.selection import sort_i64
from edgetok.kernels_cpu.eviction.launch import (
    EV_HEADS,
    EV_POSITIONS,
    EV_RECORD_SLOTS,
    EV_RECORDS,
    EV_SCRATCH,
    EV_SCRATCH_BYTES,
    EV_SLOTS,
    EV_TOKENS,
    RENUMBER_BY,
    RENUMBER_FRONT,
    RENUMBER_POSITIONS,
    RENUMBER_SHIFT,
)
from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.simd.memory import read_i32, read_i64, write_i32, write_i64


@kernel
def renumber(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Number the tokens of this thread's share of heads."""
    slots = read_i64(instr + 8 * EV_SLOTS)
    heads = read_i64(instr + 8 * EV_HEADS)
    shift = read_i64(instr + 8 * RENUMBER_SHIFT)
    front = read_i64(instr + 8 * RENUMBER_FRONT)
    order = read_i64(instr + 8 * EV_SCRATCH) + tid * read_i64(instr + 8 * EV_SCRATCH_BYTES)
    for head in range(share(heads, tid, threads), share(heads, tid + 1, threads)):
        record = read_i64(instr + 8 * EV_RECORDS) + 8 * EV_RECORD_SLOTS * head
        positions, tokens = read_i64(record + 8 * EV_POSITIONS), read_i64(record + 8 * EV_TOKENS)
        to = read_i64(instr + 8 * RENUMBER_POSITIONS) + 4 * slots * head
        by = read_i64(instr + 8 * RENUMBER_BY) + 4 * slots * head
        n = 0
        first = 0
        for s in range(slots):
            position = np.int64(read_i32(positions + 4 * s))
            write_i32(to + 4 * s, np.int32(EMPTY))
            write_i32(by + 4 * s, np.int32(0))
            if position != EMPTY:
                write_i64(order + 8 * n, position * 0x100000000 + s)
                n += 1
                if read_i32(tokens + 4 * s) < front:
                    first += 1
        sort_i64(order, n)
        for i in range(n):
            key = read_i64(order + 8 * i)
            s = key & 0xFFFFFFFF
            position = key // 0x100000000
            place = i if i < first else max(i, position - shift)
            write_i32(to + 4 * s, np.int32(place))
            write_i32(by + 4 * s, np.int32(place - position))
