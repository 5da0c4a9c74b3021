"""Beginnings of prompts that were read before: caches, in memory and on disk.

A prompt that begins as an earlier one did, with the same system message or document, is not read
again up to where they differ. In memory an entry is a fork of the cache that read it, so that all
conversations with one system message share its pages; where a backend's caches share no memory, and
on disk, it is a state block. Entries are kept up to a number of bytes, those used last. A thread of
its own writes files, so that no answer waits for a disk. A file is a container
(`formats/container.py`) whose name is a hash; damaged entries, and entries of other models or
settings, are ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.cache.protocol import KVCache
from edgetok.cache.state import CacheState
from edgetok.cache.state_file import SavedCache, cache_parts, saved_cache
from edgetok.errors import ContextError, SessionError
from edgetok.formats.container import read_container, write_container
from edgetok.private_folder import private_folder

LEAST_TOKENS = 64  # fewer are read as fast as a state is copied
_SUFFIX = ".prefix"
_WRITING_NICE = 10  # a long conversation takes seconds to copy, to hash and to write


@dataclass(slots=True)
class Prefix:
    """The state after some tokens.

    Attributes:
        name: hash of model, shape and tokens.
        tokens: the tokens that were read.
        shape: shape of the caches that can take it.
        held: a fork, or a state block.
        nbytes: bytes of what is held and the tokens.
        ids: the tokens as an array, for comparisons.
    """

    name: str
    tokens: list[int]
    shape: Mapping[str, Any]
    held: KVCache | CacheState
    nbytes: int
    ids: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = np.asarray(self.tokens, np.int64)


class PrefixCache:
    """States of one model, up to `limit_bytes`. Safe to use from many threads.

    Attributes:
        limit_bytes: most bytes of all states together, in memory and likewise on disk.
        too_large: number of states that were larger than that, and so are not kept.
    """

    def __init__(self, model: str, limit_bytes: int, folder: Path | None = None) -> None:
        """Begin, with what an earlier process left in `folder`.

        Args:
            model: `Artefact.identity`.
            limit_bytes: most bytes of all states together, in memory and likewise on disk.
            folder: where they are kept between processes; made with access for its owner alone.
                None keeps them in memory.

        Raises:
            OutputError: the folder belongs to somebody else or cannot be made.
        """
        self._model, self.limit_bytes, self._folder = model, limit_bytes, folder
        self.too_large = 0
        self._untold: str | None = None
        self._entries: OrderedDict[str, Prefix] = OrderedDict()
        self._lock = threading.Lock()
        self._writing: ThreadPoolExecutor | None = None  # made when the first file is written
        self._process = os.getpid()
        self._files: list[Future[None]] = []
        if folder is not None:
            private_folder(folder, "beginnings of prompts")
            for path in sorted(folder.glob(f"*{_SUFFIX}"), key=_used_at):
                self._read(path)
            self._shrink()

    @property
    def nbytes(self) -> int:
        """Bytes of all entries; memory that several share is counted for each."""
        return sum(entry.nbytes for entry in self._entries.values())

    def find(self, prompt: Sequence[int], cache: KVCache) -> tuple[int, Prefix] | None:
        """The entry that shares the longest beginning with a prompt and that `cache` can take.

        Returns:
            How many tokens they share, at least LEAST_TOKENS, and the entry; None without any.
        """
        ids, shape = np.asarray(prompt, np.int64), cache.shape
        best: tuple[int, str] | None = None
        with self._lock:
            for name, entry in self._entries.items():
                if entry.shape == shape and len(entry.tokens) <= cache.capacity_tokens:
                    count = min(len(ids), len(entry.tokens))
                    differ = np.flatnonzero(ids[:count] != entry.ids[:count])
                    same = int(differ[0]) if len(differ) else count
                    if same >= LEAST_TOKENS and (best is None or same > best[0]):
                        best = same, name
            if best is None:
                return None
            self._entries.move_to_end(best[1])
            return best[0], self._entries[best[1]]

    def restore(self, entry: Prefix, cache: KVCache) -> bool:
        """Make `cache` what an entry holds.

        Returns:
            False, with nothing changed, where the entry turns out to be damaged; it is dropped.

        Raises:
            ContextError: there is not memory for it; nothing was changed.
        """
        with self._lock:
            try:
                if isinstance(entry.held, CacheState):
                    cache.load(entry.held)
                    if cache.capabilities.shares:  # from now on without a copy
                        entry.held = cache.fork()
                else:
                    cache.adopt(entry.held)
            except SessionError:
                self._drop(entry.name)
                return False
            return True

    def add(self, tokens: Sequence[int], cache: KVCache) -> None:
        """Keep the state of a cache that has read `tokens`.

        Entries that were not used for longest go where there are too many.

        Raises:
            OutputError: an earlier one could not be written to the folder.
        """
        self._raise_failed()
        if len(tokens) < LEAST_TOKENS:
            return
        shape = dict(cache.shape)
        held = cache.fork() if cache.capabilities.shares else cache.save()
        size = held.nbytes if isinstance(held, CacheState) else held.held_bytes
        name = hashlib.sha256(
            repr((self._model, sorted(shape.items()), list(tokens))).encode()
        ).hexdigest()
        entry = Prefix(name, list(tokens), shape, held, size + 4 * len(tokens))
        if entry.nbytes > self.limit_bytes:
            with self._lock:
                self.too_large += 1
                if self.too_large == 1:
                    self._untold = (
                        f"a prompt of {len(tokens):,} tokens takes {entry.nbytes / 1e6:,.1f} MB "
                        f"and the prefix cache holds {self.limit_bytes / 1e6:,.1f} MB, so it is "
                        "not kept and will be computed again; give a larger --prefix-cache"
                    )
            return
        with self._lock:
            self._entries[name] = entry
            self._entries.move_to_end(name)
            self._shrink()
            if self._folder is not None:
                written = self._later(self._write, entry, self._folder)
                self._files.append(written)

    def warm(self, make: Callable[[int], KVCache]) -> None:
        """Take the entry that was used last from its file's form into a cache, in the background.

        So the next turn of its conversation does not wait for that: half a gigabyte takes seconds.

        Args:
            make: returns an empty cache for so many tokens.
        """
        with self._lock:
            if self._entries:
                self._later(self._warm, next(reversed(self._entries.values())), make)

    def _warm(self, entry: Prefix, make: Callable[[int], KVCache]) -> None:
        with contextlib.suppress(ContextError):  # no memory: the answer that wants it finds out
            # A cache smaller than a block has another shape.
            cache = make(max(len(entry.tokens), int(entry.shape.get("block_tokens", 0))))
            held = entry.held
            fits = cache.shape == entry.shape and cache.capabilities.shares
            if not fits or not isinstance(held, CacheState):
                return
            try:
                cache.load(held)
            except SessionError:
                with self._lock:
                    self._drop(entry.name)
                return
            with self._lock:
                if entry.held is held:
                    entry.held = cache

    def _later(self, work: Callable[..., None], *arguments: object) -> Future[None]:
        """Have the thread of its own do something. Called with the lock."""
        if self._writing is None or self._process != os.getpid():
            self._writing = ThreadPoolExecutor(1, "edgetok-prefixes", initializer=_stand_back)
            self._process, self._files = os.getpid(), []
        return self._writing.submit(work, *arguments)

    def warning(self) -> str | None:
        """Return a line about the first state that was too large, once; else None."""
        with self._lock:
            line, self._untold = self._untold, None
        return line

    def flush(self) -> None:
        """Wait until all files are written.

        Raises:
            OutputError: one could not be.
        """
        wait(self._files)
        self._raise_failed()

    def close(self) -> None:
        """Wait until all files are written, and end the thread; later additions begin another."""
        writing, self._writing = self._writing, None
        if writing is not None and self._process == os.getpid():
            writing.shutdown()

    def _raise_failed(self) -> None:
        """Raise the error of a file that could not be written, once."""
        with self._lock:
            done = [file for file in self._files if file.done()]
            self._files = [file for file in self._files if not file.done()]
        for file in done:
            file.result()

    def _write(self, entry: Prefix, folder: Path) -> None:
        """Write an entry's file, unless it is gone by now."""
        path = folder / (entry.name + _SUFFIX)
        with self._lock:
            held = entry.held
            if self._entries.get(entry.name) is not entry:
                return
        state = held if isinstance(held, CacheState) else held.save()
        header, parts = cache_parts(SavedCache(entry.tokens, state))
        write_container(path, self._model, header, parts)
        with self._lock:
            if entry.name not in self._entries:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _shrink(self) -> None:
        while self.nbytes > self.limit_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, name: str) -> None:
        self._entries.pop(name, None)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / (name + _SUFFIX)).unlink()

    def _read(self, path: Path) -> None:
        """Take in a file; one of another model stays where it is, a damaged one is removed."""
        try:
            header, parts = read_container(
                path, self._model, max_bytes=self.limit_bytes + (1 << 20)
            )
            saved = saved_cache(path, header, parts)
        except SessionError as error:
            if "another model" not in str(error):
                with contextlib.suppress(OSError):
                    path.unlink()
            return
        name = path.name.removesuffix(_SUFFIX)
        self._entries[name] = Prefix(
            name, saved.tokens, saved.state.shape, saved.state, saved.nbytes
        )


def _stand_back() -> None:
    """Let the thread that writes files wait for those that compute, where threads have a rank."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _WRITING_NICE)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
