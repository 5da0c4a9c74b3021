"""Kernels that keep a cache: before and after steps, going back, saving. Slots: `launch.py`.

One thread does all of it. What takes long, scores and rotated keys, is `eviction/`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.launch import EMPTY, REC_USED, RECORD_SLOTS
from edgetok.kernels_cpu.cache.block import read_block, write_block
from edgetok.kernels_cpu.cache.block_check import check_block
from edgetok.kernels_cpu.cache.history import (
    advance_history,
    begin_history,
    history_reaches,
    truncate_history,
)
from edgetok.kernels_cpu.cache.launch import (
    C_BLOCK_TOKENS,
    C_CHUNKS,
    C_DROPPED,
    C_EVICTING,
    C_GROUP_COUNT,
    C_HISTORY,
    C_LENGTH,
    C_RECORDS,
    C_SHIFT,
    C_USED,
    FITS,
    G_APPEND,
    G_CHOSEN,
    G_FREE_SLOTS,
    G_HEAD,
    G_HEADS,
    G_LIMIT,
    G_MARK,
    G_MASS,
    G_POSITIONS,
    G_ROWS,
    G_TAKEN,
    G_TOKENS,
    G_USED,
    G_WINDOW,
    KEEP_BYTES,
    KEEP_CACHE,
    KEEP_COUNTS,
    KEEP_DATA,
    KEEP_GROUP,
    KEEP_RESULT,
    KEEP_TOKENS,
)
from edgetok.kernels_cpu.cache.sizes import chunks
from edgetok.kernels_cpu.cache.tables import (
    clear_rests,
    empty,
    fill,
    get,
    group_at,
    holds,
    list_free,
    place,
    put,
)
from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.math64 import f64_from_bits
from edgetok.kernels_cpu.simd.memory import (
    read_f32,
    read_i64,
    read_int,
    write_f64,
    write_i32,
    write_i64,
)


@kernel
def cache_begin(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Before anything of a step: take a snapshot of states where one is due."""
    c = get(instr, KEEP_CACHE)
    begin_history(get(c, C_HISTORY), get(instr, KEEP_TOKENS), get(c, C_LENGTH))


@kernel
def cache_list_free(instr: int, ctx: int, tid: int, threads: int) -> None:
    """List the free slots of a group's heads anew."""
    list_free(get(instr, KEEP_CACHE), get(instr, KEEP_GROUP))


@outline
def _append(c: int, g: int, tokens: int) -> None:
    """Name the slots of the next tokens and fill them."""
    length, block = get(c, C_LENGTH), get(c, C_BLOCK_TOKENS)
    first, chosen = length - get(c, C_SHIFT), get(g, G_CHOSEN)
    for row in range(get(g, G_ROWS)):
        for t in range(tokens):
            slot = (length + t) % get(g, G_LIMIT)
            if chosen != 0:
                listed = get(g, G_FREE_SLOTS) + 4 * (2 * row * block + get(g, G_TAKEN) + t)
                slot = read_int(listed)
            write_i32(get(g, G_APPEND) + 4 * (row * block + t), np.int32(slot))
            fill(g, row, slot, length + t, first + t)
    if chosen != 0:
        put(g, G_TAKEN, get(g, G_TAKEN) + tokens)
    else:
        put(g, G_MARK, max(get(g, G_MARK), length + tokens - get(g, G_LIMIT)))


@kernel
def cache_append(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Name the slots of the next tokens; the result is the first one's position."""
    c, tokens = get(instr, KEEP_CACHE), get(instr, KEEP_TOKENS)
    longest = 0
    for i in range(get(c, C_GROUP_COUNT)):
        g = group_at(c, i)
        _append(c, g, tokens)
        for head in range(get(g, G_HEADS)):
            row = head if get(g, G_CHOSEN) != 0 else 0
            used = read_i64(get(g, G_USED) + 8 * row)
            at = RECORD_SLOTS * read_i64(get(g, G_HEAD) + 8 * head) + REC_USED
            write_i64(get(c, C_RECORDS) + 8 * at, used)
            longest = max(longest, used)
    put(c, C_USED, longest)
    put(c, C_CHUNKS, chunks(longest))
    put(instr, KEEP_RESULT, get(c, C_LENGTH) - get(c, C_SHIFT))


@kernel
def cache_advance(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Count tokens that were computed."""
    c = get(instr, KEEP_CACHE)
    put(c, C_LENGTH, get(c, C_LENGTH) + get(instr, KEEP_TOKENS))
    advance_history(get(c, C_HISTORY), get(c, C_LENGTH))


@kernel
def cache_evict(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Empty the slots that `choose_evicted` chose: int32 [rows, limit] and counts behind them."""
    c, g, chosen = get(instr, KEEP_CACHE), get(instr, KEEP_GROUP), get(instr, KEEP_DATA)
    counts = get(instr, KEEP_COUNTS)
    dropped = f64_from_bits(get(c, C_DROPPED))
    for row in range(get(g, G_ROWS)):
        gone = 0.0
        for i in range(read_i64(counts + 8 * row)):
            slot = read_int(chosen + 4 * (row * get(g, G_LIMIT) + i))
            gone += np.float64(read_f32(place(g, G_MASS, row, slot)))
            put(g, G_MARK, max(get(g, G_MARK), read_int(place(g, G_TOKENS, row, slot)) + 1))
            empty(g, row, slot)
        dropped += gone
    write_f64(c + 8 * C_DROPPED, dropped)


@kernel
def cache_lower(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Lower the positions of a group without eviction; writes by how much its keys are rotated."""
    g, by = get(instr, KEEP_GROUP), get(instr, KEEP_TOKENS)
    out, limit = get(instr, KEEP_DATA), get(g, G_LIMIT)
    oldest = EMPTY
    for slot in range(limit):
        turn = 0
        if holds(g, 0, slot):
            at = place(g, G_POSITIONS, 0, slot)
            if read_int(at) < by:
                empty(g, 0, slot)
            else:
                turn = -by
                write_i32(at, np.int32(read_int(at) - by))
                oldest = min(oldest, read_int(place(g, G_TOKENS, 0, slot)))
        for head in range(get(g, G_HEADS)):
            write_i32(out + 4 * (head * limit + slot), np.int32(turn))
    if oldest < EMPTY:
        put(g, G_MARK, max(get(g, G_MARK), oldest))


@outline
def _left(g: int, length: int) -> Any:
    """How many tokens before a length all heads hold together."""
    found = 0
    for row in range(get(g, G_ROWS)):
        for slot in range(read_i64(get(g, G_USED) + 8 * row)):
            if holds(g, row, slot) and read_int(place(g, G_TOKENS, row, slot)) < length:
                found += 1
    return found


@outline
def _reaches(g: int, length: int) -> Any:
    """Whether a group can go back to a length: see `Group.reachable`."""
    if get(g, G_CHOSEN) == 0:
        window = get(g, G_WINDOW)
        return get(g, G_MARK) <= (max(0, length - window + 1) if window > 0 else 0)
    if length >= get(g, G_MARK):
        return True
    mean = np.float64(_left(g, length)) / np.float64(get(g, G_ROWS))
    return mean >= np.float64(min(length, get(g, G_LIMIT))) / 2.0


@outline
def _reachable(c: int, length: int) -> Any:
    while True:
        found = length
        for i in range(get(c, C_GROUP_COUNT)):
            if not _reaches(group_at(c, i), length):
                found = 0
        found = history_reaches(get(c, C_HISTORY), found)
        if found == length:
            return found
        length = found


@outline
def _truncate(g: int, length: int) -> Any:
    """Empty the slots of later tokens; returns the last position of what is held, or -1."""
    last = -1
    for row in range(get(g, G_ROWS)):
        for slot in range(read_i64(get(g, G_USED) + 8 * row) - 1, -1, -1):
            if holds(g, row, slot):
                if read_int(place(g, G_TOKENS, row, slot)) >= length:
                    empty(g, row, slot)
                else:
                    last = max(last, read_int(place(g, G_POSITIONS, row, slot)))
    return last


@kernel
def cache_truncate(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Go back to a length, or to less; the result is by how much windows are to be lowered."""
    c = get(instr, KEEP_CACHE)
    length = _reachable(c, get(instr, KEEP_TOKENS))
    truncate_history(get(c, C_HISTORY), length)
    last = -1
    for i in range(get(c, C_GROUP_COUNT)):
        g = group_at(c, i)
        end = _truncate(g, length)
        if length < get(g, G_MARK):
            clear_rests(g)  # they stand for what is to be forgotten, too
        if get(g, G_CHOSEN) != 0:
            last = max(last, end)
            put(g, G_MARK, min(get(g, G_MARK), length))
            list_free(c, g)
        elif length == 0:
            put(g, G_MARK, 0)
    put(c, C_LENGTH, length)
    put(instr, KEEP_RESULT, 0)
    if length == 0:
        put(c, C_SHIFT, 0)
        put(c, C_DROPPED, 0)
    else:  # where a head had no room to lower a position, its last token may be further on
        put(instr, KEEP_RESULT, -max(0, last + 1 - (length - get(c, C_SHIFT))))


@kernel
def cache_save(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Write a block into zeros at KEEP_DATA; the result is its bytes, also where that is 0."""
    c = get(instr, KEEP_CACHE)
    for i in range(get(c, C_EVICTING)):
        list_free(c, group_at(c, i))  # as restoring does, so that both go on alike
    put(instr, KEEP_RESULT, write_block(c, get(instr, KEEP_DATA)))


@kernel
def cache_restore(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Become what a block says of KEEP_TOKENS tokens; the result says whether it fits."""
    c, data = get(instr, KEEP_CACHE), get(instr, KEEP_DATA)
    nbytes = get(instr, KEEP_BYTES)
    fault = check_block(c, data, nbytes, get(instr, KEEP_TOKENS))
    if fault == FITS:
        read_block(c, data, nbytes)
    put(instr, KEEP_RESULT, fault)
