"""A budget for reasoning: after so many tokens its end marker is all that may come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgetok.dialect.compose import Opening
from edgetok.dialect.families import Thinking
from edgetok.sampling.constraint import Constraint, Mask


@dataclass(frozen=True, slots=True)
class _State:
    """Progress of an answer through its reasoning.

    Attributes:
        where: "start" before anything is certain, "reasoning", or "after" it.
        spent: tokens of reasoning so far.
        tail: the latest text: what may become a marker.
        closing: how many tokens of the end marker were forced.
    """

    where: str
    spent: int = 0
    tail: bytes = b""
    closing: int = 0


class ReasoningBudget:
    """A `Constraint` around another one, or around none."""

    def __init__(
        self,
        inner: Constraint | None,
        *,
        thinking: Thinking,
        opening: Opening,
        budget_tokens: int,
        closing: Sequence[int],
        piece: Callable[[int], bytes],
        vocab_size: int,
    ) -> None:
        """Begin at the start of an answer.

        Args:
            inner: restricts the answer further; None for nothing.
            thinking: markers of the reasoning.
            opening: where the answer begins.
            budget_tokens: tokens of reasoning after which the end marker is forced.
            closing: tokens that write the end marker.
            piece: text of a token, special ones spelled out.
            vocab_size: number of logits.
        """
        self._inner, self._budget, self._closing = inner, budget_tokens, list(closing)
        self._begin, self._end = thinking.begin.encode(), thinking.end.encode()
        self._piece, self._size = piece, vocab_size
        begin = {"open": "reasoning", "possible": "start", "off": "after"}[opening]
        self._states = [_State(begin)]

    @property
    def complete(self) -> bool:
        """Return whether the answer may end here."""
        return self._inner is None or self._inner.complete

    @property
    def ended(self) -> bool:
        """Return whether it must end here."""
        return self._inner is not None and self._inner.ended

    def mask(self) -> Mask | None:
        """Return the tokens that may come next: the end marker's where the budget is spent."""
        inner = None if self._inner is None else self._inner.mask()
        forced = self._forced()
        if forced is None:
            return inner
        word, bit = forced // 32, np.uint32(1 << forced % 32)
        if inner is not None and not inner[word] & bit:
            return inner  # in the middle of a character: the marker has to wait for its end
        mask = np.zeros(-(-self._size // 32), np.uint32)
        mask[word] = bit
        return mask

    def accept(self, token: int) -> None:
        """Go on after a token."""
        forced = self._forced()
        if self._inner is not None:
            self._inner.accept(token)
        self._states.append(self._after(self._states[-1], token, forced))

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next."""
        if self._forced() is not None:
            return self._closing[self._states[-1].closing :]
        return [] if self._inner is None else self._inner.forced_tokens()

    def fork(self) -> ReasoningBudget:
        """Return a copy that goes its own way."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._inner = None if self._inner is None else self._inner.fork()
        made._states = list(self._states)
        return made

    def rollback(self, tokens: int) -> None:
        """Take back the latest accepted tokens."""
        if self._inner is not None:
            self._inner.rollback(tokens)
        if tokens:
            del self._states[-tokens:]

    def _forced(self) -> int | None:
        state = self._states[-1]
        if state.where != "reasoning" or state.spent < self._budget:
            return None
        return self._closing[state.closing] if state.closing < len(self._closing) else None

    def _after(self, state: _State, token: int, forced: int | None) -> _State:
        if state.where == "after":
            return state
        tail = state.tail + self._piece(token)
        if state.where == "start":
            text = tail.lstrip()
            if not text.startswith(self._begin):
                return _State("start" if self._begin.startswith(text) else "after", tail=tail)
            state, tail = _State("reasoning", spent=-1), text[len(self._begin) :]
        if self._end in tail:
            return _State("after")
        closing = state.closing + 1 if token == forced else 0
        return _State("reasoning", state.spent + 1, tail[1 - len(self._end) :], closing)
