"""One group's memory on the CPU: pages of slots, and the records that kernels read.

Keys, values and scales lie in pages (`page_layout.py`), which forks share until they write.
Positions and attention mass are a cache's own, so that evicting and truncating write to no page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgetok.cache.groups import Chosen, Group
from edgetok.cache.key_constants import KeyConstants
from edgetok.cache.pages import PageList, PagePool
from edgetok.errors import ShapeError
from edgetok.kernels_cpu.attention.launch import (
    PAGE_FIELDS,
    PAGE_SLOTS,
    REC_APPEND,
    REC_MASS,
    REC_PAGES,
    REC_POSITIONS,
    REC_REST,
    REC_USED,
    is_rotated,
    rest_floats,
)
from edgetok.kernels_cpu.eviction.evictor import Evictor
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.head_eviction import HeadEviction
from edgetok.runtime.cpu.page_layout import PagedRows, PageLayout
from edgetok.runtime.cpu.stored_rows import Bytes, Floats, HeadRest, Places


class CpuGroupMemory:
    """See `GroupMemory`."""

    def __init__(
        self, group: Group, spec: DecoderSpec, kv_bits: int, pool: PagePool, records: Places,
        block_tokens: int, evictor: Evictor | None = None, constants: KeyConstants | None = None,
        leaves_rests: bool = False,
    ) -> None:  # fmt: skip
        """Begin without pages.

        Args:
            group: tables.
            spec: the decoder.
            kv_bits: of keys and values.
            pool: where pages come from.
            records: int64 [layers, most_kv_heads, RECORD_SLOTS] of the whole cache.
            block_tokens: most tokens of one run.
            evictor: kernels that evict and renumber; None where NumPy does.
            constants: of the keys of all layers.
            leaves_rests: whether heads that evict leave the mean of what they gave up.
        """
        self._evictor, self._group, self._kv_bits = evictor, group, kv_bits
        kv_heads, dims = spec.kv_sizes(group.layers[0])
        table = group.table
        self._used = -1  # of a table with one row, as records say
        every = [(layer, head) for layer in group.layers for head in range(kv_heads)]
        heads = group.heads if isinstance(group, Chosen) else every
        self._row = {head: row for row, head in enumerate(heads)}
        at = np.array([layer * spec.most_kv_heads + head for layer, head in heads], np.intp)
        steps = np.diff(at)
        self._at: slice | npt.NDArray[np.intp] = at
        if (steps == steps[:1]).all():  # a view is faster to write to, and this is each step's
            step = int(steps[0]) if len(steps) else 1
            self._at = slice(int(at[0]), int(at[-1]) + 1, step)
        self._heads = len(heads)
        self._constants: KeyConstants | None = None  # [heads, D]
        if constants is not None and is_rotated(kv_bits):
            self._constants = constants.of(heads, dims)
        self.layout = PageLayout(self._heads, table.limit, dims, kv_bits, self._constants)
        self.row_bytes = self.layout.slot_bytes
        self._pages = PageList(pool, self.layout.bytes_of, self.layout.copy)
        self._records = records.reshape(-1, records.shape[-1])
        self._append = np.zeros((table.rows, block_tokens), np.int32)
        self._entries = self._new_entries(0)
        self.mass: Floats | None = None
        if isinstance(group, Chosen):
            self.mass = np.zeros((table.rows, 0), np.float32)
        self.rests: Floats | None = None
        if leaves_rests and isinstance(group, Chosen):
            self.rests = np.zeros((table.rows, rest_floats(dims, kv_bits)), np.float32)
            self._set(REC_REST, self._address_of_rows(self.rests))
        self._set(REC_APPEND, self._address_of_rows(self._append))

    @property
    def list_bytes(self) -> int:
        """Bytes of the slots of a run's tokens."""
        return self._append.nbytes

    @property
    def held_bytes(self) -> int:
        """Bytes allocated now."""
        mass = 0 if self.mass is None else self.mass.nbytes
        held = self._pages.nbytes + self._group.table.nbytes + mass + self._entries.nbytes
        return held + self._rest_bytes

    @property
    def most_bytes(self) -> int:
        """Bytes when all slots exist."""
        table, pages = self._group.table, self.layout.pages
        lists = 8 if self.mass is None else 12
        slots = table.rows * table.limit * lists + self._heads * (pages + 1) * 8 * PAGE_FIELDS
        return slots + sum(self.layout.bytes_of(i) for i in range(pages)) + self._rest_bytes

    @property
    def _rest_bytes(self) -> int:
        return 0 if self.rests is None else self.rests.nbytes

    @property
    def eviction(self) -> HeadEviction | None:
        """Kernels for its heads as they are now. See `GroupMemory`."""
        if self._evictor is None:
            return None
        return HeadEviction(
            self._evictor,
            self._group.table,
            self._entries,
            self.layout.head_dim,
            self._constants,
            self.rests,
        )

    @property
    def is_shared(self) -> bool:
        """Return whether a page must be copied before it is written to."""
        return not all(map(self._pages.is_own, range(len(self._pages.pages))))

    def reserve(self, slots: int) -> None:
        """Have memory for so many slots of each head. See `GroupMemory`."""
        count = -(-slots // PAGE_SLOTS)
        if count > len(self._pages.pages) or slots > self._group.table.size:
            made = self._pages.grow(count)
            self._extend(count, made)

    def own(self, slots: Places | None) -> None:
        """Prepare slots to be written to. See `GroupMemory`."""
        pages = self._pages
        shared = [i for i in range(len(pages.pages)) if not pages.is_own(i)]
        if not shared:
            return
        if slots is not None:
            shared = np.intersect1d(shared, slots // PAGE_SLOTS).tolist()
        for i in shared:
            pages.own(i)
            self._entries[:, i] = self.layout.addresses(pages.pages[i].memory)

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

    def rest(self, layer: int, head: int) -> HeadRest:
        """A head's rest.

        Raises:
            ShapeError: there are none.
        """
        if self.rests is None:
            raise ShapeError("heads of this group leave no rests")
        row = self._index(layer, head)
        constants = None if self._constants is None else self._constants[row]
        return HeadRest(self.rests[row], self.layout.head_dim, self._kv_bits, constants)

    def take(self, lists: Sequence[Places]) -> Bytes:
        """Stored rows of slots, head by head. See `GroupMemory`."""
        made = np.zeros(self._heads * self.row_bytes * sum(map(len, lists)) // len(lists), np.uint8)
        for page, memory, slots in self._touched(lists):
            every = self.layout.take(memory, slots)
            for heads, rows, at, places in self._split(page, lists, made):
                for to, part in zip(rows, every, strict=True):
                    to[:, places] = part[heads][:, at]
        return made

    def put(self, lists: Sequence[Places], stored: Bytes) -> None:
        """Write what `take` gave."""
        for page, memory, slots in self._touched(lists):
            split = list(self._split(page, lists, stored))
            _, rows, at, places = split[0]
            if len(split) == 1 and isinstance(at, slice) and at == slice(0, slots):
                # Nothing of the page stays.
                every = tuple(source[:, places] for source in rows)
            else:
                every = self.layout.take(memory, slots)
                for heads, rows, at, places in split:
                    for part, source in zip(every, rows, strict=True):
                        part[heads, at] = source[:, places]
            self.layout.put(memory, every)

    def _touched(self, lists: Sequence[Places]) -> Iterator[tuple[int, Bytes, int]]:
        """Pages that hold listed slots, their memory, and how many slots from the first on."""
        last = max((int(at.max(initial=-1)) for at in lists), default=-1)
        for page in range(-(-(last + 1) // PAGE_SLOTS)):
            yield (
                page,
                self._pages.pages[page].memory,
                min(PAGE_SLOTS, last + 1 - page * PAGE_SLOTS),
            )

    def _split(
        self, page: int, lists: Sequence[Places], stored: Bytes
    ) -> Iterator[tuple[slice, list[Bytes], Places | slice, Places | slice]]:
        """For heads with the same slots: which, their rows in `stored`, slots of the page, places.

        Rows are views uint8 [heads, n, bytes] of keys, values and scales of both.
        """
        sizes, first = self.layout.sizes, 0
        for i, at in enumerate(lists):
            heads = slice(0, self._heads) if len(lists) == 1 else slice(i, i + 1)
            count = heads.stop - heads.start
            end = first + count * len(at) * self.row_bytes
            whole = stored[first:end].reshape(count, len(at) * self.row_bytes)
            ends = np.cumsum([0, *sizes]) * len(at)
            rows = [
                whole[:, a:b].reshape(count, len(at), size)
                for a, b, size in zip(ends[:-1], ends[1:], sizes, strict=True)
            ]
            places = np.flatnonzero(at // PAGE_SLOTS == page)
            yield heads, rows, _run(at[places] % PAGE_SLOTS), _run(places)
            first = end

    def share(self, other: CpuGroupMemory) -> None:
        """Refer to another cache's pages; the tables are equal, but for empty slots at the end."""
        self._pages.share(other._pages)
        table = self._group.table
        count = -(-table.size // PAGE_SLOTS)
        self._pages.cut(count)
        self._entries = self._new_entries(count)
        for i, page in enumerate(self._pages.pages):
            self._entries[:, i] = self.layout.addresses(page.memory)
        if self.mass is not None and other.mass is not None:
            self.mass = other.mass[:, : table.size].copy()
        if self.rests is not None and other.rests is not None:
            self.rests[:] = other.rests
        self._place()

    def _index(self, layer: int, head: int) -> int:
        return self._row[layer, head]

    def _extend(self, count: int, made: list[int]) -> None:
        """Grow all arrays for so many pages, and enter the new ones."""
        table = self._group.table
        size = min(count * PAGE_SLOTS, table.limit)
        table.grow(size)
        entries = self._new_entries(count)
        entries[:, : self._entries.shape[1]] = self._entries
        for i in made:
            entries[:, i] = self.layout.addresses(self._pages.pages[i].memory)
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
        """Make an empty table of pages, with a row of zeros that kernels read ahead."""
        return np.zeros((self._heads, pages + 1, PAGE_FIELDS), np.int64)

    def _set_used(self) -> None:
        used = self._group.table.used
        if len(used) > 1:
            self._records[self._at, REC_USED] = used
        elif used[0] != self._used:
            self._used = int(used[0])
            self._records[self._at, REC_USED] = self._used

    def _set(self, field: int, value: npt.ArrayLike) -> None:
        """Write a field of all heads' records: one value, or one for each head."""
        self._records[self._at, field] = value

    @staticmethod
    def _address_of_rows(array: npt.NDArray[np.generic]) -> Places:
        return array.ctypes.data + np.arange(len(array), dtype=np.int64) * array.strides[0]


def _run(places: Places) -> Places | slice:
    """The same places as a slice where each follows the one before: it is copied much faster."""
    if len(places) and (np.diff(places) == 1).all():
        return slice(int(places[0]), int(places[-1]) + 1)
    return places
