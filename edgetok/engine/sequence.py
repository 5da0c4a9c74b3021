"""One answer in the making: its cache, sampler, stop rules and detokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from collections.abc import Sequence as Tokens

import numpy as np

from edgetok.engine.cached_tokens import NOWHERE, CachedTokens, ReturnPoints, or_larger
from edgetok.engine.draft_model import DraftModel
from edgetok.engine.drafts import Draft
from edgetok.engine.loops import repeats
from edgetok.engine.mailbox import Piece
from edgetok.engine.result import FinishReason
from edgetok.engine.sequence_drafts import SequenceDrafts
from edgetok.errors import ContextError, GrammarError, OptionError
from edgetok.runtime.backend import Logits, Part
from edgetok.sampling.constraint import Constraint
from edgetok.sampling.device import Draw
from edgetok.sampling.logprobs import Logprobs, logprobs
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import Sampler
from edgetok.sampling.steps import Logits as RowLogits
from edgetok.text.inputs import checked_progress
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
        tokens: tokens of the answer so far.
        times: when each was known, in seconds of the engine's clock.
        logprobs: log-probabilities of each; empty where they were not asked for.
        finish: why the answer is over; None while it is not.
        cached: tokens of the prompt that the cache held.
        prefill_s: seconds of the steps that read the prompt.
        deadline_s: when it ends at the latest, in seconds of the engine's clock.
        context_tokens: the most tokens of prompt and answer together; None where the cache evicts.
        drafted: tokens of drafts that steps computed.
        accepted: how many of them became tokens of the answer.
        places: where later prompts may part from this one: a step ends there, so that the cache
            can go back.
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
        speculate: bool = False,
        draft_model: DraftModel | None = None,
        shown: Collection[int] = (),
        stops_until: str = "",
        places: ReturnPoints = NOWHERE,
    ) -> None:
        """Prepare; nothing is computed and nothing of the cache is touched.

        Args:
            context: the cache to use; what it holds of the prompt is kept.
            tokenizer: tokenizer of the model.
            prompt: token ids.
            options: sampling and limits.
            eos_tokens: ids that end the answer.
            priority: see the attributes.
            constraint: restricts the answer; for this sequence alone.
            context_tokens: see the attributes.
            progress: called with (tokens of the prompt that are read, all of them) at the
                beginning and after each step; an error that it raises ends the answer.
            speculate: draft tokens where that is faster (`drafts.py`).
            draft_model: a second model that drafts, too; None for repetitions alone.
            shown: special tokens that are spelled out in the text.
            stops_until: text behind which no stop text ends the answer; "" for none.
            places: see the attributes.

        Raises:
            ContextError: the prompt does not fit.
            OptionError: the prompt is empty.
        """
        if not prompt:
            raise OptionError("the prompt is empty, expected at least one token")
        capacity = context.cache.capacity_tokens
        if len(prompt) > capacity:
            larger = or_larger(capacity, context.trained_tokens, "give a larger context")
            raise ContextError(
                f"the prompt has {len(prompt):,} tokens, the context holds {capacity:,}; shorten "
                f"it{larger}"
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
        self._progress: Progress | None = checked_progress(progress)
        self.drafted = self.accepted = 0
        self._drafts = SequenceDrafts(draft_model, context, places) if speculate else None
        self._options, self._tokenizer, self._eos = options, tokenizer, eos_tokens
        self._constraint, self._shown, self._stops_until = constraint, shown, stops_until
        self.places = places
        self._ends: list[int] = []  # those at which a step ends

    def begin(self) -> None:
        """Take over the cache: keep what it holds of the prompt.

        Raises:
            SessionError: a kept beginning of the prompt does not fit this cache.
        """
        options = self._options
        size, chooser = self._tokenizer.vocab_size, self.context.chooser(options)
        self._sampler = Sampler(options, size, self.prompt, chooser)
        self._stream = self._tokenizer.stream(
            self.prompt, exact=self._constraint is not None, shown=self._shown
        )
        self._finder = StopFinder(options.stop, self._stops_until)
        self._limit = (
            self.context.answer_tokens if options.max_tokens is None else options.max_tokens
        )
        self.look_again()

    def look_again(self) -> None:
        """Look for what is known of the prompt by now; before anything of it is computed.

        Raises:
            SessionError: a kept beginning of the prompt does not fit this cache.
        """
        self.cached = self.context.reuse(self.prompt)
        self._ends = self.context.mark(self.places)
        self.pending = self.prompt[self.cached :]
        if self._progress is not None:
            self._progress(self.cached, len(self.prompt))

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
        most = self.context.cache.block_tokens
        if not self.reading:
            return most
        read = len(self.prompt) - len(self.pending)
        return min([most, *(end - read for end in self._ends if end > read)])

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

    def complete(self, tokens: int) -> bool:
        """Return whether its first `tokens` tokens are all that its constraint asks for."""
        return self._constraint is None or (self._complete and tokens == len(self.tokens))

    def propose(self, most: int, tokens: float, cost: Callable[[int], float]) -> Draft:
        """Draft at most `most` tokens after the pending one; see `Work.propose`."""
        if self._drafts is None:
            return Draft()
        self._drafts.clear()
        most = min(most, self.context.draft_tokens - 1)
        if self._limit is not None:
            most = min(most, self._limit - len(self.tokens) - 1)
        if most < 1:
            return Draft()
        try:
            forced = [] if self._constraint is None else self._constraint.forced_tokens()
        except GrammarError:  # it fails again where the answer needs it, and ends the answer
            return Draft()
        lengths = len(self.prompt), len(self.tokens)
        return self._drafts.choose(self._since, most, forced, tokens, cost, lengths)

    def prepare(self, rows: int) -> None:
        """Make the draft of the step that `part` and `advance` are of, if a model drafts it."""
        if self._drafts is not None and self._drafts.by_model and not self.reading:
            constraint = None if self._constraint is None else self._constraint.fork()
            self._drafts.make(self._since, rows - 1, self._sampler.fork(), constraint)

    def _since(self, place: int) -> list[int]:
        """Its tokens from a place on, prompt and answer together."""
        prompt = len(self.prompt)
        if place >= prompt:
            return self.tokens[place - prompt :]
        return self.prompt[place:] + self.tokens

    def part(self, rows: int) -> Part:
        """Its share of a step: the first `rows` pending tokens, or the pending one and a draft."""
        if self.reading:
            tokens, wanted = self.pending[:rows], int(rows == len(self.pending))
        else:
            tokens, wanted = self._rows(rows), rows
        return Part(self.context.cache, np.array(tokens, np.int32), wanted)

    def computed(self, rows: int) -> None:
        """Note that the rows of `part` are in the cache; of a draft nothing is kept."""
        if self.reading:
            self.context.appended(self.pending[:rows])
            self.pending = self.pending[rows:]
        else:
            self.context.appended(self._rows(rows))
            self.pending = []
            if rows > 1:
                self.context.retract(rows - 1)

    def _rows(self, rows: int) -> list[int]:
        return [*self.pending, *self._draft(rows)]

    def _draft(self, rows: int) -> list[int]:
        """The draft of a step with `rows` of its rows."""
        return [] if self._drafts is None else self._drafts.tokens[: rows - 1]

    def advance(
        self, rows: int, found: Logits | int | None, began: float, clock: Callable[[], float]
    ) -> list[Piece]:
        """Take in what a step computed of the rows of `part`.

        Args:
            rows: as given to `part`.
            found: the logits that `part` asked for, [n, vocab_size], or the token that the backend
                chose; None while the prompt goes on.
            began: when the step began.
            clock: the engine's clock, in seconds.

        Returns:
            Pieces of text, none of them empty.

        Raises:
            ArtefactError: the logits are not numbers.
            GrammarError: the constraint failed; the token is not part of the answer.
        """
        if not self.reading and found is not None:
            return self._verified(rows, found, clock)
        self.computed(rows)
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
        return self._next(found if isinstance(found, int) else found[-1], 0, clock)

    def _verified(self, rows: int, found: Logits | int, clock: Callable[[], float]) -> list[Piece]:
        """Choose a token from each row's logits, until one differs from the draft's next token.

        The sampler chooses in order and only from rows whose tokens all belong to the answer, so
        tokens, and what the cache holds after them, are those of an answer without drafts.
        """
        draft, pieces, kept = self._draft(rows), list[Piece](), 1
        self.context.appended(self._rows(rows))
        self.pending = []
        try:
            for kept in range(1, rows + 1):
                row = found[kept - 1] if isinstance(found, np.ndarray) else found
                pieces += self._next(row, rows - kept, clock)
                if self.finish is not None or kept == rows or draft[kept - 1] != self.tokens[-1]:
                    break
        finally:
            self.drafted += rows - 1
            self.accepted += kept - 1
            if self._drafts is not None:
                self._drafts.learn(rows - 1, kept - 1)
            if kept < rows:
                self.context.retract(rows - kept)
        return pieces

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

    def _next(self, found: RowLogits | int, ahead: int, clock: Callable[[], float]) -> list[Piece]:
        """Choose the next token: pieces that it makes, and whether it ends the answer.

        Args:
            found: logits [vocab_size], or the token that the backend chose.
            ahead: tokens in the cache beyond those that it was computed from.
            clock: the engine's clock, in seconds.
        """
        token = found if isinstance(found, int) else self._chosen(found)
        if self._options.logprobs is not None and not isinstance(found, int):
            self.logprobs.append(logprobs(found, token, self._options.logprobs))
        self.times.append(clock())
        self.tokens.append(token)
        if self._drafts is not None:
            self._drafts.add(token)
        text = "".join(self._written(token, self.context.room_tokens + ahead))
        return [Piece(text, len(self.tokens))] if text else []

    def _written(self, token: int, room: int) -> list[str]:
        """Pieces that a token makes, and whether it ends the answer.

        `room` tokens fit into the cache after those that it was computed from.
        """
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
        elif room < 1:
            self.finish = "context"
            pieces += self._rest()
        elif self._options.stop_loops and repeats(self.tokens, self._tokenizer.decode):
            self.finish = "loop"
            pieces += self._rest()
        else:
            self.pending = [token]
        return pieces

    def _rest(self) -> list[str]:
        """Return the text that detokenizer and stop finder have held back."""
        texts = [self._finder.push(self._stream.finish())]
        if self._finder.found is None:
            texts.append(self._finder.finish())
        return [text for text in texts if text]
