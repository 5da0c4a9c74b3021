"""What a user asks of a bounded cache, and what a backend that has one offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgetok.cache.protocol import KVCache
from edgetok.cache.state import CacheState

DEFAULT_POLICY = "retain"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """What a conversation of any length has to make do with.

    Attributes:
        policy: name of the policy that chooses what is kept.
        budget_bytes: of the whole cache; None takes as many slots as the context has tokens.
    """

    policy: str = DEFAULT_POLICY
    budget_bytes: int | None = None


@runtime_checkable
class BoundedCache(KVCache, Protocol):
    """A cache that forgets in order to stay within its bytes."""

    @property
    def shape(self) -> dict[str, Any]:
        """What another cache must have in common to take this one's state: JSON values."""

    @property
    def slots(self) -> int:
        """Tokens that a head holds on average when the cache is full."""

    @property
    def recent_tokens(self) -> int:
        """Latest tokens that are always held."""

    @property
    def sinks(self) -> int:
        """First tokens that are always held."""

    @property
    def pinned_tokens(self) -> int:
        """Tokens at the beginning that are never forgotten."""

    @property
    def retained(self) -> float:
        """Tokens that a head holds now, on average."""

    @property
    def loss(self) -> float:
        """Share of all attention so far that went to tokens which are now forgotten, 0 to 1."""

    def pin(self, tokens: int) -> None:
        """Never forget the first `tokens` tokens.

        Raises:
            ContextError: they would take more than half of the cache.
        """

    def kept(self) -> npt.NDArray[np.float32]:
        """Of every token seen, the share of heads that hold it: [length_tokens]."""

    def save(self) -> CacheState:
        """A copy of everything that it holds."""

    def load(self, state: CacheState) -> None:
        """Become what was saved.

        Raises:
            SessionError: the state is damaged or of another shape; nothing was changed.
        """
