"""A KV cache's memory on the CPU: pages of slots, and the records that kernels read.

Keys, values and scales lie in pages (`page_layout.py`), which forks share until they write.
Positions and attention mass are a cache's own, so that evicting and truncating write to no page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgetok.cache.bounds import Bounds
from edgetok.cache.groups import Chosen, Group, make_groups
from edgetok.cache.pages import PageList, PagePool
from edgetok.cache.query_log import ROWS, QueryLog
from edgetok.cache.slot_cache import SlotCache
from edgetok.cache.table import EMPTY
from edgetok.errors import OptionError
from edgetok.kernels_cpu.attention.launch import (
    KV_BITS,
    PAGE_FIELDS,
    PAGE_SLOTS,
    REC_APPEND,
    REC_MASS,
    REC_PAGES,
    REC_POSITIONS,
    REC_USED,
    RECORD_SLOTS,
    mass_slots,
    mass_workspace_bytes,
)
from edgetok.kernels_cpu.linear.launch import aligned_bytes
from edgetok.kernels_cpu.program.abi import (
    PART_MASS_KEEP,
    PART_MASS_SLOTS,
    PART_QUERIES,
    PART_QUERY_ROW,
    PART_QUERY_ROWS,
    PART_RECORDS,
    PART_SLOTS,
)
from edgetok.kernels_cpu.program.tables import float_bits
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.page_layout import PagedRows, PageLayout
from edgetok.runtime.cpu.stored_rows import Bytes, Floats, Places

_MOST_BYTES = 1 << 46  # addresses end soon after
KIND = "cpu"


class CacheStore:
    """What all caches of a backend have in common.

    Attributes:
        pool: their pages.
        threads: that attend at once.
    """

    def __init__(self, threads: int, limit_bytes: int | None = None) -> None:
        """Begin without pages; `limit_bytes` of all caches together, None for no limit."""
        self.pool, self.threads = PagePool(limit_bytes), threads


class CpuGroupMemory:
    """See `GroupMemory`."""

    def __init__(
        self, group: Group, spec: DecoderSpec, kv_bits: int, store: CacheStore, records: Places,
        block_tokens: int,
    ) -> None:  # fmt: skip
        """Begin without pages.

        Args:
            group: tables.
            spec: the decoder.
            kv_bits: of keys and values.
            store: where pages come from.
            records: int64 [layers, KH, RECORD_SLOTS] of the whole cache.
            block_tokens: most tokens of one run.
        """
        self._group, self._kv_heads = group, spec.num_kv_heads
        table = group.table
        self._layers = np.array(group.layers, np.intp)
        self._heads = len(group.layers) * spec.num_kv_heads
        self.layout = PageLayout(self._heads, table.limit, spec.head_dim, kv_bits)
        self.row_bytes = self.layout.slot_bytes
        self._pages = PageList(store.pool, self.layout.bytes_of)
        self._records = records
        self._append = np.zeros((table.rows, block_tokens), np.int32)
        self._entries = self._new_entries(0)
        self.mass: Floats | None = None
        if isinstance(group, Chosen):
            self.mass = np.zeros((table.rows, 0), np.float32)
        self._set(REC_APPEND, self._address_of_rows(self._append))

    @property
    def list_bytes(self) -> int:
        """Bytes of the slots of a run's tokens."""
        return self._append.nbytes

    @property
    def held_bytes(self) -> int:
        """Bytes allocated now."""
        mass = 0 if self.mass is None else self.mass.nbytes
        return self._pages.nbytes + self._group.table.nbytes + mass + self._entries.nbytes

    @property
    def most_bytes(self) -> int:
        """Bytes when all slots exist."""
        table, pages = self._group.table, self.layout.pages
        lists = 8 if self.mass is None else 12
        slots = table.rows * table.limit * lists + self._heads * (pages + 1) * 8 * PAGE_FIELDS
        return slots + sum(self.layout.bytes_of(i) for i in range(pages))

    def reserve(self, slots: int) -> None:
        """Have memory for so many slots of each head. See `GroupMemory`."""
        count = -(-slots // PAGE_SLOTS)
        if count > len(self._pages.pages):
            made = self._pages.grow(count)
            self._extend(count, made)

    def own(self, slots: Places | None) -> None:
        """Prepare slots to be written to. See `GroupMemory`."""
        pages = self._pages.pages
        shared = [i for i, page in enumerate(pages) if page.references > 1]
        if not shared:
            return
        if slots is not None:
            shared = np.intersect1d(shared, slots // PAGE_SLOTS).tolist()
        for i in shared:
            if self._pages.own(i):
                self._entries[:, i] = self.layout.addresses(i, pages[i].address)

    def append(self, slots: Places) -> None:
        """Say where the next tokens go."""
        self._append[:, : slots.shape[1]] = slots
        self._set_used()

    def tell(self) -> None:
        """Take over a table that changed."""
        self._place()

    def trim(self) -> None:
        """Give pages back that hold nothing."""
        count = -(-int(self._group.table.used.max()) // PAGE_SLOTS)
        if count < len(self._pages.pages):
            self._pages.cut(count)
            self._shrink()

    def pull(self) -> None:
        """Nothing: kernels write to host memory."""

    def keys(self, layer: int, head: int) -> PagedRows:
        """A head's keys."""
        return PagedRows(self.layout, self._pages, self._index(layer, head), 0)

    def values(self, layer: int, head: int) -> PagedRows:
        """A head's values."""
        return PagedRows(self.layout, self._pages, self._index(layer, head), 1)

    def take(self, lists: Sequence[Places]) -> Bytes:
        """Stored rows of slots, head by head. See `GroupMemory`."""
        made = []
        for head in range(self._heads):
            at = lists[head if len(lists) > 1 else 0]
            parts = [PagedRows(self.layout, self._pages, head, which).take(at) for which in (0, 1)]
            for i in (0, 1):
                made += [part[i].reshape(-1) for part in parts]
        return np.concatenate(made)

    def put(self, lists: Sequence[Places], stored: Bytes) -> None:
        """Write what `take` gave."""
        row, scale, first = self.layout.row_bytes, self.layout.scale_bytes, 0
        for head in range(self._heads):
            at = lists[head if len(lists) > 1 else 0]
            n = len(at)
            ends = first + np.cumsum([0, n * row, n * row, n * scale, n * scale])
            keys, values, key_scales, value_scales = (
                stored[a:b].reshape(n, size)
                for a, b, size in zip(ends[:-1], ends[1:], (row, row, scale, scale), strict=True)
            )
            PagedRows(self.layout, self._pages, head, 0).put(at, keys, key_scales)
            PagedRows(self.layout, self._pages, head, 1).put(at, values, value_scales)
            first = int(ends[-1])

    def share(self, other: CpuGroupMemory) -> None:
        """Refer to another cache's pages; the tables are equal, but for empty slots at the end."""
        self._pages.share(other._pages)
        table = self._group.table
        count = -(-table.size // PAGE_SLOTS)
        self._pages.cut(count)
        self._entries = self._new_entries(count)
        for i, page in enumerate(self._pages.pages):
            self._entries[:, i] = self.layout.addresses(i, page.address)
        if self.mass is not None and other.mass is not None:
            self.mass = other.mass[:, : table.size].copy()
        self._place()

    def _index(self, layer: int, head: int) -> int:
        return self._group.layers.index(layer) * self._kv_heads + head

    def _extend(self, count: int, made: list[int]) -> None:
        """Grow all arrays for so many pages, and enter the new ones."""
        table = self._group.table
        size = min(count * PAGE_SLOTS, table.limit)
        table.grow(size)
        entries = self._new_entries(count)
        entries[:, : self._entries.shape[1]] = self._entries
        for i in made:
            entries[:, i] = self.layout.addresses(i, self._pages.pages[i].address)
        self._entries = entries
        if self.mass is not None:
            mass = np.zeros((table.rows, table.size), np.float32)
            mass[:, : self.mass.shape[1]] = self.mass
            self.mass = mass
        self._place()

    def _shrink(self) -> None:
        table, size = self._group.table, len(self._pages.pages) * PAGE_SLOTS
        self._group.table = table.copy(min(size, table.limit))
        self._group.table.limit = table.limit
        entries = self._new_entries(len(self._pages.pages))
        entries[:, :-1] = self._entries[:, : entries.shape[1] - 1]
        self._entries = entries
        if self.mass is not None:
            self.mass = np.ascontiguousarray(self.mass[:, : self._group.table.size])
        self._place()

    def _place(self) -> None:
        """Tell kernels where everything is."""
        self._set(REC_PAGES, self._address_of_rows(self._entries))
        self._set(REC_POSITIONS, self._address_of_rows(self._group.table.positions))
        if self.mass is not None:
            self._set(REC_MASS, self._address_of_rows(self.mass))
        self._set_used()

    def _new_entries(self, pages: int) -> Places:
        """Where each page's arrays are, and a row of zeros that kernels read ahead."""
        return np.zeros((self._heads, pages + 1, PAGE_FIELDS), np.int64)

    def _set_used(self) -> None:
        self._set(REC_USED, self._group.table.used)

    def _set(self, field: int, value: npt.ArrayLike) -> None:
        """Write a field of all heads' records: one value, or one for each row or head."""
        values = np.asarray(value)
        if values.size == self._heads:
            values = values.reshape(-1, self._kv_heads)
        self._records[self._layers, :, field] = values

    @staticmethod
    def _address_of_rows(array: npt.NDArray[np.generic]) -> Places:
        return array.ctypes.data + np.arange(len(array), dtype=np.int64) * array.strides[0]


class CpuCacheMemory:
    """See `CacheMemory`.

    Attributes:
        part: int64 [PART_SLOTS], what a step's table of parts says of the cache.
        records: of each layer and KV head, as in `attention/launch.py`.
    """

    shares = True
    page_slots = PAGE_SLOTS

    def __init__(
        self,
        spec: DecoderSpec,
        groups: Sequence[Group],
        store: CacheStore,
        *,
        kv_bits: int,
        block_tokens: int,
        bounds: Bounds | None,
    ) -> None:
        """Begin without pages; arguments as for `new_cache`."""
        self._spec, self._store, self._bounds = spec, store, bounds
        self._kv_bits, self._block_tokens = kv_bits, block_tokens
        self.records = np.zeros((spec.num_layers, spec.num_kv_heads, RECORD_SLOTS), np.int64)
        self.part = np.zeros(PART_SLOTS, np.int64)
        self.part[PART_RECORDS] = self.records.ctypes.data
        self.groups = [
            CpuGroupMemory(group, spec, kv_bits, store, self.records, block_tokens)
            for group in groups
        ]
        self.queries = QueryLog(aligned_bytes(0), spec, covariance=False, queries=False)
        self._workspace_bytes = 0
        if bounds is not None:
            kept = bounds.policy.covariance, bounds.policy.queries
            self.queries = QueryLog(aligned_bytes(QueryLog.nbytes(spec, *kept)), spec, *kept)
            self.part[PART_QUERIES] = self.queries.ring.ctypes.data if self.queries.rows else 0
            self.part[PART_QUERY_ROWS] = ROWS
            self.part[PART_MASS_SLOTS] = mass_slots(bounds.slots)
            self.part[PART_MASS_KEEP] = float_bits(1.0)
            self._workspace_bytes = mass_workspace_bytes(
                bounds.slots, spec.num_heads, spec.num_kv_heads, store.threads
            )

    @property
    def fixed_bytes(self) -> int:
        """Records, lists of slots and queries."""
        lists = sum(group.list_bytes for group in self.groups)
        return self.records.nbytes + self.queries.nbytes_used + lists

    @property
    def nbytes(self) -> int:
        """Bytes when all groups are full, with the workspace that steps share."""
        groups = sum(group.most_bytes for group in self.groups)
        return groups + self.fixed_bytes + self._workspace_bytes

    def begin(self, tokens: int, length_tokens: int, position: int) -> None:
        """Name the row of queries."""
        self.part[PART_QUERY_ROW] = length_tokens % ROWS

    def fork(self, groups: Sequence[Group]) -> CpuCacheMemory:
        """Empty memory of the same kind for other tables."""
        return CpuCacheMemory(
            self._spec,
            groups,
            self._store,
            kv_bits=self._kv_bits,
            block_tokens=self._block_tokens,
            bounds=self._bounds,
        )


CpuCache = SlotCache[CpuCacheMemory]


def new_cache(
    spec: DecoderSpec,
    store: CacheStore,
    *,
    capacity_tokens: int,
    kv_bits: int,
    block_tokens: int,
    bounds: Bounds | None = None,
) -> CpuCache:
    """An empty cache; pages are allocated as tokens come.

    Args:
        spec: the decoder.
        store: of the backend.
        capacity_tokens: tokens that can be seen; with bounds, the trained length.
        kv_bits: 4, 8, 16 or 32 for each key and value.
        block_tokens: most tokens of one run.
        bounds: of a cache that evicts; None for one that holds every token.

    Raises:
        OptionError: a number is out of range.
    """
    if type(capacity_tokens) is not int or capacity_tokens < 1:
        raise OptionError(
            f"a cache of {capacity_tokens!r} tokens, expected a whole number from 1 up"
        )
    if kv_bits not in KV_BITS:
        raise OptionError(f"kv_bits is {kv_bits!r}, expected one of {KV_BITS}")
    if bounds is not None:
        block_tokens = bounds.block_tokens
        if bounds.slots > capacity_tokens:
            raise OptionError(
                f"{bounds.slots:,} slots, expected at most {capacity_tokens:,}, the length that "
                "the model was trained for"
            )
    block_tokens = min(block_tokens, capacity_tokens)
    _check_size(spec, capacity_tokens, kv_bits)
    groups = make_groups(spec, capacity_tokens, block_tokens, bounds, PAGE_SLOTS)
    memory = CpuCacheMemory(
        spec, groups, store, kv_bits=kv_bits, block_tokens=block_tokens, bounds=bounds
    )
    return SlotCache(
        spec,
        groups,
        memory,
        capacity_tokens=capacity_tokens,
        block_tokens=block_tokens,
        kv_bits=kv_bits,
        kind=KIND,
        bounds=bounds,
    )


def cache_bytes(spec: DecoderSpec, bounds: Bounds, kv_bits: int, threads: int) -> int:
    """`nbytes` of the cache that such bounds give."""
    return new_cache(
        spec,
        CacheStore(threads),
        capacity_tokens=spec.context_tokens,
        kv_bits=kv_bits,
        block_tokens=bounds.block_tokens,
        bounds=bounds,
    ).nbytes


def _check_size(spec: DecoderSpec, capacity_tokens: int, kv_bits: int) -> None:
    """Refuse what cannot be addressed, in Python integers.

    Raises:
        OptionError: it cannot.
    """
    slot = PageLayout(spec.num_layers * spec.num_kv_heads, 1, spec.head_dim, kv_bits).bytes_of(0)
    if slot * capacity_tokens >= _MOST_BYTES or capacity_tokens >= EMPTY:
        raise OptionError(
            f"a cache of {capacity_tokens:,} tokens needs {slot * capacity_tokens:,} bytes, more "
            "than can be addressed; give a smaller --context"
        )
