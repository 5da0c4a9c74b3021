"""A KV cache and the tokens in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgetok.cache.limits import BoundedCache, CacheLimits
from edgetok.cache.prefix_cache import PrefixCache
from edgetok.cache.protocol import KVCache
from edgetok.cache.state import CacheState
from edgetok.errors import ContextError, SessionError
from edgetok.runtime.backend import Backend, Interrupted, Logits
from edgetok.runtime.base import forward_sampled
from edgetok.sampling.device import Draw


class CachedTokens:
    """A KV cache and the tokens in it, so that a prompt with the same beginning is not read again.

    For one generation at a time.
    """

    def __init__(
        self,
        backend: Backend,
        capacity_tokens: int,
        limits: CacheLimits | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """Allocate a cache.

        Args:
            backend: what computes.
            capacity_tokens: of the cache; with limits no bound on the conversation, but the default
                for the longest answer.
            limits: of a cache that forgets; None for one that refuses what does not fit.
            prefixes: what was read before, for caches that forget.

        Raises:
            OptionError: the limits are too tight.
            UnsupportedError: the backend has no cache that forgets.
        """
        self._backend = backend
        self._prefixes = prefixes
        self.answer_tokens: int | None = None
        self.cache: KVCache
        if limits is None:
            self.cache = backend.new_cache(capacity_tokens)
        else:
            self.cache = backend.new_bounded_cache(capacity_tokens, limits)
            self.answer_tokens = capacity_tokens
        self.tokens: list[int] = []

    @property
    def room_tokens(self) -> int:
        """How many more tokens fit."""
        return self.cache.capacity_tokens - self.cache.length_tokens

    def restore(self, tokens: Sequence[int], state: CacheState) -> None:
        """Put a saved cache in place of this one.

        Raises:
            SessionError: it does not fit this cache; nothing was changed.
        """
        if not isinstance(self.cache, BoundedCache):
            raise SessionError("this cache cannot be restored: it is not one that forgets")
        self.cache.load(state)
        self.tokens = list(tokens)

    def reuse(self, prompt: Sequence[int]) -> int:
        """Keep the tokens that `prompt` begins with, but never its last: its logits are wanted.

        Returns:
            How many tokens of the prompt the cache holds.
        """
        limit = min(len(self.tokens), len(prompt) - 1)
        held, wanted = self.tokens[:limit], list(prompt[:limit])
        same = limit
        if held != wanted:
            same = next(i for i in range(limit) if held[i] != wanted[i])
        if same < len(self.tokens):
            if same == 0 or not self.cache.truncate(same):
                self.cache.clear()
                same = 0
            del self.tokens[same:]
        if self._prefixes is not None and isinstance(self.cache, BoundedCache):
            found = self._prefixes.find(prompt[: len(prompt) - 1], self.cache.shape)
            if found is not None and found[0] > same:
                pinned = self.cache.pinned_tokens
                same, saved = found
                self.restore(saved.tokens, saved.state)
                if not self.cache.truncate(same):
                    self.cache.clear()
                    same = 0
                del self.tokens[same:]
                self.cache.pin(pinned)
        return same

    def remember(self) -> None:
        """Keep what was read, for prompts that begin alike.

        Raises:
            OutputError: it cannot be written to disk.
        """
        if self._prefixes is not None and isinstance(self.cache, BoundedCache):
            self._prefixes.add(self.tokens, self.cache.save())

    def forward(
        self,
        tokens: Sequence[int],
        should_stop: Callable[[], bool],
        draw: Callable[[], Draw] | None = None,
    ) -> Logits | int:
        """Append tokens and compute the last one's logits.

        With a draw, and a backend that can choose tokens itself, the next token takes their place.

        Raises:
            Interrupted: `should_stop` said yes; the blocks done are kept.
            ContextError: they do not fit; nothing was changed.
        """
        before = len(self.tokens)
        try:
            ids = np.asarray(tokens, np.int32)
            found: Logits | int
            if draw is not None and self._backend.capabilities.samples:
                found = forward_sampled(
                    self._backend, self.cache, ids, draw(), should_stop=should_stop
                )
            else:
                found = self._backend.forward(self.cache, ids, should_stop=should_stop)
        except Interrupted:
            self.tokens.extend(tokens[: self.cache.length_tokens - before])
            raise
        except ContextError:
            raise
        except BaseException:
            # Which of the tokens arrived is unknown; forgetting all is always right.
            self.cache.clear()
            self.tokens.clear()
            raise
        self.tokens.extend(tokens)
        return found
