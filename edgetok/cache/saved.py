"""Between a `SlotCache` and its state block: written plainly, read strictly."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgetok.cache import state as block
from edgetok.cache.groups import Chosen, InOrder
from edgetok.cache.policies.view import Floats
from edgetok.cache.recurrent import Snapshot
from edgetok.cache.slot_memory import REST_TOKENS
from edgetok.cache.state import CacheState
from edgetok.cache.table import SlotTable
from edgetok.errors import SessionError

if TYPE_CHECKING:
    from edgetok.cache.slot_cache import SlotCache

# COUNTERS: these, the bits of `dropped` among them, then one mark of each group (`Group.mark`).
COUNTERS = ("length", "shift", "pinned_tokens", "dropped", "queries", "valid", "new")
_MOST = 1 << 40
_CONTRADICTION = "the saved cache's counters contradict each other; it is damaged"

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A state block that was checked, in parts."""

    length: int
    shift: int
    pinned: int
    dropped: float
    query_counts: tuple[int, int, int]
    marks: list[int]
    tables: list[SlotTable]
    rows: list[Bytes]
    mass: dict[int, list[Floats]]
    rests: dict[int, Floats]
    queries: Floats
    snapshots: list[Snapshot]


def write_state(cache: SlotCache[Any]) -> CacheState:
    """A cache's block; its mass was pulled."""
    eviction, log = cache.eviction, cache.memory.queries
    pinned, dropped = (0, 0.0) if eviction is None else (eviction.pinned, eviction.dropped)
    numbers = [
        cache.length_tokens,
        cache.length_tokens - cache.position,
        pinned,
        struct.unpack("<q", struct.pack("<d", dropped))[0],
        log.count,
        log.valid,
        log.new,
        *(group.mark for group in cache.groups),
    ]
    made: list[tuple[int, int, npt.NDArray[Any]]] = [
        (block.COUNTERS, 0, np.array(numbers, np.int64))
    ]
    for i, (group, memory) in enumerate(zip(cache.groups, cache.memory.groups, strict=True)):
        lists = [group.table.slots(row) for row in range(group.table.rows)]
        made.append((block.TABLE, i, group.table.state()))
        made.append((block.ROWS, i, memory.take(lists)))
        if memory.mass is not None:
            mass = [memory.mass[row, at] for row, at in enumerate(lists)]
            made.append((block.MASS, i, np.concatenate(mass)))
        if memory.rests is not None:
            made.append((block.REST, i, memory.rests))
    if log.nbytes_used:
        made.append((block.QUERIES, 0, log.state()))
    snapshots = cache.memory.history.state(cache.length_tokens)
    made += [(block.SNAPSHOT, i, snapshot) for i, snapshot in enumerate(snapshots)]
    return CacheState.of(cache.shape, made)


def parse_state(cache: SlotCache[Any], state: CacheState) -> Found:
    """Check a block against the cache that is to take it; the cache is not changed.

    Raises:
        SessionError: it is of another shape, or something in it cannot be.
    """
    state.check_shape(cache.shape)
    log, groups = cache.memory.queries, cache.groups
    wanted = {(block.SHAPE, 0), (block.COUNTERS, 0)}
    wanted |= {(kind, i) for kind in (block.TABLE, block.ROWS) for i in range(len(groups))}
    massive = [i for i, memory in enumerate(cache.memory.groups) if memory.mass is not None]
    wanted |= {(block.MASS, i) for i in massive}
    wanted |= {(block.QUERIES, 0)} if log.nbytes_used else set()
    history = cache.memory.history
    count = sum(kind == block.SNAPSHOT for kind, _ in state.sections) if history.rings else 0
    wanted |= {(block.SNAPSHOT, i) for i in range(count)}
    memories = enumerate(cache.memory.groups)
    left = {(block.REST, i) for i, memory in memories if memory.rests is not None}
    if state.sections - left != wanted:
        odd = sorted((state.sections - left) ^ wanted)
        raise SessionError(f"the saved cache has other sections than this one: {odd!r:.80}")
    numbers = state.section(block.COUNTERS, np.int64).tolist()
    if len(numbers) != len(COUNTERS) + len(groups):
        raise SessionError(_CONTRADICTION)
    length, shift, pinned, dropped_bits, *queries = numbers[: len(COUNTERS)]
    marks = numbers[len(COUNTERS) :]
    dropped = struct.unpack("<d", struct.pack("<q", dropped_bits))[0]
    for name, value, most in (
        ("length", length, _MOST if cache.bounds else cache.capacity_tokens),
        ("shift", shift, length),
        ("pinned_tokens", pinned, cache.slots // 2 if cache.bounds else 0),
        ("queries", queries[0], _MOST),
        *(("mark", mark, length) for mark in marks),
    ):
        if not 0 <= value <= most:
            raise SessionError(f"the saved cache has {name} {value}, expected 0 to {most}")
    if (
        length - shift > cache.position_limit
        or not all(0 <= value <= min(log.rows, length) for value in queries[1:])
        or not 0.0 <= dropped < np.inf
    ):
        raise SessionError(_CONTRADICTION)
    tables, rows = [], []
    for i, group in enumerate(groups):
        table = group.table.parsed(state.section(block.TABLE, np.int32, i), length, length - shift)
        if isinstance(group, InOrder):
            _check_order(group, table, length)
        tables.append(table)
        stored = state.section(block.ROWS, np.uint8, i)
        heads = len(group.layers) * cache.spec.kv_sizes(group.layers[0])[0]
        each = 1 if isinstance(group, Chosen) else heads
        expected = int(table.held.sum()) * each * cache.memory.groups[i].row_bytes
        if stored.nbytes != expected:
            raise SessionError(
                f"the saved cache has {stored.nbytes:,} bytes of slots, expected {expected:,}"
            )
        rows.append(stored)
    mass = {}
    for i in massive:
        floats = state.section(block.MASS, np.float32, i)
        counts = tables[i].held
        if len(floats) != int(counts.sum()) or not (np.isfinite(floats) & (floats >= 0)).all():
            raise SessionError("the saved cache's attention mass is out of range; it is damaged")
        mass[i] = np.split(floats, np.cumsum(counts)[:-1])
    rests = {}
    for _, i in left & state.sections:
        floats, size = state.section(block.REST, np.float32, i), cache.memory.groups[i].rests.shape
        if floats.size != math.prod(size) or not np.isfinite(floats).all():
            raise SessionError("the saved cache's rests are too few or not finite; it is damaged")
        rests[i] = floats.reshape(size)
        if (rests[i][:, 0] < 0).any() or (rests[i][:, 0] > REST_TOKENS).any():
            raise SessionError("the saved cache's rests stand for too many tokens; it is damaged")
    kept = np.zeros(0, np.float32)
    if log.nbytes_used:
        kept = state.section(block.QUERIES, np.float32)
        if kept.nbytes != log.nbytes_used or not np.isfinite(kept).all():
            raise SessionError("the saved cache's queries are too few or not finite; it is damaged")
    snapshots = [state.section(block.SNAPSHOT, np.uint8, i) for i in range(count)]
    return Found(
        snapshots=history.parsed(snapshots, length),
        length=length,
        shift=shift,
        pinned=pinned,
        dropped=dropped,
        query_counts=(queries[0], queries[1], queries[2]),
        marks=marks,
        tables=tables,
        rows=rows,
        mass=mass,
        rests=rests,
        queries=kept,
    )


def restore_state(cache: SlotCache[Any], state: CacheState) -> Found:
    """Fill a cache's tables, memory and queries from a block; its counters are left to the cache.

    Raises:
        SessionError: as `parse_state`; nothing was changed.
        ContextError: there is not memory for it; likewise.
    """
    found = parse_state(cache, state)
    memories = cache.memory.groups
    every = [[table.slots(row) for row in range(table.rows)] for table in found.tables]
    for lists, memory in zip(every, memories, strict=True):
        at = np.unique(np.concatenate(lists))
        memory.reserve(int(at.max(initial=-1)) + 1)
        memory.own(at)
    for i, (group, memory) in enumerate(zip(cache.groups, memories, strict=True)):
        size = group.table.size
        group.table = found.tables[i]
        group.table.grow(size)
        memory.put(every[i], found.rows[i])
        if memory.mass is not None:
            memory.mass[:] = 0.0
            for row, at in enumerate(every[i]):
                memory.mass[row, at] = found.mass[i][row]
        if memory.rests is not None:
            memory.rests[:] = found.rests.get(i, 0.0)
        group.restore(found.marks[i])
        memory.tell()
    cache.memory.queries.restore(found.queries, found.query_counts)
    cache.memory.history.restore(found.snapshots)
    return found


def _check_order(group: InOrder, table: SlotTable, length: int) -> None:
    """The latest tokens, each in its slot, as many as the next one sees."""
    at = table.slots(0)
    tokens = table.tokens[0, at]
    order = np.argsort(tokens)
    latest = np.arange(length - len(at), length)
    least = min(length, group.window - 1) if group.window else length
    if (
        len(at) < least
        or (tokens[order] != latest).any()
        or (at[order] != latest % table.limit).any()
    ):
        raise SessionError("the saved cache lacks tokens that it must hold; it is damaged")
