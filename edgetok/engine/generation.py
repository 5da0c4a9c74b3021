"""One answer: prefill, then a token at a time until something ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgetok.cache.limits import BoundedBackend, BoundedCache, CacheLimits
from edgetok.cache.prefix_cache import LEAST_TOKENS, PrefixCache
from edgetok.cache.state import CacheState
from edgetok.errors import ContextError, OptionError, SessionError, UnsupportedError
from edgetok.runtime.backend import (
    MOST_CANDIDATES,
    Backend,
    Draw,
    Interrupted,
    KVCache,
    Logits,
    SamplingBackend,
)
from edgetok.sampling.sampler import Sampler, SamplingOptions
from edgetok.text.stop import StopFinder
from edgetok.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What an answer took.

    Attributes:
        prompt_tokens: tokens before the answer.
        cached_tokens: how many of them the KV cache still held.
        generated_tokens: tokens of the answer, the one that ended it included.
        prefill_s: time to compute the prompt's tokens that were not cached.
        first_token_s: from the call until the first token was known.
        decode_s: time for the tokens after the first.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_s: float
    first_token_s: float
    decode_s: float

    @property
    def prefill_tokens_per_s(self) -> float:
        """Speed of reading the prompt; 0 where nothing was computed."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Speed of the answer after its first token; 0 for a single token."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished answer.

    Attributes:
        text: what was written, without special tokens and stop text.
        tokens: its token ids, the end token included where there was one.
        finish: "stop" for an end token or stop text, "length" for `max_tokens`, "context" where the
            context was full, "cancelled" where the caller ended it.
        stats: what it took.
    """

    text: str
    tokens: tuple[int, ...]
    finish: FinishReason
    stats: Stats


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
        self._chooses = backend if isinstance(backend, SamplingBackend) else None
        self.answer_tokens: int | None = None
        self.cache: KVCache
        if limits is None:
            self.cache = backend.new_cache(capacity_tokens)
        elif isinstance(backend, BoundedBackend):
            self.cache = backend.new_bounded_cache(capacity_tokens, limits)
            self.answer_tokens = capacity_tokens
        else:
            raise UnsupportedError(
                f"the {backend.name} backend has no cache that forgets; use --device cpu, or "
                "--kv-policy none"
            )
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
            if draw is not None and self._chooses is not None:
                found = self._chooses.forward_sampled(
                    self.cache, ids, draw(), should_stop=should_stop
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


class Generation(Iterator[str]):
    """An answer as it is written: an iterator over pieces of text.

    `result` holds what there is so far, and the whole once the iterator has ended. `cancel` may be
    called from any thread or signal handler; the iterator then ends after the step in progress.
    """

    def __init__(
        self,
        context: CachedTokens,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        options: SamplingOptions,
        eos_tokens: frozenset[int],
        on_finish: Callable[[Result], None] | None = None,
    ) -> None:
        """Prepare; nothing is computed before the first piece is asked for.

        Args:
            context: the cache to use; what it holds of the prompt is kept.
            tokenizer: of the model.
            prompt: token ids.
            options: sampling and limits.
            eos_tokens: ids that end the answer.
            on_finish: called once with the result, however the answer ends.

        Raises:
            ContextError: the prompt does not fit.
            OptionError: the prompt is empty.
        """
        if not prompt:
            raise OptionError("the prompt is empty, expected at least one token")
        capacity = context.cache.capacity_tokens
        if len(prompt) > capacity:
            raise ContextError(
                f"the prompt has {len(prompt):,} tokens, the context holds {capacity:,}; shorten "
                "it or give a larger context"
            )
        self._context = context
        self._tokenizer = tokenizer
        self._prompt = list(prompt)
        self._options = options
        self._eos = eos_tokens
        self._on_finish = on_finish
        self._cancelled = threading.Event()
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._finish: FinishReason = "cancelled"
        self._cached = 0
        self._prefill_s = self._first_s = self._decode_s = 0.0
        self._begin = time.perf_counter()
        self._run = self._generate()
        self._ended = False

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        try:
            return next(self._run)
        except BaseException:
            # StopIteration, or whatever went wrong: either way the answer is over.
            self._end()
            raise

    def cancel(self) -> None:
        """Ask the answer to end; safe from any thread or signal handler."""
        self._cancelled.set()

    def close(self) -> None:
        """End the answer now. A second call does nothing."""
        if not self._ended:
            self._cancelled.set()
            self._run.close()
            self._end()

    def __del__(self) -> None:
        if hasattr(self, "_ended"):
            self.close()

    def run(self) -> Result:
        """Generate to the end and return the result."""
        for _ in self:
            pass
        return self.result

    @property
    def ended(self) -> bool:
        """Whether the answer is over."""
        return self._ended

    @property
    def result(self) -> Result:
        """The answer so far."""
        return Result(
            text="".join(self._pieces),
            tokens=tuple(self._tokens),
            finish=self._finish,
            stats=Stats(
                prompt_tokens=len(self._prompt),
                cached_tokens=self._cached,
                generated_tokens=len(self._tokens),
                prefill_s=self._prefill_s,
                first_token_s=self._first_s,
                decode_s=self._decode_s,
            ),
        )

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._on_finish is not None:
            self._on_finish(self.result)

    def _emit(self, text: str) -> Iterator[str]:
        if text:
            self._pieces.append(text)
            yield text

    def _generate(self) -> Generator[str, None, None]:
        options, context = self._options, self._context
        stopped = self._cancelled.is_set
        sampler = Sampler(options, self._tokenizer.vocab_size, self._prompt)
        draw = device_draws(options, sampler.share)
        stream = self._tokenizer.stream(self._prompt)
        finder = StopFinder(options.stop)
        self._begin = time.perf_counter()
        self._cached = context.reuse(self._prompt)
        try:
            found = context.forward(self._prompt[self._cached :], stopped, draw)
        except Interrupted:
            return
        if len(self._prompt) - self._cached >= LEAST_TOKENS:
            context.remember()
        self._prefill_s = time.perf_counter() - self._begin
        limit = context.answer_tokens if options.max_tokens is None else options.max_tokens
        while not stopped():
            token = found if isinstance(found, int) else sampler.sample(found)
            self._tokens.append(token)
            now = time.perf_counter() - self._begin
            if len(self._tokens) == 1:
                self._first_s = now
            else:
                self._decode_s = now - self._first_s
            if token in self._eos:
                self._finish = "stop"
                break
            yield from self._emit(finder.push(stream.push(token)))
            if finder.found is not None:
                self._finish = "stop"
                return
            if limit is not None and len(self._tokens) >= limit:
                self._finish = "length"
                break
            if context.room_tokens < 1:
                self._finish = "context"
                break
            if stopped():
                break
            try:
                found = context.forward([token], stopped, draw)
            except Interrupted:
                break
        yield from self._emit(finder.push(stream.finish()))
        if finder.found is None:
            yield from self._emit(finder.finish())


def device_draws(options: SamplingOptions, share: Callable[[], float]) -> Callable[[], Draw] | None:
    """How a backend that can choose tokens itself does so, with the sampler's random numbers.

    Returns:
        None where the host has to: the choice looks back at what was said, or is among more
        candidates than a device keeps.
    """
    looks_back = (
        options.repetition_penalty != 1.0
        or options.presence_penalty != 0.0
        or options.frequency_penalty != 0.0
    )
    if looks_back or (options.temperature > 0 and not 1 <= options.top_k <= MOST_CANDIDATES):
        return None

    def draw() -> Draw:
        return Draw(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            share=share(),
        )

    return draw
