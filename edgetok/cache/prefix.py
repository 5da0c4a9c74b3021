"""An entry of the prefix cache: one prompt or conversation, in memory and on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.cache.protocol import KVCache
from edgetok.cache.state import CacheState


@dataclass(slots=True)
class PrefixFile:
    """The file of a prefix: of its first `tokens` tokens, 0 where there is none."""

    path: Path | None = None
    tokens: int = 0

    def give_up(self) -> Path | None:
        """Have no file; return the path of what is to be removed, if anything is."""
        path, self.path, self.tokens = self.path, None, 0
        return path


@dataclass(slots=True)
class Prefix:
    """The state after some tokens.

    Attributes:
        name: hash of model, shape and tokens.
        tokens: the tokens that were read.
        shape: shape of the caches that can take it.
        held: a fork, or a state block.
        nbytes: bytes of what is held and the tokens.
        file: on disk; of fewer tokens where the conversation went on since.
        ids: the tokens as an array, for comparisons.
    """

    name: str
    tokens: list[int]
    shape: Mapping[str, Any]
    held: KVCache | CacheState
    nbytes: int
    file: PrefixFile = field(default_factory=PrefixFile)
    ids: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = np.asarray(self.tokens, np.int64)

    @property
    def copied_tokens(self) -> int:
        """Return the tokens that are copied before a cache can share them."""
        return len(self.tokens) if isinstance(self.held, CacheState) else 0

    def is_grown(self, grown: float) -> bool:
        """Return whether it has more tokens than its file, and at least `grown` times as many."""
        return self.file.tokens < len(self.tokens) >= grown * self.file.tokens

    def take_file(self, other: Prefix) -> Path | None:
        """Take over the file of an entry that goes, if it has more tokens than this one's.

        Returns:
            The path of the file that is not wanted any more.
        """
        if other.file.tokens >= self.file.tokens:
            self.file, other.file = other.file, self.file
        return other.file.give_up()

    def shared(self, ids: npt.NDArray[np.int64]) -> int:
        """Return how many tokens it begins with that others begin with, too."""
        count = min(len(ids), len(self.ids))
        differ = np.flatnonzero(ids[:count] != self.ids[:count])
        return int(differ[0]) if len(differ) else count
