"""The tokens of a conversation that a bounded cache still holds."""

from __future__ import annotations

import unicodedata
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
        tokens: tokens of the conversation.
        kept: [tokens], share of heads that hold each.
        retained: tokens that a head holds, on average.
        slots: that it could hold.
        loss: share of all attention so far that went to tokens which are now evicted.
        nbytes: bytes of the cache when it is full.
        states_bytes: of these, states and snapshots of recurrent layers, which evict nothing.
        sinks, pinned, recent: tokens at the beginning, of the system message, and latest, that
            stay whatever they are worth.
    """

    tokens: Sequence[int]
    kept: npt.NDArray[np.float32]
    retained: float
    slots: int
    loss: float
    nbytes: int
    states_bytes: int
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
            states_bytes=cache.states_bytes,
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

    def text(self, push: Callable[[int], str], gap: str = " … ") -> str:
        """Return the words that at least half of the heads hold, with `gap` for evicted ones.

        A word of several tokens is held where half of them are.

        Args:
            push: gives the text that each token adds, in order; see `Tokenizer.stream`.
            gap: stands for any number of evicted words.
        """
        words: list[tuple[str, list[bool]]] = []
        for token, share in zip(self.tokens, self.kept.tolist(), strict=True):
            text = push(token)
            if words and _goes_on(words[-1][0], text):
                words[-1] = words[-1][0] + text, [*words[-1][1], share >= _KNOWN]
            else:
                words.append((text, [share >= _KNOWN]))
        runs = [""]
        for text, held in words:
            if 2 * sum(held) >= len(held):
                runs[-1] += text
            elif runs[-1]:
                runs.append("")
        return gap.join(run.strip() for run in runs if run.strip())


def _goes_on(word: str, text: str) -> bool:
    """Return whether a text belongs to the word before it."""
    if not word or not text:
        return bool(word)
    last, first = word[-1], text[0]
    spaced = unicodedata.east_asian_width(first) not in ("W", "F")  # others have no words
    return last.isalnum() and first.isalnum() and spaced
