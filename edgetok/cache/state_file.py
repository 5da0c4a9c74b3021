"""A cache's state in a container file: written by sessions and by the prefix cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.cache.state import CacheState
from edgetok.errors import SessionError

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SavedCache:
    """A cache, and the tokens that it has seen."""

    tokens: list[int]
    state: CacheState

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.state.nbytes + 4 * len(self.tokens)


def cache_parts(cache: SavedCache) -> tuple[dict[str, Any], list[Bytes]]:
    """A saved cache as a container's header and parts."""
    header = {"tokens": len(cache.tokens)}
    return header, [np.array(cache.tokens, np.int32).view(np.uint8), cache.state.block]


def is_outdated(header: Mapping[str, Any]) -> bool:
    """Return whether a container holds a cache in the format before state blocks."""
    return "numbers" in header and "tokens" not in header


def saved_cache(path: Path, header: Mapping[str, Any], parts: list[Bytes]) -> SavedCache:
    """The opposite of `cache_parts`; what the numbers mean, the cache checks.

    Raises:
        SessionError: it is malformed.
    """
    if len(parts) != 2:
        raise SessionError(f"{path}: holds no cache")
    if parts[0].nbytes % 4:
        raise SessionError(f"{path}: tokens of {parts[0].nbytes} bytes, expected 4 each")
    tokens = parts[0].copy().view(np.int32).tolist()
    if header.get("tokens") != len(tokens) or (tokens and min(tokens) < 0):
        raise SessionError(f"{path}: {header.get('tokens')!r:.40} tokens, found {len(tokens)}")
    try:
        state = CacheState(parts[1].copy())
    except SessionError as error:
        raise SessionError(f"{path}: {error}") from error
    if state.length_tokens != len(tokens):
        raise SessionError(f"{path}: {len(tokens)} tokens for a cache of {state.length_tokens:,}")
    return SavedCache(tokens, state)
