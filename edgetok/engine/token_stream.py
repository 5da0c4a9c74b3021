"""An answer token by token: the iterator that `Generation.tokens` returns."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from edgetok.engine.result import Token

if TYPE_CHECKING:
    from edgetok.engine.generation import Generation


class TokenStream(Iterator[Token], AsyncIterator[Token]):
    """The tokens of an answer as it is written; made by `Generation.tokens`."""

    def __init__(self, answer: Generation) -> None:
        """Begin with the next token that the answer gives."""
        self._answer = answer
        self._given = answer.result.stats.generated_tokens
        self._ready: deque[Token] = deque()

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> Token:
        while not self._ready:
            over = next(self._answer, None) is None
            if not self._arrived() and over:
                raise StopIteration
        return self._ready.popleft()

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> Token:
        while not self._ready:
            over = await anext(self._answer, None) is None
            if not self._arrived() and over:
                raise StopAsyncIteration
        return self._ready.popleft()

    def _arrived(self) -> bool:
        """Take tokens whose text is known; return whether there are any."""
        tokens = self._answer.tokens_since(self._given)
        self._given += len(tokens)
        self._ready.extend(tokens)
        return bool(tokens)
