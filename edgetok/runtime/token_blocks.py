"""Check the tokens of a call and cut them into blocks, for every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.cache.protocol import KVCache
from edgetok.errors import ContextError, OptionError, ShapeError
from edgetok.runtime.backend import Interrupted, Tokens


def checked_tokens(tokens: npt.NDArray[Any], cache: KVCache, vocab_size: int) -> Tokens:
    """The tokens as int32 [T].

    Raises:
        ContextError: they do not fit into the cache.
        OptionError: a token id is not below the vocabulary's size.
        ShapeError: no tokens, not one row of integers, or not a cache.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ShapeError(f"tokens are {ids.dtype} {ids.shape}, expected integers [T], T > 0")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocab_size:
        raise OptionError(f"token ids from {lowest} to {highest}, expected 0..{vocab_size - 1}")
    if not hasattr(type(cache), "length_tokens"):
        raise foreign_cache(cache)
    needed = cache.length_tokens + ids.size
    if needed > cache.capacity_tokens:
        raise ContextError(
            f"{needed:,} tokens do not fit into a context of {cache.capacity_tokens:,}; "
            "shorten the conversation or give --context"
        )
    return ids.astype(np.int32, copy=False)


def foreign_cache(cache: object) -> ShapeError:
    """Return the error for a cache that another backend made, or that is none."""
    return ShapeError(f"a {type(cache).__name__} is not a cache of this backend; use its new_cache")


def blocks(
    ids: Tokens, size: int, should_stop: Callable[[], bool] | None
) -> Iterator[tuple[int, Tokens, bool]]:
    """Yield the start and the tokens of each block of at most `size`, and whether it is the last.

    Raises:
        Interrupted: `should_stop` said yes between two blocks.
    """
    for start in range(0, ids.size, size):
        if start and should_stop is not None and should_stop():
            raise Interrupted
        yield start, ids[start : start + size], start + size >= ids.size
