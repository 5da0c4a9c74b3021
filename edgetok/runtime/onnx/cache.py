"""Length and capacity of onnxruntime's caches; the rest is in the file of each kind of graph."""

from __future__ import annotations

from edgetok.cache.groups import check_cut
from edgetok.cache.protocol import KVCache
from edgetok.errors import OptionError


class OnnxCache(KVCache):
    """Length and capacity; what a kind of cache adds is how it holds keys and values."""

    def __init__(self, capacity_tokens: int, block_tokens: int) -> None:
        if capacity_tokens < 1:
            raise OptionError(f"a cache of {capacity_tokens} tokens, expected at least 1")
        self._block = block_tokens
        self._capacity_tokens = capacity_tokens
        self._length_tokens = 0

    @property
    def block_tokens(self) -> int:
        """Most tokens that one step may append."""
        return self._block

    @property
    def length_tokens(self) -> int:
        """Tokens seen so far."""
        return self._length_tokens

    @property
    def capacity_tokens(self) -> int:
        """Return the most tokens that can be seen."""
        return self._capacity_tokens

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from a position on; windows lose nothing here, so always True."""
        check_cut(length_tokens, self._length_tokens)
        self._keep(length_tokens)
        self._length_tokens = length_tokens
        return True

    def clear(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def advance(self, tokens: int) -> None:
        """Count tokens that were computed."""
        self._length_tokens += tokens

    def _keep(self, length_tokens: int) -> None:
        """Drop keys and values beyond a length, where they are not simply overwritten."""
