"""Kernels that make a cache: how much memory it needs, and where everything lies in it.

Memory is gone through twice by the same steps: with base 0 to count, then to place. Slots and
tables: `launch.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.launch import (
    EMPTY,
    PAGE_FIELDS,
    PAGE_SLOTS,
    REC_APPEND,
    REC_MASS,
    REC_PAGES,
    REC_POSITIONS,
    REC_REST,
    RECORD_SLOTS,
)
from edgetok.kernels_cpu.cache.launch import (
    C_APART,
    C_BLOCK_TOKENS,
    C_BOUNDED,
    C_BROAD,
    C_BY,
    C_CAPACITY,
    C_COUNTS,
    C_EVICTED,
    C_FREQUENCIES,
    C_GROUP_COUNT,
    C_HISTORY,
    C_HISTORY_BYTES,
    C_MASS,
    C_MASS_SLOTS,
    C_MOVED,
    C_NBYTES,
    C_PAIRS,
    C_PARTIALS,
    C_RECORDS,
    C_SCORES,
    C_SCRATCH,
    C_SHAPE,
    C_STATE_TABLE,
    C_STATES,
    C_THREADS,
    C_WEIGHTS,
    C_WIDE_HEADS,
    G_APPEND,
    G_CHOSEN,
    G_ENTRIES,
    G_EVICTS,
    G_FREE_SLOTS,
    G_HEAD,
    G_HEADS,
    G_HELD,
    G_KEY_BYTES,
    G_LIMIT,
    G_MASS,
    G_MEMORY,
    G_PAGES,
    G_POSITIONS,
    G_REST_BYTES,
    G_RESTS,
    G_ROWS,
    G_SLOT_BYTES,
    G_TOKENS,
    G_USED,
    H_BYTES,
    H_COUNT,
    H_MOST,
    H_RINGS,
    H_SNAPSHOTS,
    KEEP_BYTES,
    KEEP_CACHE,
    KEEP_DATA,
    KEEP_RESULT,
    KEEP_TOKENS,
    L_CENTRE,
    L_FACTOR,
    L_ROPE,
    NO_MEMORY,
    R_EVICT_SCRATCH,
    R_KV_HEADS,
    R_LAYERS,
    R_PARTIAL_BYTES,
    S_DIMS,
    STATES,
)
from edgetok.kernels_cpu.cache.shape import write_shape
from edgetok.kernels_cpu.cache.sizes import (
    bound,
    chunks,
    group_of,
    layer_of,
    mass_floats,
    mass_slots,
    run,
    set_groups,
    set_history,
    size_of,
    stores,
)
from edgetok.kernels_cpu.cache.tables import get, group_at, put
from edgetok.kernels_cpu.eviction import launch as eviction
from edgetok.kernels_cpu.eviction.launch import (
    EV_CENTRE,
    EV_FACTOR,
    EV_FREQUENCIES,
    EV_PAGES,
    EV_PAIRS,
    EV_POSITIONS,
    EV_RECORD_SLOTS,
    EV_REST,
    EV_TOKENS,
)
from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import read_i64, write_i32, write_i64

share_scratch_bytes = inline(eviction.share_scratch_bytes)

_PARTS = 4  # of a page
_MOST_BYTES = 1e14
_ROW_TOKENS = 4096  # more than a window's slots exceed the capacity


@inline
def _after(at: int, nbytes: int) -> Any:
    """Where the next part of the memory begins."""
    return at + (nbytes + 127) // 64 * 64


@outline
def _place_pages(g: int) -> None:
    """Say where the parts of each page are; its fields are in the order of its parts."""
    heads, limit, slot_bytes = get(g, G_HEADS), get(g, G_LIMIT), get(g, G_SLOT_BYTES)
    for page in range(get(g, G_PAGES)):
        slots = min(PAGE_SLOTS, limit - page * PAGE_SLOTS)
        at = get(g, G_MEMORY) + heads * page * PAGE_SLOTS * slot_bytes
        for head in range(heads):
            entry = get(g, G_ENTRIES) + 8 * PAGE_FIELDS * (head * (get(g, G_PAGES) + 1) + page)
            for part in range(_PARTS):
                write_i64(entry + 8 * part, at)
                at += slots * get(g, G_KEY_BYTES + part)


@outline
def _place_head(c: int, g: int, head: int, at: int) -> None:
    """Write a head's records: of a step, and of what evicts."""
    row = at if get(g, G_CHOSEN) != 0 else 0
    limit, layer = get(g, G_LIMIT), layer_of(c, head)
    record = get(c, C_RECORDS) + 8 * RECORD_SLOTS * head
    evicts = get(g, G_EVICTS) + 8 * EV_RECORD_SLOTS * at
    pages = get(g, G_ENTRIES) + 8 * PAGE_FIELDS * at * (get(g, G_PAGES) + 1)
    positions = get(g, G_POSITIONS) + 4 * row * limit
    put(record, REC_PAGES, pages)
    put(record, REC_POSITIONS, positions)
    put(record, REC_APPEND, get(g, G_APPEND) + 4 * row * get(c, C_BLOCK_TOKENS))
    put(record, REC_MASS, get(g, G_MASS) + 4 * row * limit if get(g, G_CHOSEN) != 0 else 0)
    if get(g, G_REST_BYTES) != 0:
        rest = get(g, G_RESTS) + get(g, G_REST_BYTES) * row
        put(record, REC_REST, rest)
        put(evicts, EV_REST, rest)
    put(evicts, EV_PAGES, pages)
    put(evicts, EV_POSITIONS, positions)
    put(evicts, EV_TOKENS, get(g, G_TOKENS) + 4 * row * limit)
    rope = get(layer, L_ROPE)
    if rope >= 0:
        put(evicts, EV_FREQUENCIES, read_i64(get(c, C_FREQUENCIES) + 8 * rope))
        put(evicts, EV_PAIRS, read_i64(get(c, C_PAIRS) + 8 * rope))
    if get(layer, L_CENTRE) >= 0:
        constants = get(c, C_WEIGHTS)
        constants += 4 * (head % run(c, R_KV_HEADS)) * get(size_of(c, head), S_DIMS)
        put(evicts, EV_CENTRE, constants + get(layer, L_CENTRE))
        put(evicts, EV_FACTOR, constants + get(layer, L_FACTOR))
    write_i64(get(g, G_HEAD) + 8 * at, head)


@outline
def _place_group(c: int, g: int, at: int) -> Any:
    """Give a group's tables and pages their places from `at` on; returns where they end."""
    heads, rows = get(g, G_HEADS), get(g, G_ROWS)
    slots, chosen = rows * get(g, G_LIMIT), get(g, G_CHOSEN)
    put(g, G_HEAD, at)
    at = _after(at, 8 * heads)
    put(g, G_EVICTS, at)
    at = _after(at, 8 * EV_RECORD_SLOTS * heads)
    put(g, G_POSITIONS, at)
    at = _after(at, 4 * slots)
    put(g, G_TOKENS, at)
    at = _after(at, 4 * slots)
    put(g, G_MASS, at)
    at = _after(at, 4 * slots * chosen)
    put(g, G_RESTS, at)
    at = _after(at, get(g, G_REST_BYTES) * rows)
    put(g, G_HELD, at)
    at = _after(at, 8 * rows)
    put(g, G_USED, at)
    at = _after(at, 8 * rows)
    put(g, G_APPEND, at)
    at = _after(at, 4 * rows * get(c, C_BLOCK_TOKENS))
    put(g, G_FREE_SLOTS, at)
    at = _after(at, 8 * rows * get(c, C_BLOCK_TOKENS) * chosen)
    put(g, G_ENTRIES, at)
    at = _after(at, 8 * PAGE_FIELDS * heads * (get(g, G_PAGES) + 1))
    put(g, G_MEMORY, at)
    return _after(at, heads * get(g, G_LIMIT) * get(g, G_SLOT_BYTES))


@outline
def _fill_group(c: int, g: int) -> None:
    """Write the tables of a group that is empty."""
    for i in range(get(g, G_ROWS) * get(g, G_LIMIT)):
        write_i32(get(g, G_POSITIONS) + 4 * i, np.int32(EMPTY))
    _place_pages(g)
    at = 0
    for head in range(run(c, R_LAYERS) * run(c, R_KV_HEADS)):
        if stores(c, head) and group_of(c, head) == g:
            _place_head(c, g, head, at)
            at += 1


@outline
def _place_history(c: int, at: int, real: int) -> Any:
    """Give states and snapshots their places; returns where they end."""
    h, states = get(c, C_HISTORY), get(c, C_STATES)
    count, kept = get(h, H_COUNT), get(h, H_MOST) + 1
    table = at
    put(c, C_STATE_TABLE, table if count > 0 else 0)
    at = _after(at, 8 * run(c, R_LAYERS) * STATES)
    put(h, H_RINGS, at)
    at = _after(at, 16 * count)
    put(h, H_SNAPSHOTS, at)
    at = _after(at, 24 * kept)
    for i in range(count):
        state = states + 32 * i
        if real != 0:
            write_i64(table + 8 * read_i64(state), at)
            write_i64(get(h, H_RINGS) + 16 * i, at)
        at = _after(at, 4 * read_i64(state + 8) * read_i64(state + 16))
    for i in range(kept):
        if real != 0:
            write_i64(get(h, H_SNAPSHOTS) + 24 * i + 16, at)
        at = _after(at, get(h, H_BYTES))
    return at


@outline
def _most_shape_bytes(c: int) -> Any:
    """Bytes of the JSON that says what another cache must have in common (`shape.py`)."""
    wide = get(c, C_WIDE_HEADS) if get(c, C_BROAD) != 0 else 0
    return 512 + 48 * get(c, C_GROUP_COUNT) + 24 * wide


@outline
def _place_all(c: int, base: int, real: int) -> Any:
    """Give everything its place; returns where it ends."""
    longest = 0
    heads = 0
    slots = 0
    at = base
    put(c, C_RECORDS, at)
    at = _after(at, 8 * RECORD_SLOTS * run(c, R_LAYERS) * run(c, R_KV_HEADS))
    for i in range(get(c, C_GROUP_COUNT)):
        g = group_at(c, i)
        at = _place_group(c, g, at)
        longest = max(longest, get(g, G_LIMIT))
        heads = max(heads, get(g, G_HEADS))
        slots = max(slots, get(g, G_HEADS) * get(g, G_LIMIT))
    at = _place_history(c, at, real)
    put(c, C_SHAPE, at)
    at = _after(at, _most_shape_bytes(c))
    put(c, C_PARTIALS, at)
    at = _after(at, chunks(longest) * run(c, R_PARTIAL_BYTES))
    put(c, C_NBYTES, at - base)
    if get(c, C_BOUNDED) == 0:
        return at
    put(c, C_MASS_SLOTS, mass_slots(c))
    put(c, C_MASS, at)
    at = _after(at, 4 * mass_floats(c))
    put(c, C_SCORES, at)
    at = _after(at, 4 * slots)
    put(c, C_EVICTED, at)
    at = _after(at, 4 * slots)
    put(c, C_BY, at)
    at = _after(at, 4 * slots)
    put(c, C_MOVED, at)
    at = _after(at, 4 * slots)
    put(c, C_COUNTS, at)
    at = _after(at, 8 * heads)
    put(c, C_SCRATCH, at)
    scratch = get(c, C_THREADS) * (run(c, R_EVICT_SCRATCH) + 8 * longest)
    if get(c, C_APART) != 0:
        scratch = max(scratch, share_scratch_bytes(heads, slots))
    return _after(at, scratch)


@kernel
def cache_size(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Choose sizes for KEEP_TOKENS or a budget of KEEP_BYTES; the result is bytes or NO_..."""
    c = get(instr, KEEP_CACHE)
    set_history(c)
    fault = 0
    if get(c, C_BOUNDED) != 0:
        fault = bound(c, get(instr, KEEP_TOKENS), get(instr, KEEP_BYTES))
    if fault == 0:
        set_groups(c)
        whole = np.float64(get(c, C_HISTORY_BYTES))
        for i in range(get(c, C_GROUP_COUNT)):
            g = group_at(c, i)
            slots = np.float64(get(c, C_CAPACITY) + _ROW_TOKENS)
            whole += np.float64(get(g, G_HEADS)) * np.float64(get(g, G_SLOT_BYTES)) * slots
        fault = _place_all(c, 0, 0) if whole < _MOST_BYTES else NO_MEMORY
    put(instr, KEEP_RESULT, fault)


@kernel
def cache_place(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Place an empty cache into zeros at KEEP_DATA."""
    c = get(instr, KEEP_CACHE)
    _place_all(c, get(instr, KEEP_DATA), 1)
    for i in range(get(c, C_GROUP_COUNT)):
        _fill_group(c, group_at(c, i))
    write_shape(c)
