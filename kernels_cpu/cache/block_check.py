"""Whether a cache can become what a block of bytes says. For kernels; `block.py` reads it then."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.launch import REST_TOKENS
from edgetok.kernels_cpu.cache.block import (
    ENTRY,
    HEAD,
    HIGH,
    begin_of,
    bytes_of,
    rest_bytes,
    section_at,
    stored_bytes,
)
from edgetok.kernels_cpu.cache.history import snapshot_fits
from edgetok.kernels_cpu.cache.launch import (
    BLOCK_MAGIC,
    BLOCK_VERSION,
    C_BOUNDED,
    C_CAPACITY,
    C_GROUP_COUNT,
    C_HISTORY,
    C_MOST_TOKENS,
    C_SHAPE,
    C_SHAPE_BYTES,
    C_SLOTS,
    COUNTERS,
    FEW_SNAPSHOTS,
    FITS,
    FIXED_COUNTERS,
    FOREIGN,
    G_CHOSEN,
    G_LIMIT,
    G_REST_BYTES,
    G_ROWS,
    G_WINDOW,
    H_COUNT,
    H_MOST,
    MASS,
    OTHER_SHAPE,
    OTHER_VERSION,
    REST,
    ROWS,
    SHAPE,
    SNAPSHOT,
    TABLE,
    WRONG_COUNTERS,
    WRONG_MASS,
    WRONG_RESTS,
    WRONG_SECTIONS,
    WRONG_SNAPSHOTS,
    WRONG_TABLE,
)
from edgetok.kernels_cpu.cache.tables import get, group_at
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_f32, read_f64, read_i64, read_int
from edgetok.kernels_cpu.text.characters import compared

_MOST_SECTIONS = 1024
_INFINITE = 0x7F800000  # bits of a float32


@outline
def _entries_fit(data: int, nbytes: int) -> Any:
    """Whether sections fill the block one after the other, each named once."""
    count = read_i64(data + 8) // HIGH
    at = HEAD + ENTRY * count
    for i in range(count):
        entry = data + HEAD + ENTRY * i
        begin, size = read_i64(entry + 8), read_i64(entry + 16)
        if begin != (at + 63) // 64 * 64 or size < 0 or size > nbytes - begin:
            return False
        if read_i64(entry + 24) != 0:
            return False
        for j in range(i):
            if read_i64(data + HEAD + ENTRY * j) == read_i64(entry):
                return False
        at = begin + size
    return at == nbytes


@outline
def _count_known(c: int, data: int, nbytes: int) -> Any:
    """Count the sections of a block that a cache takes, where all that it needs are there."""
    known = 2
    for i in range(get(c, C_GROUP_COUNT)):
        g = group_at(c, i)
        known += 2 + get(g, G_CHOSEN)
        if rest_bytes(g) != 0 and section_at(data, nbytes, REST, i) != 0:
            known += 1
    snapshots = 0
    while get(get(c, C_HISTORY), H_COUNT) != 0:
        if section_at(data, nbytes, SNAPSHOT, snapshots) == 0:
            break
        snapshots += 1
    return known + snapshots


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
def _rests_fit(g: int, rests: int) -> Any:
    """Whether a group's rests are finite and stand for as many tokens as they may."""
    for i in range(rest_bytes(g) // 4):
        if read_int(rests + 4 * i) & _INFINITE == _INFINITE:
            return False
    for row in range(get(g, G_ROWS)):
        count = read_f32(rests + get(g, G_REST_BYTES) * row)
        if count < np.float32(0.0) or count > np.float32(REST_TOKENS):
            return False
    return True


@outline
def _group_fits(c: int, i: int, data: int, nbytes: int, tokens: int, shift: int) -> Any:
    """Check the sections of a group."""
    g = group_at(c, i)
    table = section_at(data, nbytes, TABLE, i)
    rows, mass = section_at(data, nbytes, ROWS, i), section_at(data, nbytes, MASS, i)
    counters = begin_of(data, section_at(data, nbytes, COUNTERS, 0))
    mark = read_i64(counters + 8 * (FIXED_COUNTERS + i))
    if table == 0 or mark < 0 or mark > tokens:
        return WRONG_TABLE
    held = _table_fits(c, g, begin_of(data, table), bytes_of(table), tokens, tokens - shift)
    if held < 0:
        return WRONG_TABLE
    if bytes_of(rows) != stored_bytes(g, held):
        return WRONG_SECTIONS
    if get(g, G_CHOSEN) == 0:
        return FITS
    if bytes_of(mass) != 4 * held:
        return WRONG_MASS
    for k in range(held):
        bits = read_int(begin_of(data, mass) + 4 * k)
        if bits < 0 or bits >= _INFINITE:
            return WRONG_MASS
    rests = section_at(data, nbytes, REST, i)
    if rests == 0:
        return FITS
    fits = bytes_of(rests) == rest_bytes(g) and _rests_fit(g, begin_of(data, rests))
    return FITS if fits else WRONG_RESTS


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
        entry = section_at(data, nbytes, SNAPSHOT, i)
        if entry == 0:
            break
        if i > get(h, H_MOST):
            return WRONG_SNAPSHOTS
        if not snapshot_fits(h, begin_of(data, entry), bytes_of(entry), latest):
            return WRONG_SNAPSHOTS
        latest = read_i64(begin_of(data, entry))
        i += 1
    return FEW_SNAPSHOTS if get(h, H_COUNT) != 0 and latest != tokens else FITS


@outline
def check_block(c: int, data: int, nbytes: int, tokens: int) -> Any:
    """Say whether a cache can become what a block says: FITS, or why not; nothing is changed.

    A block of so many other tokens is -1 less that number.
    """
    if nbytes < HEAD or read_i64(data) != BLOCK_MAGIC:
        return FOREIGN
    head = read_i64(data + 8)
    count = head // HIGH
    if head % HIGH != BLOCK_VERSION or count < 0 or count > _MOST_SECTIONS:
        return OTHER_VERSION
    if read_i64(data + 16) != nbytes or nbytes < HEAD + ENTRY * count:
        return OTHER_VERSION
    if not _entries_fit(data, nbytes):
        return WRONG_SECTIONS
    shape, counters = section_at(data, nbytes, SHAPE, 0), section_at(data, nbytes, COUNTERS, 0)
    own = get(c, C_SHAPE_BYTES)
    if bytes_of(shape) != own or compared(begin_of(data, shape), own, get(c, C_SHAPE), own) != 0:
        return OTHER_SHAPE
    if bytes_of(counters) != 8 * (FIXED_COUNTERS + get(c, C_GROUP_COUNT)):
        return WRONG_COUNTERS
    fault = _counters_fit(c, begin_of(data, counters), tokens)
    for i in range(get(c, C_GROUP_COUNT)):
        if fault == FITS:
            shift = read_i64(begin_of(data, counters) + 8)
            fault = _group_fits(c, i, data, nbytes, tokens, shift)
    if fault == FITS:
        fault = _snapshots_fit(get(c, C_HISTORY), data, nbytes, tokens)
    # Rests may be missing: what is named otherwise, or lies elsewhere, must not count as that.
    if fault == FITS and _count_known(c, data, nbytes) != count:
        fault = WRONG_SECTIONS
    return fault
