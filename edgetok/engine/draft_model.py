"""Drafts by a second, smaller model with the same vocabulary.

The draft model reads what the sequence holds and draws the next tokens with the sequence's own
sampler: the same options, random numbers and grammar. So the nearer the two models are, the more
drafts hold, for sampled answers as for greedy ones, and a model drafts for itself without an error.
Whether it pays follows from measured seconds of both models and from the share of drafts that held.
Where it does not, the draft model rests, and tries again after ever more tokens.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from collections.abc import Sequence as Tokens

import numpy as np

from edgetok.engine.cached_tokens import NOWHERE, CachedTokens, ReturnPoints
from edgetok.engine.costs import Costs
from edgetok.engine.drafts import Draft, best_length
from edgetok.errors import GrammarError
from edgetok.runtime.backend import Backend, Logits
from edgetok.sampling.constraint import Constraint
from edgetok.sampling.sampler import Sampler

MARGIN = 1.15  # that a draft has to gain by the estimates, which leave some of its cost out
_MEMORY = 0.97  # of the estimate for each new observation: about the latest 33 count
_BEFORE, _BEFORE_OF = 2.8, 4.0  # drafts that held, of how many, before any was seen
_TRIAL_TOKENS = 3  # of a draft that is made to learn whether drafts pay
_PAUSE_TOKENS = 64  # between two trials at first; twice as many after each that failed
_MOST_PAUSE_TOKENS = 4096
_READ_TOKENS = 256  # of a prompt that are read in one step: others wait for it
_SPREAD = 32  # steps that share the cost of reading a prompt

Lengths = tuple[int, int]  # of prompt and answer, in tokens


class DraftModel:
    """A model that drafts for all sequences of another one.

    Attributes:
        backend: computes its steps.
        context_tokens: the most tokens that it reads of a sequence.
        vocab_size: number of logits of the model that it drafts for.
        nbytes: bytes of its weights and buffers.
        costs: costs of its steps.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        context_tokens: int,
        vocab_size: int,
        nbytes: int,
        close: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare.

        Args:
            backend: loaded for the draft model.
            context_tokens: the most tokens of a sequence that it drafts for.
            vocab_size: number of logits of the other model, of which some may have no token.
            nbytes: bytes of weights and buffers.
            close: lets go of backend and weights.
            clock: seconds.
        """
        self.backend, self.context_tokens = backend, context_tokens
        self.vocab_size, self.nbytes = vocab_size, nbytes
        self.costs = Costs()
        self.close = close
        self._clock = clock
        self._right, self._drafted = _BEFORE, _BEFORE_OF
        self._idle, self._pause = _PAUSE_TOKENS, _PAUSE_TOKENS

    def cache_bytes(self, tokens: int) -> int:
        """Return the bytes of its cache beside one of the other model's for so many tokens."""
        return self.backend.cache_bytes(min(tokens, self.context_tokens))

    def beside(self, context: CachedTokens) -> CachedTokens:
        """Return its cache for the sequences of a cache of the other model: made once for each."""
        if context.drafting is None:
            capacity = min(context.cache.capacity_tokens, self.context_tokens)
            context.drafting = CachedTokens(self.backend, capacity)
        return context.drafting

    @property
    def chance(self) -> float:
        """Return the share of drafts that held lately, where those before them did."""
        return self._right / self._drafted

    def trial_due(self) -> bool:
        """Return whether it has rested long enough to try again."""
        return self._idle >= self._pause

    def rested(self) -> None:
        """Note a token that was written without a draft of this model."""
        self._idle += 1

    def begin_trial(self) -> None:
        """Forget what was seen, and expect the next trial later."""
        self._right, self._drafted = _BEFORE, _BEFORE_OF
        self._idle, self._pause = 0, min(2 * self._pause, _MOST_PAUSE_TOKENS)

    def learn(self, drafted: int, right: int, *, trial: bool = False) -> None:
        """Take in how many tokens of a draft held, from its first one on."""
        for place in range(min(drafted, right + 1)):
            self._right = _MEMORY * self._right + (place < right)
            self._drafted = _MEMORY * self._drafted + 1.0
        self._idle = 0
        if not trial:  # it pays, so it need not rest long when it does not
            self._pause = _PAUSE_TOKENS

    @property
    def draft_s(self) -> float:
        """Return about how many seconds one more token of a draft takes; 0 while unknown."""
        return self.costs.decode_s(1)

    def read_s(self, tokens: int) -> float:
        """Return about how many seconds it takes to read so many tokens; 0 while unknown."""
        return self.costs.decode_s(tokens) if tokens <= 16 else self.costs.read_s(tokens)

    def now(self) -> float:
        """Return the seconds of its clock."""
        return self._clock()

    def took(self, tokens: int, began: float) -> None:
        """Note what reading so many tokens has cost since a moment, with what was drawn of them."""
        note = self.costs.decoded if tokens <= 16 else self.costs.read
        note(tokens, self._clock() - began)

    def forward(self, context: CachedTokens, tokens: list[int]) -> Logits:
        """Read tokens: logits [vocab_size] after the last one, as the other model counts them."""
        try:
            logits = self.backend.forward(context.cache, np.array(tokens, np.int32))
        except BaseException:
            context.lost()
            raise
        context.appended(tokens)
        if logits.size < self.vocab_size:
            return np.pad(logits, (0, self.vocab_size - logits.size), constant_values=-np.inf)
        return logits[: self.vocab_size]


class ModelDrafter:
    """Drafts for one sequence."""

    def __init__(
        self,
        model: DraftModel,
        context: CachedTokens,
        tokens: Tokens[int],
        places: ReturnPoints = NOWHERE,
    ) -> None:
        """Keep of the draft model's cache what the sequence begins with.

        Args:
            model: drafts.
            context: the sequence's cache, of the other model.
            tokens: tokens of the sequence so far.
            places: of the sequence.
        """
        self._model, self._context = model, model.beside(context)
        self._context.reuse(tokens)
        self._ends = self._context.mark(places)
        self._sure = len(self._context.tokens)  # in its cache, and known to be the sequence's
        self._trial = self._reads = False

    def offer(
        self, most: int, tokens: float, cost: Callable[[int], float], lengths: Lengths
    ) -> Draft:
        """Return the draft of up to `most` tokens that gives the most tokens a second.

        Args:
            most: tokens of the draft.
            tokens: that the step gives without it.
            cost: seconds of the step with so many more rows.
            lengths: lengths of prompt and answer.
        """
        model, missing = self._model, sum(lengths) - self._sure
        cache = self._context.cache
        # It draws each token from the one before it, so that the last one is not in its cache.
        most = min(most, cache.capacity_tokens - sum(lengths), cache.spare_tokens + 1)
        self._trial = model.trial_due() and missing <= _READ_TOKENS + 16 * lengths[1]
        self._reads = False
        first = each = 0.0
        chances = [model.chance] * most
        if self._trial:
            chances = [_BEFORE / _BEFORE_OF] * min(most, _TRIAL_TOKENS)
        else:
            first = each = model.draft_s
            if missing > 1:
                first += model.read_s(missing) / _SPREAD

        def seconds(count: int) -> float:
            return first + each * (count - 1) if count else 0.0

        count, right = best_length(chances, tokens, lambda count: cost(count) + seconds(count))
        if count and missing > _READ_TOKENS:
            self._reads = True
            return Draft(seconds=model.read_s(_READ_TOKENS))
        return Draft(count, right, seconds(count))

    def rested(self) -> None:
        """Note that a step was made without a draft of this model."""
        self._model.rested()

    @property
    def reads(self) -> bool:
        """Return whether the latest offer was to read on, before anything can be drafted."""
        return self._reads

    def draft(
        self,
        since: Callable[[int], list[int]],
        count: int,
        sampler: Sampler,
        constraint: Constraint | None,
    ) -> list[int]:
        """Draw the next `count` tokens; with none, read on.

        Args:
            since: gives the sequence's tokens from a place on.
            count: tokens of the draft.
            sampler: a fork of the sequence's sampler.
            constraint: a fork of its constraint.
        """
        model, context = self._model, self._context
        began = model.now()
        rest = since(self._sure)
        # What it drafted before and came true stays; the last token is always read again.
        held = context.tokens[self._sure : self._sure + len(rest) - 1]
        same = next((i for i, token in enumerate(held) if token != rest[i]), len(held))
        context.cut(self._sure + same)
        first = len(context.tokens)
        tokens = since(first)[:_READ_TOKENS]
        cuts = [end - first for end in self._ends if 0 < end - first < len(tokens)]
        for start, end in itertools.pairwise([0, *cuts, len(tokens)]):
            logits = model.forward(context, tokens[start:end])
        self._sure = len(context.tokens)
        if not count:
            model.took(len(tokens), began)
            return []
        if self._trial:
            model.begin_trial()
        drafted: list[int] = []
        while True:
            token, constraint = _drawn(logits, sampler, constraint)
            drafted.append(token)
            model.took(len(tokens), began)
            if len(drafted) == count:
                return drafted
            began, tokens = model.now(), [token]
            logits = model.forward(context, tokens)

    def learn(self, drafted: int, right: int) -> None:
        """Take in how many tokens of the latest draft held."""
        self._model.learn(drafted, right, trial=self._trial)


def _drawn(
    logits: Logits, sampler: Sampler, constraint: Constraint | None
) -> tuple[int, Constraint | None]:
    """A token, and the constraint after it; None once the constraint has ended or fails."""
    try:
        mask = None if constraint is None or constraint.ended else constraint.mask()
        token = sampler.sample(logits, mask)
        if constraint is None or constraint.ended:
            return token, None
        constraint.accept(token)
    except GrammarError:  # it fails again where the answer needs it, and ends the answer
        return sampler.sample(logits), None
    return token, constraint
