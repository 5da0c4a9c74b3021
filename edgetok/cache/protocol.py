"""The interface of a KV cache: what everything above a backend may ask of one."""

from __future__ import annotations

from typing import Protocol


class KVCache(Protocol):
    """What a backend remembers of one sequence. Made by `Backend.new_cache`; used by one thread.

    A cache holds slots; a slot holds one token's key and value for one layer and KV head, and knows
    its token's position. `length_tokens` counts the tokens seen; a bounded cache may hold fewer.
    """

    @property
    def length_tokens(self) -> int:
        """Tokens seen so far: the position of the next one."""

    @property
    def capacity_tokens(self) -> int:
        """How many tokens can be seen before `ContextError`."""

    @property
    def block_tokens(self) -> int:
        """Most tokens that one step may append."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated, all layers."""

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from position `length_tokens` on.

        Returns:
            False, with nothing changed, where that is not possible because a sliding window has
            already overwritten older tokens; the caller then clears and computes again.
        """

    def clear(self) -> None:
        """Forget everything."""
