"""Beginnings of prompts that were read before: caches, in memory and on disk.

A prompt that begins as an earlier one did, with the same system message or document, is not read
again up to where they differ. In memory an entry is a fork of the cache that read it, so that all
conversations with one system message share its pages; where a backend's caches share no memory, and
on disk, it is a state block. Entries are kept up to a number of bytes, those used last. A thread of
its own writes files, so that no answer waits for a disk. A file is a container
(`formats/container.py`) whose name is a hash; damaged entries, and entries of other models or
settings, are ignored.

Where forks can be cut to any length, a conversation that goes on takes the place of what was kept
of it before. Its file is written anew only when it has grown by an eighth, and at the end: so a
conversation of N tokens writes the bytes of less than 10 N, not of all its turns added up.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from edgetok.cache.prefix import Prefix, PrefixFile
from edgetok.cache.protocol import KVCache
from edgetok.cache.state import CacheState
from edgetok.cache.state_file import SavedCache, cache_parts, saved_cache
from edgetok.errors import ContextError, SessionError
from edgetok.formats.container import read_container, write_container
from edgetok.private_folder import private_folder

LEAST_TOKENS = 64  # fewer are read as fast as a state is copied
# Tokens of a state block that are copied into a cache in the time in which one is computed: 80 to
# 160 with a model of 135M parameters, 200 to 550 with one of 1B (AVX2).
_COPIED_TOKENS = 256
_SUFFIX = ".prefix"
_GROWN = 9 / 8  # times the tokens that a file holds: then it is written anew
_WRITING_NICE = 10  # a long conversation takes seconds to copy, to hash and to write


class PrefixCache:
    """States of one model, up to `limit_bytes`. Safe to use from many threads.

    Attributes:
        limit_bytes: most bytes of all states together, in memory and likewise on disk.
        too_large: number of states that were larger than that, and so are not kept.
        unwritten: number of files that could not be written; their states are kept in memory.
    """

    def __init__(
        self,
        model: str,
        limit_bytes: int,
        folder: Path | None = None,
        make: Callable[[int], KVCache] | None = None,
    ) -> None:
        """Begin, with what an earlier process left in `folder`.

        Args:
            model: `Artefact.identity`.
            limit_bytes: most bytes of all states together, in memory and likewise on disk.
            folder: where they are kept between processes; made with access for its owner alone.
                None keeps them in memory.
            make: returns an empty cache for so many tokens, for what comes from files; without it a
                state from a file is for caches that have room for all of it.

        Raises:
            OutputError: the folder belongs to somebody else or cannot be made.
        """
        self._model, self.limit_bytes, self._folder = model, limit_bytes, folder
        self._make = make
        self.too_large = self.unwritten = 0
        self._untold: list[str] = []
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
        """The entry that saves most of a prompt and that `cache` can take.

        That is the one with the longest beginning in common. What is a state block still must be
        ahead by what copying it takes, so that after a restart not each of several conversations
        with one beginning is copied.

        Returns:
            How many tokens they share, at least LEAST_TOKENS, and the entry; None without any.
        """
        ids, shape = np.asarray(prompt, np.int64), cache.shape
        best: tuple[int, int, str] | None = None
        with self._lock:
            for name, entry in self._entries.items():
                if entry.shape == shape and self._fits(entry, cache):
                    same = entry.shared(ids)
                    saved = same - math.ceil(entry.copied_tokens / _COPIED_TOKENS)
                    if LEAST_TOKENS <= same <= cache.capacity_tokens and (
                        best is None or saved > best[0]
                    ):
                        best = saved, same, name
            if best is None:
                return None
            self._entries.move_to_end(best[2])
            return best[1], self._entries[best[2]]

    def _fits(self, entry: Prefix, cache: KVCache) -> bool:
        """Whether a cache can take an entry, or the part of it that it has room for."""
        if len(entry.tokens) <= cache.capacity_tokens:
            return True
        ready = not isinstance(entry.held, CacheState) or self._make is not None
        return ready and cache.capabilities.rewinds

    def restore(self, entry: Prefix, cache: KVCache, tokens: int | None = None) -> bool:
        """Make `cache` what an entry holds.

        Args:
            entry: from `find`.
            cache: takes all of it, if it has room for that.
            tokens: that it takes otherwise, the entry's first ones.

        Returns:
            False, with nothing changed, where the entry turns out to be damaged; it is dropped.

        Raises:
            ContextError: there is not memory for it; nothing was changed.
        """
        with self._lock:
            try:
                if len(entry.tokens) > cache.capacity_tokens:
                    cache.adopt(self._beginning(entry, tokens or 0))
                elif isinstance(entry.held, CacheState):
                    cache.load(entry.held)
                    if cache.capabilities.shares:  # from now on without a copy
                        entry.held = cache.fork()
                else:
                    cache.adopt(entry.held)
            except SessionError:
                self._drop(entry.name)
                return False
            return True

    def _beginning(self, entry: Prefix, tokens: int) -> KVCache:
        """A fork of an entry, cut to its first tokens. Called with the lock."""
        if isinstance(entry.held, CacheState) and self._make is not None:
            whole = self._make(len(entry.tokens))
            whole.load(entry.held)
            entry.held = whole
        if isinstance(entry.held, CacheState):
            raise SessionError("a prefix on disk is longer than the cache")
        made = entry.held.fork()
        made.truncate(tokens)
        return made

    def add(self, tokens: Sequence[int], cache: KVCache) -> None:
        """Keep the state of a cache that has read `tokens`.

        Where forks can be cut to any length it takes the place of its own beginnings, and a
        beginning of what is kept is not kept again. Entries that were not used for longest go where
        there are too many. An earlier one that could not be written to the folder is counted, and
        told by `warning`: an answer has no use for a file.
        """
        self._count_failed()
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
                    self._untold.append(
                        f"a prompt of {len(tokens):,} tokens takes {entry.nbytes / 1e6:,.1f} MB "
                        f"and the prefix cache holds {self.limit_bytes / 1e6:,.1f} MB, so it is "
                        "not kept and will be computed again; give a larger --prefix-cache"
                    )
            return
        with self._lock:
            if cache.capabilities.rewinds and self._known(entry, cache):
                return
            for other in self._beginnings(entry) if cache.capabilities.rewinds else [name]:
                if other in self._entries:
                    self._remove(entry.take_file(self._entries.pop(other)))
            self._entries[name] = entry
            self._shrink()
            self._file(entry, _GROWN)

    def _known(self, entry: Prefix, cache: KVCache) -> bool:
        """Whether a longer entry, which then counts as used, serves for this one."""
        for name, other in self._entries.items():
            longer = len(other.tokens) > len(entry.tokens) and other.shape == entry.shape
            if longer and self._fits(other, cache) and other.shared(entry.ids) == len(entry.tokens):
                self._entries.move_to_end(name)
                return True
        return False

    def _beginnings(self, entry: Prefix) -> list[str]:
        """Entries that this one begins with, or that are the same."""
        return [
            name
            for name, other in self._entries.items()
            if other.shape == entry.shape and other.shared(entry.ids) == len(other.tokens)
        ]

    def _file(self, entry: Prefix, grown: float) -> None:
        """Write an entry's file later, if it is `grown` times what is there. With the lock."""
        if self._folder is not None and entry.is_grown(grown):
            self._on_disk(self._write, entry, self._folder, grown)

    def warm(self) -> None:
        """Take the entry that was used last from its file's form into a cache, in the background.

        So the next turn of its conversation does not wait for that: half a gigabyte takes seconds.
        """
        with self._lock:
            if self._entries and self._make is not None:
                self._later(self._warm, next(reversed(self._entries.values())), self._make)

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

    def _on_disk(self, work: Callable[..., None], *arguments: object) -> None:
        """Have the folder changed later; `flush` waits for it. Called with the lock."""
        changed = self._later(work, *arguments)
        self._files.append(changed)  # after `_later`, which may begin another list

    def warning(self) -> str | None:
        """Return a line about the first state that was too large, or not written, once; or None."""
        with self._lock:
            return self._untold.pop(0) if self._untold else None

    def flush(self) -> None:
        """Wait until all files are written.

        Raises:
            OutputError: one could not be.
        """
        self._file_rest()
        wait(self._files)
        for error in self._failed():
            raise error

    def close(self) -> None:
        """Wait until all files are written, and end the thread; later additions begin another."""
        if self._process == os.getpid():
            self._file_rest()
        writing, self._writing = self._writing, None
        if writing is not None and self._process == os.getpid():
            writing.shutdown()

    def _file_rest(self) -> None:
        """Write the files of conversations that have grown since."""
        with self._lock:
            for entry in self._entries.values():
                self._file(entry, 1.0)

    def _failed(self) -> list[BaseException]:
        """Return the errors of files that could not be written, each once."""
        with self._lock:
            done = [file for file in self._files if file.done()]
            self._files = [file for file in self._files if not file.done()]
        return [error for file in done if (error := file.exception()) is not None]

    def _count_failed(self) -> None:
        for error in self._failed():
            with self._lock:
                self.unwritten += 1
                if self.unwritten == 1:
                    self._untold.append(
                        f"a beginning of a prompt is kept in memory alone: {error}; free space or "
                        "leave --prefix-cache out"
                    )

    def _write(self, entry: Prefix, folder: Path, grown: float) -> None:
        """Write an entry's file, unless it is gone by now or has one."""
        path = folder / (entry.name + _SUFFIX)
        with self._lock:
            held = entry.held
            if self._entries.get(entry.name) is not entry or not entry.is_grown(grown):
                return
        state = held if isinstance(held, CacheState) else held.save()
        header, parts = cache_parts(SavedCache(entry.tokens, state))
        write_container(path, self._model, header, parts)
        with self._lock:
            # Meanwhile it may have gone, or another have taken its place and its file.
            file, unwanted = entry.file, None
            if any(one.file is file for one in self._entries.values()):
                unwanted = file.path if file.path != path else None
                file.path, file.tokens = path, len(entry.tokens)
            elif entry.name not in self._entries:
                unwanted = path
        if unwanted is not None:
            _unlink(unwanted)

    def _shrink(self) -> None:
        while self.nbytes > self.limit_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._remove(entry.file.give_up())

    def _remove(self, path: Path | None) -> None:
        """Remove a file later, as half a gigabyte takes half a second. With the lock."""
        if path is not None:
            self._on_disk(_unlink, path)

    def _read(self, path: Path) -> None:
        """Take in a file; one of another model stays where it is, a damaged one is removed."""
        try:
            header, parts = read_container(
                path, self._model, max_bytes=self.limit_bytes + (1 << 20)
            )
            saved = saved_cache(path, header, parts)
        except SessionError as error:
            if "another model" not in str(error):
                _unlink(path)
            return
        name = path.name.removesuffix(_SUFFIX)
        file = PrefixFile(path, len(saved.tokens))
        self._entries[name] = Prefix(
            name, saved.tokens, saved.state.shape, saved.state, saved.nbytes, file
        )


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


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
