"""Beginnings of prompts that were read before: bounded caches, in memory and on disk.

A prompt that begins as an earlier one did, with the same system message or document, is not read
again up to where they differ. States are kept up to a number of bytes, those used last; on disk
one container a state (`formats/container.py`) whose name is a hash. What is damaged, foreign or of
another shape is as if it were not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgetok.cache.state import CacheState
from edgetok.cache.state_file import SavedCache, cache_parts, saved_cache
from edgetok.errors import SessionError
from edgetok.formats.container import read_container, write_container
from edgetok.private_folder import private_folder

LEAST_TOKENS = 64  # fewer are read as fast as a state is copied
_SUFFIX = ".prefix"


class PrefixCache:
    """States of one model, up to `limit_bytes`. Safe to use from many threads."""

    def __init__(self, model: str, limit_bytes: int, folder: Path | None = None) -> None:
        """Begin, with what an earlier process left in `folder`.

        Args:
            model: `Artefact.identity`.
            limit_bytes: of all states together, in memory and likewise on disk.
            folder: where they are kept between processes; made with access for its owner alone.
                None keeps them in memory.

        Raises:
            OutputError: the folder belongs to somebody else or cannot be made.
        """
        self._model, self._limit, self._folder = model, limit_bytes, folder
        self._states: OrderedDict[str, SavedCache] = OrderedDict()
        self._lock = threading.Lock()
        if folder is not None:
            private_folder(folder, "beginnings of prompts")
            for path in sorted(folder.glob(f"*{_SUFFIX}"), key=_used_at):
                self._read(path)
            self._shrink()

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(_nbytes(saved) for saved in self._states.values())

    def find(
        self, prompt: Sequence[int], shape: dict[str, object]
    ) -> tuple[int, SavedCache] | None:
        """The state that shares the longest beginning with a prompt.

        Returns:
            How many tokens they share, at least LEAST_TOKENS, and the state; None without any.
        """
        ids = np.asarray(prompt, np.int64)
        best: tuple[int, str] | None = None
        with self._lock:
            for name, saved in self._states.items():
                if saved.state.shape == shape:
                    count = min(len(ids), len(saved.tokens))
                    differ = np.flatnonzero(ids[:count] != np.asarray(saved.tokens[:count]))
                    same = int(differ[0]) if len(differ) else count
                    if same >= LEAST_TOKENS and (best is None or same > best[0]):
                        best = same, name
            if best is None:
                return None
            self._states.move_to_end(best[1])
            return best[0], self._states[best[1]]

    def add(self, tokens: Sequence[int], state: CacheState) -> None:
        """Keep a state; those that were not used for longest go where there are too many.

        Raises:
            OutputError: the folder cannot be written to.
        """
        saved = SavedCache(list(tokens), state)
        if len(tokens) < LEAST_TOKENS or _nbytes(saved) > self._limit:
            return
        name = hashlib.sha256(
            repr((self._model, sorted(state.shape.items()), saved.tokens)).encode()
        ).hexdigest()
        with self._lock:
            self._states[name] = saved
            self._states.move_to_end(name)
            self._shrink()
            if self._folder is not None:
                header, parts = cache_parts(saved)
                write_container(self._folder / (name + _SUFFIX), self._model, header, parts)

    def _shrink(self) -> None:
        while self.nbytes > self._limit:
            name, _ = self._states.popitem(last=False)
            if self._folder is not None:
                with contextlib.suppress(OSError):
                    (self._folder / (name + _SUFFIX)).unlink()

    def _read(self, path: Path) -> None:
        """Take in a file; one of another model stays where it is, a damaged one is removed."""
        try:
            header, parts = read_container(path, self._model, max_bytes=self._limit + (1 << 20))
            self._states[path.name.removesuffix(_SUFFIX)] = saved_cache(path, header, parts)
        except SessionError as error:
            if "another model" not in str(error):
                with contextlib.suppress(OSError):
                    path.unlink()


def _nbytes(saved: SavedCache) -> int:
    return saved.state.nbytes + 4 * len(saved.tokens)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
