"""One answer: prefill, then a token at a time until something ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence

from edgetok.cache.prefix_cache import LEAST_TOKENS
from edgetok.engine.cached_tokens import CachedTokens
from edgetok.engine.result import FinishReason, Result, Stats
from edgetok.errors import ContextError, OptionError
from edgetok.runtime.backend import Interrupted
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import Sampler
from edgetok.text.stop import StopFinder
from edgetok.text.tokenizer import Tokenizer


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
        draw = sampler.draw if sampler.on_device else None
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
            ends = token in self._eos
            yield from self._emit(finder.push(stream.push(token, hide=ends), stream.hidden))
            if finder.found is not None:
                self._finish = "stop"
                return
            if ends:
                self._finish = "stop"
                break
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
