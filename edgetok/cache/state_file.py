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


def cache_parts(cache: SavedCache) -> tuple[dict[str, Any], list[Bytes]]:
    """A saved cache as a container's header and parts."""
    header = {"shape": cache.state.shape, "numbers": cache.state.numbers}
    return header, [np.array(cache.tokens, np.int32).view(np.uint8), *cache.state.memory]


def saved_cache(path: Path, header: Mapping[str, Any], parts: list[Bytes]) -> SavedCache:
    """The opposite of `cache_parts`; what the numbers mean, the cache checks.

    Raises:
        SessionError: it is malformed.
    """
    shape, numbers = header.get("shape"), header.get("numbers")
    if not isinstance(shape, dict) or not isinstance(numbers, dict) or not parts:
        raise SessionError(f"{path}: holds no cache")
    if parts[0].nbytes % 4:
        raise SessionError(f"{path}: tokens of {parts[0].nbytes} bytes, expected 4 each")
    tokens = parts[0].copy().view(np.int32).tolist()
    if numbers.get("length") != len(tokens):
        raise SessionError(
            f"{path}: {len(tokens)} tokens for a cache of {numbers.get('length')!r:.40}"
        )
    return SavedCache(
        tokens, CacheState(shape=shape, numbers=numbers, memory=tuple(p.copy() for p in parts[1:]))
    )
