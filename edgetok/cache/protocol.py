"""The interface of a KV cache: what everything above a backend may ask of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgetok.cache.state import CacheState
from edgetok.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCapabilities:
    """The capabilities of a cache beside append and truncate.

    Attributes:
        evicts: it evicts tokens to stay within its bytes, so a conversation never ends.
        saves: `save`, `load`, `fork` and `adopt` work.
        shares: a fork shares memory with its origin until either writes there.
        rewinds: forks can be cut to any length, so one serves every beginning of its tokens.
    """

    evicts: bool = False
    saves: bool = False
    shares: bool = False
    rewinds: bool = False


class KVCache(Protocol):
    """The keys and values of one sequence. Made by `Backend.new_cache`; used by one thread.

    A cache holds slots; a slot holds one token's key and value for one layer and KV head, and knows
    its token's position. `length_tokens` counts the tokens seen; a bounded cache may hold fewer.

    A class that inherits from this one is a cache that can neither evict nor be saved, until it
    says otherwise.
    """

    @property
    def length_tokens(self) -> int:
        """Tokens seen so far: the position of the next one."""
        raise NotImplementedError

    @property
    def capacity_tokens(self) -> int:
        """Return the most tokens before `ContextError`."""
        raise NotImplementedError

    @property
    def block_tokens(self) -> int:
        """Most tokens that one step may append."""
        return self.capacity_tokens

    @property
    def nbytes(self) -> int:
        """Bytes when it is full, all layers; never more."""
        raise NotImplementedError

    @property
    def states_bytes(self) -> int:
        """Bytes of `nbytes` that are states and snapshots of recurrent layers: no limit's."""
        return 0

    @property
    def held_bytes(self) -> int:
        """Bytes allocated now; where forks share memory, all that this one refers to."""
        return self.nbytes

    @property
    def read_bytes(self) -> int:
        """Bytes that the next step of one token reads: keys, values and recurrent states."""
        return self.nbytes * min(self.length_tokens, self.slots) // self.slots

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from position `length_tokens` on.

        Returns:
            False, with nothing changed, where that is not possible because a sliding window has
            already overwritten older tokens; the caller then goes back to `reachable`.
        """
        raise NotImplementedError

    def clear(self) -> None:
        """Forget everything."""
        raise NotImplementedError

    def reachable(self, length_tokens: int) -> int:
        """The longest beginning, of at most `length_tokens`, that `truncate` can go back to."""
        return length_tokens

    def mark(self, length_tokens: int) -> None:
        """Note where the next turn goes back to, for caches that keep few such places; 0: none."""
        return

    @property
    def spare_tokens(self) -> int:
        """The most of the latest tokens that `truncate` takes back, so that none is computed again.

        For caches that go back to snapshots alone from further on.
        """
        return self.capacity_tokens

    @property
    def draft_tokens(self) -> int:
        """The most tokens of the next step whose last ones `retract` can take back.

        Without a trace: the cache goes on as if they had never been appended, and appending them
        needs no memory. 0 where that cannot be, as where a policy counts what they attend to.
        """
        return 0

    def retract(self, tokens: int) -> None:
        """Take back the last `tokens` tokens of the latest step, which `draft_tokens` allowed.

        Raises:
            UnsupportedError: this cache allows none.
        """
        raise UnsupportedError("this cache takes no tokens back: it has no draft_tokens")

    def reserve(self, tokens: int) -> None:
        """Allocate what the next `tokens` tokens need, so that appending them cannot fail.

        Raises:
            ContextError: there is not memory for them; nothing was changed.
        """
        return

    @property
    def capabilities(self) -> CacheCapabilities:
        """Return the cache's capabilities."""
        return CacheCapabilities()

    # Copies

    @property
    def shape(self) -> Mapping[str, Any]:
        """Return what another cache must have in common to take this one's state: JSON values."""
        return {}

    def save(self) -> CacheState:
        """A copy of all that it holds, as one block.

        Raises:
            UnsupportedError: it cannot be saved.
        """
        raise _unsupported()

    def load(self, state: CacheState) -> None:
        """Become what was saved.

        Raises:
            SessionError: the state is damaged or of another shape; nothing was changed.
            ContextError: there is not memory for it; likewise.
            UnsupportedError: it cannot be saved.
        """
        raise _unsupported()

    def fork(self) -> KVCache:
        """A cache of its own that goes on from here.

        Raises:
            ContextError: there is not memory for it.
            UnsupportedError: it cannot be saved.
        """
        raise _unsupported()

    def adopt(self, other: KVCache) -> None:
        """Become what another cache of this backend and shape is now.

        Raises:
            SessionError: the other is of another shape, or has seen more than this one can.
            UnsupportedError: it cannot be saved.
        """
        raise _unsupported()

    # Where tokens are evicted

    def pin(self, tokens: int) -> None:
        """Never evict the first `tokens` tokens.

        Raises:
            ContextError: they would take more than half of the cache.
        """
        return

    @property
    def pinned_tokens(self) -> int:
        """Tokens at the beginning that are never evicted."""
        return 0

    @property
    def slots(self) -> int:
        """Tokens that a head holds when the cache is full."""
        return self.capacity_tokens

    @property
    def recent_tokens(self) -> int:
        """Latest tokens that are always held."""
        return self.capacity_tokens

    @property
    def sinks(self) -> int:
        """First tokens that are always held."""
        return 0

    @property
    def retained(self) -> float:
        """Tokens that a head holds now, on average."""
        return float(self.length_tokens)

    @property
    def loss(self) -> float:
        """Share of all attention so far that went to tokens which are now evicted, 0 to 1."""
        return 0.0

    def kept(self) -> npt.NDArray[np.float32]:
        """Return the share of heads that hold each token seen: [length_tokens]."""
        return np.ones(self.length_tokens, np.float32)


def _unsupported() -> UnsupportedError:
    return UnsupportedError(
        "this backend's caches can be neither saved nor forked; use --device cpu"
    )
