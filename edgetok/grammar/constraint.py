"""A grammar that holds one answer, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.errors import GrammarError
from edgetok.grammar.failures import guarded, readable
from edgetok.sampling.constraint import Mask

_FAILED = "the grammar failed, so the answer was ended"


class GrammarConstraint:
    """A `Constraint` (edgetok.sampling.constraint) by llguidance's matcher."""

    def __init__(self, matcher: Any, vocab_size: int, eos_tokens: frozenset[int]) -> None:
        """Begin at the start of an answer.

        Args:
            matcher: a new `llguidance.LLMatcher`.
            vocab_size: number of logits.
            eos_tokens: ids that end an answer.
        """
        self._matcher = matcher
        self._size, self._eos = vocab_size, eos_tokens
        self._mask = np.zeros(-(-vocab_size // 32), np.uint32)
        # The bits of the end tokens, to be told from all others.
        self._others = ~np.zeros_like(self._mask)
        for token in eos_tokens:
            self._others[token // 32] &= ~np.uint32(1 << token % 32)

    @property
    def complete(self) -> bool:
        """Return whether the text so far matches as a whole."""
        with guarded(_FAILED):
            return bool(self._matcher.is_accepting()) and not self._matcher.is_error()

    @property
    def ended(self) -> bool:
        """Return whether it matches and nothing may follow."""
        with guarded(_FAILED):
            return bool(self._matcher.is_stopped()) and self.complete

    def mask(self) -> Mask:
        """Return the tokens that may come next: end tokens only where the text is complete.

        Raises:
            GrammarError: llguidance failed, or no token can come next.
        """
        mask = self._mask
        with guarded(_FAILED):
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()
        if not np.any(mask & self._others) and not self.complete:
            raise GrammarError(f"{_FAILED}: no token of this model can come next")
        return mask

    def accept(self, token: int) -> None:
        """Go on after a token.

        Raises:
            GrammarError: llguidance failed, or the token is not allowed here.
        """
        with guarded(_FAILED):
            taken = self._matcher.consume_token(token)
        self._check()
        if not taken:
            raise GrammarError(f"{_FAILED}: token {token} is not allowed here")

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next, none of them an end token."""
        with guarded(_FAILED):
            forced: list[int] = self._matcher.compute_ff_tokens()
        self._check()
        return [token for token in forced if token not in self._eos]

    def fork(self) -> GrammarConstraint:
        """Return a copy that goes its own way."""
        with guarded(_FAILED):
            return GrammarConstraint(self._matcher.deep_copy(), self._size, self._eos)

    def rollback(self, tokens: int) -> None:
        """Take back the latest accepted tokens.

        Raises:
            GrammarError: llguidance failed, or fewer were accepted.
        """
        with guarded(_FAILED):
            done = tokens == 0 or self._matcher.rollback(tokens)
        self._check()
        if not done:
            raise GrammarError(f"{_FAILED}: cannot go back {tokens} tokens")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"{_FAILED}: {readable(self._matcher.get_error())}")
