"""A KV cache and the tokens in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgetok.cache.limits import CacheLimits
from edgetok.cache.prefix_cache import LEAST_TOKENS, PrefixCache
from edgetok.cache.protocol import KVCache
from edgetok.cache.recurrent import SNAPSHOT_GAP_TOKENS
from edgetok.cache.state import CacheState
from edgetok.errors import SessionError
from edgetok.runtime.backend import Backend
from edgetok.runtime.base import check_writes
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import TokenChooser


class ReturnPoints(NamedTuple):
    """Where later prompts may part from this one, in its first tokens; 0: it is not known.

    Attributes:
        question: how many come before its last question.
        shared: how many come before what later turns do not have; all, where the same answer
            begins again.
    """

    question: int = 0
    shared: int = 0


NOWHERE = ReturnPoints()


def or_larger(context_tokens: int, trained_tokens: int, advice: str) -> str:
    """Return the end of advice to shorten a text, which a larger context may spare.

    Args:
        context_tokens: length of the context that is too small.
        trained_tokens: the longest context that the model was trained for.
        advice: how to get a larger one, such as "give a larger context".
    """
    if context_tokens < trained_tokens:
        return f" or {advice}"
    return ", as the model was trained for no more"


class CachedTokens:
    """A KV cache and the tokens in it, so that a prompt with the same beginning is not read again.

    For one sequence at a time.

    Attributes:
        cache: the cache.
        tokens: in the cache, in order; those that were evicted included.
        answer_tokens: the longest answer where nobody limits it; None where the cache does.
        drafting: the cache of a draft model for the same sequences; None until it drafts.
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
            backend: computes the steps.
            capacity_tokens: of the cache; with limits not a bound on the conversation, but the
                default for the longest answer.
            limits: limits of a cache that evicts; None for one that refuses what does not fit.
            prefixes: what was read before; for caches that can be saved.

        Raises:
            OptionError: the limits are too tight.
            UnsupportedError: the backend has no cache that evicts, or the model writes no text.
        """
        check_writes(backend.spec)
        self._backend, self._prefixes = backend, prefixes
        self.answer_tokens: int | None = None
        self.drafting: CachedTokens | None = None
        self.cache: KVCache
        if limits is None:
            self.cache = backend.new_cache(capacity_tokens)
        else:
            self.cache = backend.new_bounded_cache(capacity_tokens, limits)
            self.answer_tokens = capacity_tokens
        self.tokens: list[int] = []

    def chooser(self, options: SamplingOptions) -> TokenChooser | None:
        """Return the backend's chooser of tokens. See `Backend.chooser`."""
        return self._backend.chooser(options)

    def mark(self, places: ReturnPoints) -> list[int]:
        """Note where the cache is to go back to; return where steps are to end, so that it can.

        Nowhere where the cache goes back to any length, nor at a question that begins so near to
        what is held that a snapshot of that serves as well.
        """
        self.cache.mark(places.shared)
        if not self._backend.capabilities.snapshots:
            return []
        near = places.question - len(self.tokens) < SNAPSHOT_GAP_TOKENS
        return [places.shared] if near else list(places)

    @property
    def room_tokens(self) -> int:
        """Return the number of tokens that still fit."""
        return self.cache.capacity_tokens - self.cache.length_tokens

    def restore(self, tokens: Sequence[int], state: CacheState) -> None:
        """Put a saved cache in place of this one.

        Raises:
            SessionError: it does not fit this cache; nothing was changed.
        """
        if not self.cache.capabilities.saves:
            raise SessionError("this backend's caches cannot be restored; use --device cpu")
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
        self.cut(same)
        if self._prefixes is not None and self.cache.capabilities.saves:
            found = self._prefixes.find(prompt[: len(prompt) - 1], self.cache)
            if found is not None and found[0] > len(self.tokens):
                pinned = self.cache.pinned_tokens
                if self._prefixes.restore(found[1], self.cache, found[0]):
                    self.tokens = found[1].tokens[: self.cache.length_tokens]
                    self.cut(found[0])
                    self.cache.pin(pinned)
        return len(self.tokens)

    def cut(self, tokens: int) -> None:
        """Keep the first `tokens` tokens, or as many as the cache can go back to."""
        if tokens < len(self.tokens):
            tokens = self.cache.reachable(tokens)
            if tokens == 0 or not self.cache.truncate(tokens):
                self.cache.clear()
                tokens = 0
            del self.tokens[tokens:]

    @property
    def remembers(self) -> bool:
        """Return whether what is read here is kept for prompts that begin alike."""
        return self._prefixes is not None and self.cache.capabilities.saves

    def remember(self, computed_tokens: int) -> None:
        """Keep what was read, for prompts that begin alike, if enough of it was computed."""
        if (
            self._prefixes is not None
            and computed_tokens >= LEAST_TOKENS
            and self.cache.capabilities.saves
        ):
            self._prefixes.add(self.tokens, self.cache)

    @property
    def trained_tokens(self) -> int:
        """Return the longest context that the model was trained for."""
        return self._backend.context_tokens

    @property
    def draft_tokens(self) -> int:
        """Return the most tokens that the next step may append on trial. See `KVCache`.

        0 where a step's other rows change a row's bits: then drafts would change answers.
        """
        return self.cache.draft_tokens if self._backend.capabilities.same_bits else 0

    def retract(self, tokens: int) -> None:
        """Take back the last tokens of the latest step, which `draft_tokens` allowed."""
        self.cache.retract(tokens)
        del self.tokens[-tokens:]

    def appended(self, tokens: Sequence[int]) -> None:
        """Note what a step has appended to the cache."""
        self.tokens.extend(tokens)

    def lost(self) -> None:
        """Empty the cache after a step that failed: which of its tokens arrived is unknown."""
        self.cache.clear()
        self.tokens.clear()
