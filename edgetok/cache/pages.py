"""Pages of slots: allocated when first used, counted by reference, copied on write.

Two caches that began alike share the pages that neither has written to since; a page is given back
when no cache refers to it. One pool a backend counts all bytes and keeps them below a limit.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgetok.errors import ContextError

ALIGNMENT_BYTES = 64
_HUGE_BYTES = 2 << 20
_SLAB_BYTES = 32 << 20
_MOST_PAGES = 16  # of a slab

Bytes = npt.NDArray[np.uint8]


class _Slab:
    """Memory for several pages of one size, given back when all of them are free."""

    __slots__ = ("free", "pages")

    def __init__(self, pages: int) -> None:
        self.pages = self.free = pages


class Page:
    """Bytes of some slots of every head of a group; how many, its device says.

    Attributes:
        memory: uint8, 64-byte aligned, zeroed when allocated.
        references: how many page lists hold it.
        slab: the allocation that its memory is part of.
    """

    __slots__ = ("memory", "references", "slab")

    def __init__(self, memory: Bytes, slab: _Slab) -> None:
        self.memory, self.references, self.slab = memory, 0, slab

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return int(self.memory.ctypes.data)


class PagePool:
    """All pages of a backend's caches. Safe to use from many threads.

    Pages of one size are cut from slabs, so that the system can map them with huge pages: reading
    a cache of 4,096 tokens in pages that were allocated one by one took 7 % longer. Memory of a
    slab that no page has used yet is only reserved.

    Attributes:
        limit_bytes: most bytes of all pages; None is no limit.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._used_bytes = 0
        self._pages = 0
        self._free: dict[int, list[Page]] = {}  # by size
        self._lock = threading.RLock()  # the collector may release pages in the middle

    @property
    def used_bytes(self) -> int:
        """Bytes of all pages that some cache holds."""
        return self._used_bytes

    @property
    def pages(self) -> int:
        """Pages that some cache holds."""
        return self._pages

    def allocate(self, nbytes: int) -> Page:
        """A page of zeros, held once.

        Raises:
            ContextError: the limit or the memory does not allow it; nothing was changed.
        """
        with self._lock:
            limit = self.limit_bytes
            if limit is not None and self._used_bytes + nbytes > limit:
                raise ContextError(
                    f"all KV caches together hold {self._used_bytes:,} of {limit:,} bytes, "
                    f"{nbytes:,} more were asked for; end a conversation, or allow more bytes"
                )
            if not self._free.get(nbytes):
                made = _new_slab(nbytes)
                self._free.setdefault(nbytes, []).extend(made)
            page = self._free[nbytes].pop()
            page.slab.free -= 1
            page.references = 1
            self._used_bytes += nbytes
            self._pages += 1
        return page

    def hold(self, page: Page) -> Page:
        """The same page, held once more."""
        with self._lock:
            page.references += 1
        return page

    def release(self, page: Page) -> None:
        """Hold a page once less; the last time its bytes are given back."""
        with self._lock:
            page.references -= 1
            if page.references:
                return
        page.memory[:] = 0  # nobody else knows it now
        with self._lock:
            nbytes, slab = page.memory.nbytes, page.slab
            self._used_bytes -= nbytes
            self._pages -= 1
            slab.free += 1
            free = self._free[nbytes]
            free.append(page)
            if slab.free == slab.pages:
                free[:] = [other for other in free if other.slab is not slab]


class PageList:
    """The pages of one group of one cache, by number. Releases them when it is no longer used."""

    def __init__(
        self,
        pool: PagePool,
        bytes_of: Callable[[int], int],
        copy: Callable[[Bytes, Bytes], None],
    ) -> None:
        """Begin without pages.

        Args:
            pool: where they come from.
            bytes_of: gives the bytes of page i.
            copy: copies the contents of a page, its first argument, into one that may have another
                number of slots.
        """
        self._pool, self._bytes_of, self._copy = pool, bytes_of, copy
        self.pages: list[Page] = []
        weakref.finalize(self, _release_all, pool, self.pages)

    @property
    def nbytes(self) -> int:
        """Bytes of all its pages, shared ones included."""
        return sum(page.memory.nbytes for page in self.pages)

    def grow(self, count: int) -> list[int]:
        """Have at least `count` pages; gives the numbers of new ones.

        Raises:
            ContextError: there is not memory for all of them; nothing was changed.
        """
        first = len(self.pages)
        made: list[Page] = []
        try:
            for i in range(first, count):
                made.append(self._pool.allocate(self._bytes_of(i)))
        except ContextError:
            for page in made:
                self._pool.release(page)
            raise
        self.pages += made
        return list(range(first, len(self.pages)))

    def cut(self, count: int) -> None:
        """Release the pages from number `count` on."""
        while len(self.pages) > count:
            self._pool.release(self.pages.pop())

    def is_own(self, i: int) -> bool:
        """Return whether page i may be written to: no other list holds it, and its size is right.

        A page that was taken over from a list of another length may have another size.
        """
        page = self.pages[i]
        return page.references == 1 and page.memory.nbytes == self._bytes_of(i)

    def own(self, i: int) -> None:
        """Put a copy in place of page i, which `is_own` says may not be written to.

        Raises:
            ContextError: there is no memory for the copy; nothing was changed.
        """
        page, made = self.pages[i], self._pool.allocate(self._bytes_of(i))
        self._copy(page.memory, made.memory)
        self.pages[i] = made
        self._pool.release(page)

    def share(self, other: PageList) -> None:
        """Hold another list's pages in place of one's own."""
        pages = [self._pool.hold(page) for page in other.pages]
        self.cut(0)
        self.pages += pages


def _new_slab(nbytes: int) -> list[Page]:
    """Pages of a new slab, the one with the lowest address last.

    Raises:
        ContextError: there is no memory.
    """
    count = max(1, min(_MOST_PAGES, _SLAB_BYTES // nbytes))
    alignment = _HUGE_BYTES if count * nbytes >= _HUGE_BYTES else ALIGNMENT_BYTES
    try:
        raw = np.zeros(count * nbytes + alignment, np.uint8)
    except MemoryError as error:
        raise ContextError(
            f"no memory for {count * nbytes:,} more bytes of KV cache; end a conversation, or give "
            "a smaller --context or --kv-budget"
        ) from error
    first, slab = -raw.ctypes.data % alignment, _Slab(count)
    starts = range(first + (count - 1) * nbytes, first - 1, -nbytes)
    return [Page(raw[start : start + nbytes], slab) for start in starts]


def _release_all(pool: PagePool, pages: list[Page]) -> None:
    while pages:
        pool.release(pages.pop())
