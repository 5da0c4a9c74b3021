"""Sizes of a cache: slots of heads, groups, and what Python counts of them. For kernels.

As `edgetok/cache/bounds.py`, `groups.py` and `recurrent.py`, and `nbytes` of the CPU's caches.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.attention.launch import (
    BLOCK,
    DIM_TILE,
    FIRST_CHUNKS,
    MASS_LANES,
    PAGE_FIELDS,
    PAGE_SLOTS,
    RECORD_SLOTS,
    REST_KEY,
    SLOT_TILE,
)
from edgetok.kernels_cpu.attention.launch import ROWS as MASS_ROWS
from edgetok.kernels_cpu.cache.launch import (
    C_APART,
    C_BLOCK_TOKENS,
    C_BOUNDED,
    C_BROAD,
    C_CAPACITY,
    C_EVICTING,
    C_GROUP_COUNT,
    C_HISTORY,
    C_HISTORY_BYTES,
    C_LAYERS,
    C_NARROW,
    C_PYTHON_BYTES,
    C_RECENT,
    C_RECENT_SHARE,
    C_RUN,
    C_SEEING_HEADS,
    C_SIZES,
    C_SLOTS,
    C_STATES,
    C_THREADS,
    C_UNEQUAL,
    C_WIDE,
    C_WIDE_HEADS,
    FEWEST_SNAPSHOTS,
    G_CHOSEN,
    G_HEADS,
    G_KEY_BYTES,
    G_KEY_SCALE_BYTES,
    G_LIMIT,
    G_PAGES,
    G_REST_BYTES,
    G_ROWS,
    G_SIZE,
    G_SLOT_BYTES,
    G_VALUE_BYTES,
    G_VALUE_SCALE_BYTES,
    G_WIDE,
    G_WINDOW,
    GROUP,
    H_BULKY,
    H_BYTES,
    H_COUNT,
    H_MOST,
    H_STATES,
    L_WINDOW,
    LAYER,
    MOST_SNAPSHOTS,
    NO_BUDGET,
    NO_ROOM,
    R_BLOCK,
    R_BULKY,
    R_CONTEXT,
    R_HEADS,
    R_KV_HEADS,
    R_LAYERS,
    R_SCALE_BYTES,
    R_STATES,
    S_KEY_BYTES,
    S_KV_HEADS,
    S_PADDED,
    S_VALUE_BYTES,
    SIZE,
    SNAPSHOTS_BYTES,
)
from edgetok.kernels_cpu.cache.tables import get, group_at, put
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_u8

_STATE_ROWS, _STATE_COLUMNS, _STATE_NEEDED, _STATE_BYTES = 8, 16, 24, 32


@inline
def run(c: int, number: int) -> Any:
    """A number of the model."""
    return get(get(c, C_RUN), number)


@inline
def layer_of(c: int, head: int) -> Any:
    """Address of LAYER of a head, counted through all layers."""
    return get(c, C_LAYERS) + 8 * len(LAYER) * (head // run(c, R_KV_HEADS))


@inline
def size_of(c: int, head: int) -> Any:
    """Address of SIZE of a head's layer."""
    return get(c, C_SIZES) + 8 * len(SIZE) * (head // run(c, R_KV_HEADS))


@inline
def stores(c: int, head: int) -> Any:
    """Whether a head stores keys and values: some layers have fewer heads."""
    return head % run(c, R_KV_HEADS) < get(size_of(c, head), S_KV_HEADS)


@inline
def up(value: int, by: int) -> Any:
    """The next multiple."""
    return (value + by - 1) // by * by


@inline
def tiles(slots: int) -> Any:
    """Slots rounded down to what a head may have."""
    return slots // SLOT_TILE * SLOT_TILE


@outline
def set_slots(c: int, slots: int) -> None:
    """Give all heads so many slots on average, narrow and wide ones where a policy tells them."""
    recent = max(8, slots // get(c, C_RECENT_SHARE))
    put(c, C_SLOTS, slots)
    put(c, C_NARROW, slots)
    put(c, C_BROAD, 0)
    put(c, C_APART, 0)
    put(c, C_BLOCK_TOKENS, min(run(c, R_BLOCK), max(8, slots // 8)))
    put(c, C_RECENT, recent)
    wide, seeing = get(c, C_WIDE_HEADS), get(c, C_SEEING_HEADS)
    if get(c, C_UNEQUAL) == 0 or wide == 0:
        return
    narrow = seeing - wide
    few = max(SLOT_TILE, tiles(slots // 2))
    many = min(tiles(run(c, R_CONTEXT)), tiles((slots * seeing - few * narrow) // wide))
    few = tiles((slots * seeing - many * wide) // narrow)  # what wide heads leave
    if many > few:
        put(c, C_NARROW, few)
        put(c, C_BROAD, many)
        if 2 * wide > seeing:
            put(c, C_RECENT, min(recent, 3 * few // 4))
        else:
            put(c, C_RECENT, min(slots // 4, 3 * few // 8))
            put(c, C_APART, 1)


@outline
def chunks(slots: int) -> Any:
    """Chunks of slots whose results attention merges: `attention/launch.py`, chunk_count."""
    count = 0
    begin = 0
    size = BLOCK
    while begin < slots:
        if begin >= FIRST_CHUNKS * size:
            size *= 2
        begin += size
        count += 1
    return count


@outline
def mass_slots(c: int) -> Any:
    """Slots of the workspace of attention mass."""
    return up(max(get(c, C_NARROW), get(c, C_BROAD)), BLOCK)


@outline
def mass_floats(c: int) -> Any:
    """Numbers in that workspace (attention/launch.py)."""
    slots = mass_slots(c)
    row = slots + up(slots, BLOCK * DIM_TILE) // BLOCK
    rows = max(run(c, R_HEADS), get(c, C_THREADS) * MASS_ROWS)
    return rows * row + run(c, R_KV_HEADS) * MASS_LANES * slots


@outline
def group_of(c: int, head: int) -> Any:
    """Address of a head's group; 0 where there is none yet."""
    window = get(layer_of(c, head), L_WINDOW)
    wide = 0
    if get(c, C_BROAD) != 0 and read_u8(get(c, C_WIDE) + head) != 0:
        wide = 1
    for i in range(get(c, C_GROUP_COUNT)):
        g = group_at(c, i)
        if get(g, G_WINDOW) == window and (get(g, G_CHOSEN) == 0 or get(g, G_WIDE) == wide):
            return g
    return 0


@outline
def _new_group(c: int, window: int, limit: int) -> Any:
    g = group_at(c, get(c, C_GROUP_COUNT))
    for i in range(len(GROUP)):
        put(g, i, 0)
    put(g, G_WINDOW, window)
    put(g, G_LIMIT, limit)
    put(c, C_GROUP_COUNT, get(c, C_GROUP_COUNT) + 1)
    return g


@outline
def set_groups(c: int) -> None:
    """Group heads that look equally far back: first those that evict, narrow before wide ones."""
    put(c, C_GROUP_COUNT, 0)
    if get(c, C_BOUNDED) != 0 and get(c, C_SEEING_HEADS) > 0:
        put(_new_group(c, 0, get(c, C_NARROW)), G_CHOSEN, 1)
        if get(c, C_BROAD) != 0:
            g = _new_group(c, 0, get(c, C_BROAD))
            put(g, G_CHOSEN, 1)
            put(g, G_WIDE, 1)
    put(c, C_EVICTING, get(c, C_GROUP_COUNT))
    scale = run(c, R_SCALE_BYTES)
    for head in range(run(c, R_LAYERS) * run(c, R_KV_HEADS)):
        if not stores(c, head):
            continue
        g = group_of(c, head)
        if g == 0:
            window, most = get(layer_of(c, head), L_WINDOW), get(c, C_CAPACITY)
            if window > 0:
                most = min(most, window + get(c, C_BLOCK_TOKENS) - 1)
            g = _new_group(c, window, up(most, SLOT_TILE))
        size = size_of(c, head)
        put(g, G_SIZE, size)
        put(g, G_KEY_BYTES, get(size, S_KEY_BYTES))
        put(g, G_VALUE_BYTES, get(size, S_VALUE_BYTES))
        put(g, G_KEY_SCALE_BYTES, scale)
        put(g, G_VALUE_SCALE_BYTES, scale)
        put(g, G_SLOT_BYTES, get(size, S_KEY_BYTES) + get(size, S_VALUE_BYTES) + 2 * scale)
        put(g, G_HEADS, get(g, G_HEADS) + 1)
        put(g, G_ROWS, get(g, G_HEADS) if get(g, G_CHOSEN) != 0 else 1)
        if get(g, G_CHOSEN) != 0 and get(c, C_APART) != 0:
            put(g, G_REST_BYTES, 4 * (REST_KEY + 2 * get(size, S_PADDED)))
        put(g, G_PAGES, (get(g, G_LIMIT) + PAGE_SLOTS - 1) // PAGE_SLOTS)


@outline
def set_history(c: int) -> None:
    """Sizes of states and snapshots."""
    h, states = get(c, C_HISTORY), get(c, C_STATES)
    bulky = run(c, R_BULKY)
    snapshot = 0
    rings = 0
    for i in range(run(c, R_STATES)):
        state = states + _STATE_BYTES * i
        columns = read_i64(state + _STATE_COLUMNS)
        snapshot += 4 * (read_i64(state + _STATE_NEEDED) + 1 - bulky) * columns
        rings += 4 * read_i64(state + _STATE_ROWS) * columns
    most = -1
    if snapshot > 0:
        most = min(MOST_SNAPSHOTS, max(FEWEST_SNAPSHOTS, SNAPSHOTS_BYTES // snapshot))
    put(h, H_COUNT, run(c, R_STATES))
    put(h, H_STATES, states)
    put(h, H_BULKY, bulky)
    put(h, H_BYTES, snapshot)
    put(h, H_MOST, most)
    put(c, C_HISTORY_BYTES, rings + (most + 1) * snapshot)


@outline
def count_python_bytes(c: int) -> Any:
    """Count the groups' bytes as Python does."""
    found = 8 * RECORD_SLOTS * run(c, R_LAYERS) * run(c, R_KV_HEADS) + get(c, C_HISTORY_BYTES)
    for i in range(get(c, C_GROUP_COUNT)):
        g = group_at(c, i)
        heads, limit = get(g, G_HEADS), get(g, G_LIMIT)
        found += get(g, G_ROWS) * limit * (12 if get(g, G_CHOSEN) != 0 else 8)
        found += heads * (get(g, G_PAGES) + 1) * 8 * PAGE_FIELDS
        found += heads * limit * get(g, G_SLOT_BYTES)
        found += 4 * get(g, G_ROWS) * get(c, C_BLOCK_TOKENS)
        found += get(g, G_ROWS) * get(g, G_REST_BYTES)
    if get(c, C_BOUNDED) != 0:
        found += 4 * mass_floats(c)
    put(c, C_PYTHON_BYTES, found)
    return found


@outline
def _fits(c: int, slots: int, budget: int) -> Any:
    set_slots(c, slots)
    set_groups(c)
    return count_python_bytes(c) <= budget


@outline
def bound(c: int, tokens: int, budget: int) -> Any:
    """Choose the slots of heads: so many, or the most that a budget allows; 0, or what is wrong."""
    low = SLOT_TILE
    high = tiles(run(c, R_CONTEXT))
    slots = min(tiles(tokens), high)
    put(c, C_CAPACITY, run(c, R_CONTEXT))
    if high < low or (slots < low and budget == 0):
        return NO_ROOM
    if budget != 0:
        if not _fits(c, low, budget):
            return NO_BUDGET
        while high - low > SLOT_TILE:
            middle = tiles((low + high) // 2)
            if _fits(c, middle, budget):
                low = middle
            else:
                high = middle
        slots = high if _fits(c, high, budget) else low
    set_slots(c, slots)
    return 0
