"""A cache as a block of bytes, as `edgetok/cache/state.py` and `saved.py` write and read it."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.launch import EMPTY
from edgetok.kernels_cpu.cache.history import (
    HEAD_BYTES,
    clear_history,
    read_snapshot,
    snapshot_sections,
    write_snapshot,
)
from edgetok.kernels_cpu.cache.launch import (
    BLOCK_MAGIC,
    BLOCK_VERSION,
    C_APART,
    C_DROPPED,
    C_EVICTING,
    C_GROUP_COUNT,
    C_HISTORY,
    C_LENGTH,
    C_PINNED,
    C_SHAPE,
    C_SHAPE_BYTES,
    C_SHIFT,
    COUNTERS,
    FIXED_COUNTERS,
    G_CHOSEN,
    G_HEADS,
    G_HELD,
    G_LIMIT,
    G_MARK,
    G_MASS,
    G_POSITIONS,
    G_REST_BYTES,
    G_RESTS,
    G_ROWS,
    G_SLOT_BYTES,
    G_TOKENS,
    G_USED,
    H_BYTES,
    H_COUNT,
    MASS,
    REST,
    ROWS,
    SHAPE,
    SNAPSHOT,
    TABLE,
)
from edgetok.kernels_cpu.cache.rows import copy_rows
from edgetok.kernels_cpu.cache.tables import (
    clear_rests,
    copy_words,
    fill,
    get,
    group_at,
    holds,
    list_free,
    place,
    put,
    total,
)
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import (
    read_i32,
    read_i64,
    read_int,
    read_u8,
    write_i32,
    write_i64,
)
from edgetok.kernels_cpu.text.characters import write_u8

HEAD, ENTRY = 24, 32  # bytes
_MOST_SECTIONS = 1024
_INFINITE = 0x7F800000  # bits of a float32
HIGH = 1 << 32


@outline
def _entry(data: int, i: int, kind: int, group: int, at: int, nbytes: int) -> Any:
    """Write a section's entry, where there is a block; returns where it begins."""
    begin = (at + 63) // 64 * 64
    if data != 0:
        entry = data + HEAD + ENTRY * i
        write_i64(entry, kind + group * HIGH)
        write_i64(entry + 8, begin)
        write_i64(entry + 16, nbytes)
    return begin


@inline
def stored_bytes(g: int, held: int) -> Any:
    """Bytes of the rows of so many listed slots."""
    return get(g, G_SLOT_BYTES) * (held * get(g, G_HEADS) if get(g, G_ROWS) == 1 else held)


@inline
def rest_bytes(g: int) -> Any:
    """Bytes of all rests of a group."""
    return get(g, G_ROWS) * get(g, G_REST_BYTES)


@outline
def _write_table(g: int, held: int, to: int, mass: int) -> None:
    """Write what slots hold, and the attention mass of heads that evict to `mass`."""
    rows = get(g, G_ROWS)
    k = 0
    for row in range(rows):
        write_i32(to + 4 * row, np.int32(read_i64(get(g, G_HELD) + 8 * row)))
        for slot in range(read_i64(get(g, G_USED) + 8 * row)):
            if holds(g, row, slot):
                at = to + 4 * (rows + k)
                write_i32(at, np.int32(slot))
                write_i32(at + 4 * held, read_i32(place(g, G_TOKENS, row, slot)))
                write_i32(at + 8 * held, read_i32(place(g, G_POSITIONS, row, slot)))
                if mass != 0:
                    write_i32(mass + 4 * k, read_i32(place(g, G_MASS, row, slot)))
                k += 1


@outline
def _write_counters(c: int, to: int) -> None:
    write_i64(to, get(c, C_LENGTH))
    write_i64(to + 8, get(c, C_SHIFT))
    write_i64(to + 16, get(c, C_PINNED))
    write_i64(to + 24, get(c, C_DROPPED))
    for i in range(get(c, C_GROUP_COUNT)):
        write_i64(to + 8 * (FIXED_COUNTERS + i), get(group_at(c, i), G_MARK))


@outline
def _count_sections(c: int) -> Any:
    snapshots = snapshot_sections(get(c, C_HISTORY), get(c, C_LENGTH))
    evicting = get(c, C_EVICTING) * (1 + get(c, C_APART))
    return 2 + 2 * get(c, C_GROUP_COUNT) + evicting + snapshots


@outline
def write_block(c: int, data: int) -> Any:
    """Write a cache to zeros at `data` or, for 0, only count; returns the bytes."""
    count, groups = _count_sections(c), get(c, C_GROUP_COUNT)
    history, length = get(c, C_HISTORY), get(c, C_LENGTH)
    if data != 0:
        write_i64(data, BLOCK_MAGIC)
        write_i64(data + 8, BLOCK_VERSION + count * HIGH)
    size = get(c, C_SHAPE_BYTES)
    begin = _entry(data, 0, SHAPE, 0, HEAD + ENTRY * count, size)
    if data != 0:
        for i in range(size):
            write_u8(data + begin + i, read_u8(get(c, C_SHAPE) + i))
    at = begin + size
    size = 8 * (FIXED_COUNTERS + groups)
    begin = _entry(data, 1, COUNTERS, 0, at, size)
    if data != 0:
        _write_counters(c, data + begin)
    at = begin + size
    n = 2
    for i in range(groups):
        g = group_at(c, i)
        held, chosen = total(get(g, G_HELD), get(g, G_ROWS)), get(g, G_CHOSEN)
        size = 4 * (get(g, G_ROWS) + 3 * held)
        table = _entry(data, n, TABLE, i, at, size)
        rows = _entry(data, n + 1, ROWS, i, table + size, stored_bytes(g, held))
        at = rows + stored_bytes(g, held)
        mass = 0
        if chosen != 0:
            mass = _entry(data, n + 2, MASS, i, at, 4 * held)
            at = mass + 4 * held
        n += 2 + chosen
        if rest_bytes(g) != 0:
            begin = _entry(data, n, REST, i, at, rest_bytes(g))
            if data != 0:
                copy_words(data + begin, get(g, G_RESTS), rest_bytes(g) // 4)
            at = begin + rest_bytes(g)
            n += 1
        if data != 0:
            _write_table(g, held, data + table, data + mass if chosen != 0 else 0)
            copy_rows(c, g, data + rows, 1)
    snapshots = snapshot_sections(history, length)
    for i in range(snapshots):
        size = HEAD_BYTES + get(history, H_BYTES)
        begin = _entry(data, n + i, SNAPSHOT, i, at, size)
        if data != 0:
            write_snapshot(history, length, i, snapshots, data + begin)
        at = begin + size
    if data != 0:
        write_i64(data + 16, at)
    return at


@outline
def section_at(data: int, nbytes: int, kind: int, group: int) -> Any:
    """Address of the entry of a section that lies in the block; 0 for none."""
    for i in range(read_i64(data + 8) // HIGH):
        entry = data + HEAD + ENTRY * i
        if read_i64(entry) == kind + group * HIGH:
            begin, size = read_i64(entry + 8), read_i64(entry + 16)
            if begin >= 0 and begin % 64 == 0 and size >= 0 and size <= nbytes - begin:
                return entry
    return 0


@inline
def begin_of(data: int, entry: int) -> Any:
    """Address of what is in a section."""
    return data + read_i64(entry + 8)


@inline
def bytes_of(entry: int) -> Any:
    """Bytes of a section; -1 where there is none."""
    return read_i64(entry + 16) if entry != 0 else -1


@outline
def _read_table(g: int, table: int, mass: int) -> None:
    rows, limit = get(g, G_ROWS), get(g, G_LIMIT)
    held = 0
    for row in range(rows):
        held += read_int(table + 4 * row)
        write_i64(get(g, G_HELD) + 8 * row, 0)
        write_i64(get(g, G_USED) + 8 * row, 0)
        for slot in range(limit):
            write_i32(place(g, G_POSITIONS, row, slot), np.int32(EMPTY))
            if mass != 0:
                write_i32(place(g, G_MASS, row, slot), np.int32(0))
    k = 0
    for row in range(rows):
        for _ in range(read_int(table + 4 * row)):
            at = table + 4 * (rows + k)
            slot = read_int(at)
            fill(g, row, slot, read_int(at + 4 * held), read_int(at + 8 * held))
            if mass != 0:
                write_i32(place(g, G_MASS, row, slot), read_i32(mass + 4 * k))
            k += 1


@outline
def read_block(c: int, data: int, nbytes: int) -> None:
    """Become what a block says that fits."""
    history = get(c, C_HISTORY)
    counters = begin_of(data, section_at(data, nbytes, COUNTERS, 0))
    put(c, C_LENGTH, read_i64(counters))
    put(c, C_SHIFT, read_i64(counters + 8))
    put(c, C_PINNED, read_i64(counters + 16))
    put(c, C_DROPPED, read_i64(counters + 24))
    for i in range(get(c, C_GROUP_COUNT)):
        g = group_at(c, i)
        mass = section_at(data, nbytes, MASS, i) if get(g, G_CHOSEN) != 0 else 0
        table = begin_of(data, section_at(data, nbytes, TABLE, i))
        _read_table(g, table, begin_of(data, mass) if mass != 0 else 0)
        copy_rows(c, g, begin_of(data, section_at(data, nbytes, ROWS, i)), 0)
        put(g, G_MARK, read_i64(counters + 8 * (FIXED_COUNTERS + i)))
        if get(g, G_CHOSEN) != 0:
            list_free(c, g)
        rests = section_at(data, nbytes, REST, i)
        if rests != 0:
            copy_words(get(g, G_RESTS), begin_of(data, rests), rest_bytes(g) // 4)
        else:
            clear_rests(g)
    clear_history(history)
    i = 0
    while get(history, H_COUNT) != 0:
        entry = section_at(data, nbytes, SNAPSHOT, i)
        if entry == 0:
            break
        after = section_at(data, nbytes, SNAPSHOT, i + 1)
        read_snapshot(history, begin_of(data, entry), 1 if after == 0 else 0)
        i += 1
