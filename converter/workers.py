"""Independent pieces of work on several threads.

torch's own threads are not used: they wait for each other in loops that spin, which on a busy
machine takes most of the time, and sums over the pieces that they make differ in their last bits
with the number of threads. Here pieces are cut without regard to the number of threads, so a result
does not depend on it. What runs beside each other releases Python's lock: products of torch, loops
of NumPy, compiled functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# glibc's numbers of parameters of `mallopt`, and their values.
_MMAP_THRESHOLD, _LARGE_BYTES = -3, 1 << 20
_ARENA_MAX, _ARENAS = -8, 2
MOST_ROWS = 512  # of a piece: fewer spend more time in Python than in compiled loops


def side_by_side(threads: int, works: Sequence[Callable[[], T]]) -> list[T]:
    """Call functions that do not depend on each other and return their results, in order.

    Args:
        threads: how many are called at once.
        works: none of them may call `side_by_side` with more than one thread.
    """
    if threads == 1 or len(works) < 2:
        return [work() for work in works]
    return list(_pool(threads).map(_call, works))


def pieces_of(rows: int, most: int | None = None) -> list[slice]:
    """Cut rows into ranges of about equal length, at most `most`; None: `MOST_ROWS`."""
    most = MOST_ROWS if most is None else most
    count = max(1, -(-rows // most))
    return [slice(i * rows // count, (i + 1) * rows // count) for i in range(count)]


def arrange_memory() -> None:
    """Have glibc give freed arrays back at once, and torch take large pages, from now on.

    Otherwise every thread keeps what it freed for itself, up to 32 MB of each size: of SmolLM2's
    conversion two thirds of the memory. Another C library is left alone.

    So each large array is new to the process, and a fault for every 4 kB of it was a fifth of a
    conversion's time. torch asks Linux for pages of 2 MB instead, as NumPy does by itself; it reads
    the variable before its first array.
    """
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 (it is glibc)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_ARENA_MAX, _ARENAS)


@contextlib.contextmanager
def torch_in_one_thread(wanted: bool = True) -> Iterator[None]:
    """Have torch compute in the thread that calls it, for as long as the context lasts.

    Args:
        wanted: False leaves torch alone, which is then not imported.
    """
    if not wanted:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _call(work: Callable[[], T]) -> T:
    return work()


_pool = functools.cache(ThreadPoolExecutor)  # a new one for each use would take seconds in all
if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
