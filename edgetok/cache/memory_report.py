"""The tokens of a conversation that a bounded cache still holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetok.cache.protocol import KVCache

_KNOWN = 0.5  # a token counts as kept where so many heads hold it


@dataclass(frozen=True, slots=True)
class Memory:
    """A cache's contents at one moment.

    Attributes:
        tokens: of the conversation.
        kept: [tokens], share of heads that hold each.
        retained: tokens that a head holds, on average.
        slots: that it could hold.
        loss: share of all attention so far that went to tokens which are now evicted.
        nbytes: of the cache.
        sinks, pinned, recent: tokens at the beginning, of the system message, and latest, that
            stay whatever they are worth.
    """

    tokens: Sequence[int]
    kept: npt.NDArray[np.float32]
    retained: float
    slots: int
    loss: float
    nbytes: int
    sinks: int
    pinned: int
    recent: int

    @classmethod
    def of(cls, cache: KVCache, tokens: Sequence[int]) -> Memory:
        """Return the report of a cache that has seen `tokens`."""
        seen = len(tokens)
        pinned = min(cache.pinned_tokens, seen)
        sinks = min(cache.sinks, seen) if not pinned else 0
        return cls(
            tokens=list(tokens),
            kept=cache.kept(),
            retained=cache.retained,
            slots=cache.slots,
            loss=cache.loss,
            nbytes=cache.nbytes,
            sinks=sinks,
            pinned=pinned,
            recent=min(cache.recent_tokens, seen - max(sinks, pinned)),
        )

    @property
    def seen(self) -> int:
        """Tokens of the conversation so far."""
        return len(self.tokens)

    @property
    def chosen(self) -> int:
        """Tokens that at least half of the heads hold because the policy chose them."""
        middle = self.kept[max(self.sinks, self.pinned) : self.seen - self.recent]
        return int(np.count_nonzero(middle >= _KNOWN))

    def text(self, decode: Callable[[list[int]], str], gap: str = " … ") -> str:
        """Return the text that at least half of the heads hold, with `gap` for evicted tokens."""
        known = self.kept >= _KNOWN
        starts = np.flatnonzero(np.diff(known.astype(np.int8), prepend=0) == 1).tolist()
        ends = (np.flatnonzero(np.diff(known.astype(np.int8), append=0) == -1) + 1).tolist()
        pieces = [decode(list(self.tokens[a:b])).strip() for a, b in zip(starts, ends, strict=True)]
        return gap.join(piece for piece in pieces if piece)
