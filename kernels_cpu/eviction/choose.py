"""Which slots each head gives up: those with the lowest scores. Slots: `launch.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.kv_append_steps import f32_bits
from edgetok.kernels_cpu.attention.launch import EMPTY
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.elementwise.selection import nth_smallest_i64, sort_i64
from edgetok.kernels_cpu.eviction.launch import (
    AROUND,
    CHOOSE_AROUND,
    CHOOSE_COUNTS,
    CHOOSE_FAR,
    CHOOSE_FRONT,
    CHOOSE_MOST_FAR,
    CHOOSE_OUT,
    CHOOSE_RECENT,
    CHOOSE_ROOM,
    CHOOSE_SCORES,
    EV_HEADS,
    EV_POSITIONS,
    EV_RECORD_SLOTS,
    EV_RECORDS,
    EV_SCRATCH,
    EV_SCRATCH_BYTES,
    EV_SLOTS,
    EV_TOKENS,
    OF_ALL,
    SCORE_OUT,
    SHARE_SCORES,
)
from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import (
    read_f32,
    read_f64,
    read_i32,
    read_i64,
    write_f32,
    write_f64,
    write_i32,
    write_i64,
)

_INFINITE = 0x7F800000  # bits of a float32
_NONE = np.int64(-(1 << 63))  # below every rank


@inline
def _kept(token: int, front: int, recent: int) -> Any:
    """Whether a token goes last."""
    return token < front or token >= recent


@inline
def _rank(score: float, token: int, protected: bool) -> Any:
    """An int64 that is lower for lower scores, of equal ones for older tokens."""
    bits = f32_bits(score + np.float32(0.0))  # -0 is 0
    if protected or score != score:
        bits = np.int64(_INFINITE)
    # As integers, the bits of positive numbers rise with them, those of negative ones fall.
    ordered = bits if bits < 0x80000000 else 0x80000000 - bits - 1
    return ordered * 0x100000000 + token


@outline
def _add_around(record: int, slots: int, scores: int, order: int) -> None:
    """Add to each token's score those of the AROUND held before it and after it.

    Definition: `edgetok/cache/policies/around.py`.

    Args:
        record: the head's.
        slots: how many.
        scores: address of float32 [slots], changed.
        order: address of int64 [slots], scratch.
    """
    positions, tokens = read_i64(record + 8 * EV_POSITIONS), read_i64(record + 8 * EV_TOKENS)
    n = 0
    for s in range(slots):
        if read_i32(positions + 4 * s) != EMPTY:
            write_i64(order + 8 * n, np.int64(read_i32(tokens + 4 * s)) * 0x100000000 + s)
            n += 1
    if n == 0:
        return
    sort_i64(order, n)
    first = read_f32(scores + 4 * (read_i64(order) & 0xFFFFFFFF))
    second, last = first, first  # scores of the two before, as they were
    for i in range(n):
        at = scores + 4 * (read_i64(order + 8 * i) & 0xFFFFFFFF)
        own = read_f32(at)
        total = second + last + own
        for j in range(i + 1, i + 1 + AROUND):
            next_one = read_i64(order + 8 * min(j, n - 1)) & 0xFFFFFFFF
            total += read_f32(scores + 4 * next_one)
        second, last = last, own
        write_f32(at, total)


@kernel
def window_scores(instr: int, ctx: int, tid: int, threads: int) -> None:
    """score = number of the token."""
    slots = read_i64(instr + 8 * EV_SLOTS)
    heads = read_i64(instr + 8 * EV_HEADS)
    for head in range(share(heads, tid, threads), share(heads, tid + 1, threads)):
        record = read_i64(instr + 8 * EV_RECORDS) + 8 * EV_RECORD_SLOTS * head
        positions, tokens = read_i64(record + 8 * EV_POSITIONS), read_i64(record + 8 * EV_TOKENS)
        out = read_i64(instr + 8 * SCORE_OUT) + 4 * slots * head
        for s in range(slots):
            held = read_i32(positions + 4 * s) != EMPTY
            score = np.float32(read_i32(tokens + 4 * s)) if held else np.float32(0.0)
            write_f32(out + 4 * s, score)


@kernel
def share_scores(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Definition: `edgetok/cache/policies/shared.py`."""
    if tid != 0:
        return
    slots = read_i64(instr + 8 * EV_SLOTS)
    heads = read_i64(instr + 8 * EV_HEADS)
    scores = read_i64(instr + 8 * SHARE_SCORES)
    usual = read_i64(instr + 8 * EV_SCRATCH)  # float64 [heads], then how many each holds
    order = usual + 16 * heads
    n = 0
    for head in range(heads):
        record = read_i64(instr + 8 * EV_RECORDS) + 8 * EV_RECORD_SLOTS * head
        positions, tokens = read_i64(record + 8 * EV_POSITIONS), read_i64(record + 8 * EV_TOKENS)
        write_f64(usual + 8 * head, 0.0)
        first = n
        for s in range(slots):
            if read_i32(positions + 4 * s) != EMPTY:
                token = np.int64(read_i32(tokens + 4 * s))
                write_i64(order + 8 * n, token * 0x100000000 + head * slots + s)
                n += 1
        write_i64(usual + 8 * (heads + head), n - first)
    sort_i64(order, n)
    for i in range(n):
        at = read_i64(order + 8 * i) & 0xFFFFFFFF
        to = usual + 8 * (at // slots)
        write_f64(to, read_f64(to) + read_f32(scores + 4 * at))
    for head in range(heads):
        total = read_f64(usual + 8 * head)
        held = read_i64(usual + 8 * (heads + head))
        write_f64(usual + 8 * head, total / held if total > 0.0 else 1.0)
    begin = 0
    while begin < n:
        token = read_i64(order + 8 * begin) // 0x100000000
        total = 0.0
        end = begin
        while end < n and read_i64(order + 8 * end) // 0x100000000 == token:
            at = read_i64(order + 8 * end) & 0xFFFFFFFF
            own = np.float32(read_f32(scores + 4 * at) / read_f64(usual + 8 * (at // slots)))
            write_f32(scores + 4 * at, own)
            total += own
            end += 1
        half = np.float32(total / (end - begin) * OF_ALL)
        for i in range(begin, end):
            at = read_i64(order + 8 * i) & 0xFFFFFFFF
            write_f32(scores + 4 * at, read_f32(scores + 4 * at) + half)
        begin = end


@kernel
def choose_evicted(instr: int, ctx: int, tid: int, threads: int) -> None:
    """List the slots that this thread's share of heads gives up."""
    slots = read_i64(instr + 8 * EV_SLOTS)
    heads = read_i64(instr + 8 * EV_HEADS)
    room = read_i64(instr + 8 * CHOOSE_ROOM)
    front = read_i64(instr + 8 * CHOOSE_FRONT)
    recent = read_i64(instr + 8 * CHOOSE_RECENT)
    far = read_i64(instr + 8 * CHOOSE_FAR)
    most_far = read_i64(instr + 8 * CHOOSE_MOST_FAR)
    ranks = read_i64(instr + 8 * EV_SCRATCH) + tid * read_i64(instr + 8 * EV_SCRATCH_BYTES)
    for head in range(share(heads, tid, threads), share(heads, tid + 1, threads)):
        record = read_i64(instr + 8 * EV_RECORDS) + 8 * EV_RECORD_SLOTS * head
        positions, tokens = read_i64(record + 8 * EV_POSITIONS), read_i64(record + 8 * EV_TOKENS)
        scores = read_i64(instr + 8 * CHOOSE_SCORES) + 4 * slots * head
        out = read_i64(instr + 8 * CHOOSE_OUT) + 4 * slots * head
        if read_i64(instr + 8 * CHOOSE_AROUND) != 0:
            _add_around(record, slots, scores, ranks)
        n = 0
        for s in range(slots):
            if read_i32(positions + 4 * s) != EMPTY:
                token = np.int64(read_i32(tokens + 4 * s))
                if token < far and not _kept(token, front, recent):
                    write_i64(ranks + 8 * n, _rank(read_f32(scores + 4 * s), token, False))
                    n += 1
        last_far = nth_smallest_i64(ranks, n, n - most_far - 1) if n > most_far else _NONE
        n = 0  # of those that do not go as far ones
        for s in range(slots):
            if read_i32(positions + 4 * s) != EMPTY:
                token = np.int64(read_i32(tokens + 4 * s))
                kept = _kept(token, front, recent)
                rank = _rank(read_f32(scores + 4 * s), token, kept)
                if token >= far or kept or rank > last_far:
                    write_i64(ranks + 8 * n, rank)
                    n += 1
        last = nth_smallest_i64(ranks, n, n - room - 1) if n > room else _NONE
        last_far = max(last_far, last)
        count = 0
        for s in range(slots):
            if read_i32(positions + 4 * s) != EMPTY:
                token = np.int64(read_i32(tokens + 4 * s))
                kept = _kept(token, front, recent)
                rank = _rank(read_f32(scores + 4 * s), token, kept)
                if rank <= (last if token >= far or kept else last_far):
                    write_i32(out + 4 * count, np.int32(s))
                    count += 1
        write_i64(read_i64(instr + 8 * CHOOSE_COUNTS) + 8 * head, count)
