"""A cache as a block of bytes, as `edgetok/cache/state.py` and `saved.py` write and read it."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.launch import EMPTY
from edgetok.kernels_cpu.cache.history import (
    HEAD_BYTES,
    clear_history,
    read_snapshot,
    snapshot_fits,
    snapshot_sections,
    write_snapshot,
)
from edgetok.kernels_cpu.cache.launch import (
    BLOCK_MAGIC,
    BLOCK_VERSION,
    C_BOUNDED,
    C_CAPACITY,
    C_DROPPED,
    C_EVICTING,
    C_GROUP_COUNT,
    C_HISTORY,
    C_LENGTH,
    C_MOST_TOKENS,
    C_PINNED,
    C_SHAPE,
    C_SHAPE_BYTES,
    C_SHIFT,
    C_SLOTS,
    COUNTERS,
    FEW_SNAPSHOTS,
    FITS,
    FIXED_COUNTERS,
    FOREIGN,
    G_CHOSEN,
    G_HEADS,
    G_HELD,
    G_LIMIT,
    G_MARK,
    G_MASS,
    G_POSITIONS,
    G_ROWS,
    G_SLOT_BYTES,
    G_TOKENS,
    G_USED,
    G_WINDOW,
    H_BYTES,
    H_COUNT,
    H_MOST,
    MASS,
    OTHER_SHAPE,
    OTHER_VERSION,
    ROWS,
    SHAPE,
    SNAPSHOT,
    TABLE,
    WRONG_COUNTERS,
    WRONG_MASS,
    WRONG_SECTIONS,
    WRONG_SNAPSHOTS,
    WRONG_TABLE,
)
from edgetok.kernels_cpu.cache.rows import copy_rows
from edgetok.kernels_cpu.cache.tables import (
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
    read_f64,
    read_i32,
    read_i64,
    read_int,
    read_u8,
    write_i32,
    write_i64,
)
from edgetok.kernels_cpu.text.characters import compared, write_u8

_HEAD, _ENTRY = 24, 32  # bytes
_MOST_SECTIONS = 1024
_INFINITE = 0x7F800000  # bits of a float32
_HIGH = 1 << 32


@outline
def _entry(data: int, i: int, kind: int, group: int, at: int, nbytes: int) -> Any:
    """Write a section's entry, where there is a block; returns where it begins."""
    begin = (at + 63) // 64 * 64
    if data != 0:
        entry = data + _HEAD + _ENTRY * i
        write_i64(entry, kind + group * _HIGH)
        write_i64(entry + 8, begin)
        write_i64(entry + 16, nbytes)
    return begin


@inline
def _stored_bytes(g: int, held: int) -> Any:
    """Bytes of the rows of so many listed slots."""
    return get(g, G_SLOT_BYTES) * (held * get(g, G_HEADS) if get(g, G_ROWS) == 1 else held)


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
    return 2 + 2 * get(c, C_GROUP_COUNT) + get(c, C_EVICTING) + snapshots


@outline
def write_block(c: int, data: int) -> Any:
    """Write a cache to zeros at `data` or, for 0, only count; returns the bytes."""
    count, groups = _count_sections(c), get(c, C_GROUP_COUNT)
    history, length = get(c, C_HISTORY), get(c, C_LENGTH)
    if data != 0:
        write_i64(data, BLOCK_MAGIC)
        write_i64(data + 8, BLOCK_VERSION + count * _HIGH)
    size = get(c, C_SHAPE_BYTES)
    begin = _entry(data, 0, SHAPE, 0, _HEAD + _ENTRY * count, size)
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
        rows = _entry(data, n + 1, ROWS, i, table + size, _stored_bytes(g, held))
        at = rows + _stored_bytes(g, held)
        mass = 0
        if chosen != 0:
            mass = _entry(data, n + 2, MASS, i, at, 4 * held)
            at = mass + 4 * held
        n += 2 + chosen
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
def _find(data: int, nbytes: int, kind: int, group: int) -> Any:
    """Address of the entry of a section that lies in the block; 0 for none."""
    for i in range(read_i64(data + 8) // _HIGH):
        entry = data + _HEAD + _ENTRY * i
        if read_i64(entry) == kind + group * _HIGH:
            begin, size = read_i64(entry + 8), read_i64(entry + 16)
            if begin >= 0 and begin % 64 == 0 and size >= 0 and size <= nbytes - begin:
                return entry
    return 0


@inline
def _begin(data: int, entry: int) -> Any:
    return data + read_i64(entry + 8)


@inline
def _size(entry: int) -> Any:
    """Bytes of a section; -1 where there is none."""
    return read_i64(entry + 16) if entry != 0 else -1


@outline
def _list_fits(g: int, n: int, slots: int, held: int, length: int, following: int) -> Any:
    """Whether slots of one list ascend and what they hold can be."""
    for i in range(n):
        at = slots + 4 * i
        slot, token, position = read_int(at), read_int(at + 4 * held), read_int(at + 8 * held)
        if slot < 0 or slot >= get(g, G_LIMIT) or token < 0 or token >= length:
            return False
        if position < 0 or position >= following or (i > 0 and slot <= read_int(at - 4)):
            return False
        if get(g, G_CHOSEN) == 0 and slot != token % get(g, G_LIMIT):
            return False
    return True


@outline
def _table_fits(c: int, g: int, table: int, size: int, length: int, following: int) -> Any:
    """Whether a table's numbers can be: how many tokens it holds, or -1."""
    rows = get(g, G_ROWS)
    if size < 4 * rows:
        return -1
    held = 0
    for row in range(rows):
        n = read_int(table + 4 * row)
        if n < 0 or n > get(g, G_LIMIT):
            return -1
        held += n
    if size != 4 * (rows + 3 * held):
        return -1
    slots = table + 4 * rows
    for row in range(rows):
        n = read_int(table + 4 * row)
        if not _list_fits(g, n, slots, held, length, following):
            return -1
        slots += 4 * n
    if get(g, G_CHOSEN) != 0:
        return held
    window = get(g, G_WINDOW)
    least = min(window - 1, length) if window > 0 else length
    return held if held >= least and held <= get(c, C_CAPACITY) else -1


@outline
def _group_fits(c: int, i: int, data: int, nbytes: int, tokens: int, shift: int) -> Any:
    """Check the sections of a group."""
    g = group_at(c, i)
    table = _find(data, nbytes, TABLE, i)
    rows, mass = _find(data, nbytes, ROWS, i), _find(data, nbytes, MASS, i)
    counters = _begin(data, _find(data, nbytes, COUNTERS, 0))
    mark = read_i64(counters + 8 * (FIXED_COUNTERS + i))
    if table == 0 or mark < 0 or mark > tokens:
        return WRONG_TABLE
    held = _table_fits(c, g, _begin(data, table), _size(table), tokens, tokens - shift)
    if held < 0:
        return WRONG_TABLE
    if _size(rows) != _stored_bytes(g, held):
        return WRONG_SECTIONS
    if get(g, G_CHOSEN) == 0:
        return FITS
    if _size(mass) != 4 * held:
        return WRONG_MASS
    for k in range(held):
        bits = read_int(_begin(data, mass) + 4 * k)
        if bits < 0 or bits >= _INFINITE:
            return WRONG_MASS
    return FITS


@outline
def _counters_fit(c: int, counters: int, tokens: int) -> Any:
    length, shift, pinned = read_i64(counters), read_i64(counters + 8), read_i64(counters + 16)
    dropped = read_f64(counters + 24)
    if length != tokens:
        return -1 - max(0, length)
    if tokens > get(c, C_MOST_TOKENS) or shift < 0 or shift > tokens:
        return WRONG_COUNTERS
    most_pinned = get(c, C_SLOTS) // 2 if get(c, C_BOUNDED) != 0 else 0
    if tokens - shift > get(c, C_CAPACITY) or pinned < 0 or pinned > most_pinned:
        return WRONG_COUNTERS
    return FITS if dropped >= 0.0 and dropped < np.inf else WRONG_MASS


@outline
def _snapshots_fit(h: int, data: int, nbytes: int, tokens: int) -> Any:
    latest = 0
    i = 0
    while get(h, H_COUNT) != 0:
        entry = _find(data, nbytes, SNAPSHOT, i)
        if entry == 0:
            break
        if i > get(h, H_MOST):
            return WRONG_SNAPSHOTS
        if not snapshot_fits(h, _begin(data, entry), _size(entry), latest):
            return WRONG_SNAPSHOTS
        latest = read_i64(_begin(data, entry))
        i += 1
    return FEW_SNAPSHOTS if get(h, H_COUNT) != 0 and latest != tokens else FITS


@outline
def check_block(c: int, data: int, nbytes: int, tokens: int) -> Any:
    """Say whether a cache can become what a block says: FITS, or why not; nothing is changed.

    A block of so many other tokens is -1 less that number.
    """
    if nbytes < _HEAD or read_i64(data) != BLOCK_MAGIC:
        return FOREIGN
    head = read_i64(data + 8)
    count = head // _HIGH
    if head % _HIGH != BLOCK_VERSION or count < 0 or count > _MOST_SECTIONS:
        return OTHER_VERSION
    if read_i64(data + 16) != nbytes or nbytes < _HEAD + _ENTRY * count:
        return OTHER_VERSION
    shape, counters = _find(data, nbytes, SHAPE, 0), _find(data, nbytes, COUNTERS, 0)
    own = get(c, C_SHAPE_BYTES)
    if _size(shape) != own or compared(_begin(data, shape), own, get(c, C_SHAPE), own) != 0:
        return OTHER_SHAPE
    if _size(counters) != 8 * (FIXED_COUNTERS + get(c, C_GROUP_COUNT)):
        return WRONG_COUNTERS
    fault = _counters_fit(c, _begin(data, counters), tokens)
    for i in range(get(c, C_GROUP_COUNT)):
        if fault == FITS:
            shift = read_i64(_begin(data, counters) + 8)
            fault = _group_fits(c, i, data, nbytes, tokens, shift)
    if fault == FITS:
        fault = _snapshots_fit(get(c, C_HISTORY), data, nbytes, tokens)
    return fault


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
    counters = _begin(data, _find(data, nbytes, COUNTERS, 0))
    put(c, C_LENGTH, read_i64(counters))
    put(c, C_SHIFT, read_i64(counters + 8))
    put(c, C_PINNED, read_i64(counters + 16))
    put(c, C_DROPPED, read_i64(counters + 24))
    for i in range(get(c, C_GROUP_COUNT)):
        g = group_at(c, i)
        mass = _find(data, nbytes, MASS, i) if get(g, G_CHOSEN) != 0 else 0
        table = _begin(data, _find(data, nbytes, TABLE, i))
        _read_table(g, table, _begin(data, mass) if mass != 0 else 0)
        copy_rows(c, g, _begin(data, _find(data, nbytes, ROWS, i)), 0)
        put(g, G_MARK, read_i64(counters + 8 * (FIXED_COUNTERS + i)))
        if get(g, G_CHOSEN) != 0:
            list_free(c, g)
    clear_history(history)
    i = 0
    while get(history, H_COUNT) != 0:
        entry = _find(data, nbytes, SNAPSHOT, i)
        if entry == 0:
            break
        after = _find(data, nbytes, SNAPSHOT, i + 1)
        read_snapshot(history, _begin(data, entry), 1 if after == 0 else 0)
        i += 1
