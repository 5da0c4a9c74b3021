"""One answer in the making: its cache, sampler, stop rules and detokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Tokens

import numpy as np

from edgetok.engine.cached_tokens import CachedTokens
from edgetok.engine.result import FinishReason
from edgetok.errors import ContextError, OptionError
from edgetok.runtime.backend import Logits, Part
from edgetok.sampling.constraint import Constraint
from edgetok.sampling.device import Draw
from edgetok.sampling.logprobs import Logprobs, logprobs
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import Sampler
from edgetok.sampling.steps import Logits as RowLogits
from edgetok.text.stop import StopFinder
from edgetok.text.tokenizer import Tokenizer

Progress = Callable[[int, int], None]


class Sequence:
    """Turns what steps compute into pieces of text, until something ends the answer.

    Whoever has the engine's turn calls it; nobody else, but for reading the attributes.

    Attributes:
        context: the cache and its tokens.
        prompt: token ids.
        priority: 0 for an answer that somebody waits for, more for one in the background.
        reading: whether tokens of the prompt are still to be computed.
        pending: tokens to be computed next: the rest of the prompt, or the token written last.
        tokens: of the answer so far.
        times: when each was known, in seconds of the engine's clock.
        logprobs: of each; empty where they were not asked for.
        finish: why the answer is over; None while it is not.
        cached: tokens of the prompt that the cache held.
        prefill_s: seconds of the steps that read the prompt.
        deadline_s: when it ends at the latest, in seconds of the engine's clock.
        context_tokens: the most tokens of prompt and answer together; None where the cache evicts.
    """

    def __init__(
        self,
        context: CachedTokens,
        tokenizer: Tokenizer,
        prompt: Tokens[int],
        options: SamplingOptions,
        eos_tokens: frozenset[int],
        *,
        priority: int = 0,
        constraint: Constraint | None = None,
        context_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Prepare; nothing is computed and nothing of the cache is touched.

        Args:
            context: the cache to use; what it holds of the prompt is kept.
            tokenizer: of the model.
            prompt: token ids.
            options: sampling and limits.
            eos_tokens: ids that end the answer.
            priority: see the attributes.
            constraint: restricts the answer; for this sequence alone.
            context_tokens: see the attributes.
            progress: called with (tokens of the prompt that are read, all of them) after each
                step that reads some; an error that it raises ends the answer.

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
        self.context = context
        self.prompt = list(prompt)
        self.priority = priority
        self.reading = True
        self.pending: list[int] = []
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.finish: FinishReason | None = None
        self.cached = 0
        self.prefill_s = 0.0
        self._complete = False
        self.deadline_s = math.inf
        self.context_tokens = context_tokens
        self.logprobs: list[Logprobs] = []
        self._progress = progress
        self._options, self._tokenizer, self._eos = options, tokenizer, eos_tokens
        self._constraint = constraint

    def begin(self) -> None:
        """Take over the cache: keep what it holds of the prompt.

        Raises:
            SessionError: a kept beginning of the prompt does not fit this cache.
        """
        options = self._options
        size, chooser = self._tokenizer.vocab_size, self.context.chooser(options)
        self._sampler = Sampler(options, size, self.prompt, chooser)
        self._stream = self._tokenizer.stream(self.prompt, exact=self._constraint is not None)
        self._finder = StopFinder(options.stop)
        self._limit = (
            self.context.answer_tokens if options.max_tokens is None else options.max_tokens
        )
        self.cached = self.context.reuse(self.prompt)
        self.pending = self.prompt[self.cached :]

    @property
    def stop(self) -> str | None:
        """Return the stop text that was found; None while there is none."""
        return self._finder.found

    @property
    def rows(self) -> int:
        """Return the rows to compute before its next token."""
        return len(self.pending)

    @property
    def most_rows(self) -> int:
        """Return how many of them one step may compute."""
        return self.context.cache.block_tokens

    @property
    def on_device(self) -> bool:
        """Return whether a backend that draws tokens itself can draw its next one."""
        free = self._constraint is None and not self.wants_logprobs
        return free and self._sampler.on_device

    @property
    def wants_logprobs(self) -> bool:
        """Return whether log-probabilities were asked for."""
        return self._options.logprobs is not None

    @property
    def max_seconds(self) -> float:
        """Return the time that it may take; infinite without a limit."""
        limit = self._options.max_seconds
        return math.inf if limit is None else limit

    def draw(self) -> Draw:
        """Return the options and the random number of its next draw."""
        return self._sampler.draw()

    def forced_tokens(self) -> list[int]:
        """Return the tokens that its constraint leaves no choice about: drafts that must hold."""
        return [] if self._constraint is None else self._constraint.forced_tokens()

    def complete(self, tokens: int) -> bool:
        """Return whether its first `tokens` tokens are all that its constraint asks for."""
        return self._constraint is None or (self._complete and tokens == len(self.tokens))

    def part(self, rows: int) -> Part:
        """Its share of a step: the first `rows` pending tokens."""
        tokens = np.array(self.pending[:rows], np.int32)
        return Part(self.context.cache, tokens, int(rows == len(self.pending)))

    def computed(self, rows: int) -> None:
        """Note that the first `rows` pending tokens are in the cache."""
        self.context.appended(self.pending[:rows])
        self.pending = self.pending[rows:]

    def advance(
        self, rows: int, found: Logits | int | None, began: float, clock: Callable[[], float]
    ) -> list[str]:
        """Take in what a step computed of the first `rows` pending tokens.

        Args:
            rows: as given to `part`.
            found: logits [1, vocab_size] of the last pending token, or the token that the backend
                chose; None while the prompt goes on.
            began: when the step began.
            clock: the engine's clock, in seconds.

        Returns:
            Pieces of text, none of them empty.

        Raises:
            ArtefactError: the logits are not numbers.
            GrammarError: the constraint failed; the token is not part of the answer.
            OutputError: a beginning of a prompt cannot be kept on disk.
        """
        self.computed(rows)
        if self.reading:
            self.reading = bool(self.pending)
            if not self.reading:
                self.context.remember(len(self.prompt) - self.cached)
            self.prefill_s += clock() - began
            if self._progress is not None:
                self._progress(len(self.prompt) - len(self.pending), len(self.prompt))
        if self.pending or found is None:
            if clock() >= self.deadline_s:
                self.finish = "time"
            return []
        token = found if isinstance(found, int) else self._chosen(found[-1])
        if self._options.logprobs is not None and not isinstance(found, int):
            self.logprobs.append(logprobs(found[-1], token, self._options.logprobs))
        self.times.append(clock())
        self.tokens.append(token)
        return self._written(token)

    def cancel(self) -> list[str]:
        """End the answer with what there is.

        Returns:
            Pieces that were held back.
        """
        if self.finish is not None:
            return []
        self.finish = "cancelled"
        return self._rest() if self.tokens else []

    def _chosen(self, logits: RowLogits) -> int:
        """Choose a token, and let the constraint go on after it."""
        constraint = self._constraint
        if constraint is None:
            return self._sampler.sample(logits)
        token = self._sampler.sample(logits, constraint.mask())
        constraint.accept(token)
        self._complete = constraint.complete
        return token

    def _written(self, token: int) -> list[str]:
        """Pieces that a token makes, and whether it ends the answer."""
        ends = token in self._eos
        # A stop text may be a special token, which has no text of its own.
        text = self._finder.push(self._stream.push(token, hide=ends), self._stream.hidden)
        pieces = [text] if text else []
        if self._finder.found is not None:
            self.finish = "stop"
        elif ends or (self._constraint is not None and self._constraint.ended):
            self.finish = "stop"
            pieces += self._rest()
        elif self._limit is not None and len(self.tokens) >= self._limit:
            self.finish = "length"
            pieces += self._rest()
        elif self.times[-1] >= self.deadline_s:
            self.finish = "time"
            pieces += self._rest()
        elif self.context.room_tokens < 1:
            self.finish = "context"
            pieces += self._rest()
        else:
            self.pending = [token]
        return ["".join(pieces)] if pieces else []

    def _rest(self) -> list[str]:
        """Return the text that detokenizer and stop finder have held back."""
        texts = [self._finder.push(self._stream.finish())]
        if self._finder.found is None:
            texts.append(self._finder.finish())
        return [text for text in texts if text]
