"""The engine's view of what restricts an answer: a grammar, a budget for reasoning."""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint32]
"""[ceil(vocab_size / 32)]: bit i of word w allows token 32 w + i."""


class Constraint(Protocol):
    """Restricts the tokens of one answer; not to be shared.

    Every method may raise `GrammarError`. The answer then ends with that error, because a token
    that nobody checked must never follow.
    """

    @property
    def complete(self) -> bool:
        """Return whether the answer may end here."""

    @property
    def ended(self) -> bool:
        """Return whether it must end here: nothing but an end token may follow."""

    def mask(self) -> Mask | None:
        """Return the tokens that may come next; None allows all.

        The array is reused by the next call.
        """

    def accept(self, token: int) -> None:
        """Go on after the token that was chosen."""

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next, as far as there is no choice: free drafts."""

    def fork(self) -> Self:
        """Return a copy that goes its own way."""

    def rollback(self, tokens: int) -> None:
        """Take back the latest accepted tokens."""


def allowed_tokens(mask: Mask, vocab_size: int) -> npt.NDArray[np.bool_]:
    """Unpack a mask into one truth value a token."""
    bits = np.unpackbits(mask.astype("<u4").view(np.uint8), count=vocab_size, bitorder="little")
    return bits.view(np.bool_)
