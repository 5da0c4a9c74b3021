"""The engine: one model's sequences, and the loop that steps them together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack

from edgetok.cache.limits import CacheLimits
from edgetok.cache.prefix_cache import PrefixCache
from edgetok.engine.cached_tokens import NOWHERE, CachedTokens, ReturnPoints
from edgetok.engine.draft_model import DraftModel
from edgetok.engine.generation import Generation
from edgetok.engine.pace import Pace
from edgetok.engine.result import Result
from edgetok.engine.scheduler import Scheduler
from edgetok.engine.sequence import Progress
from edgetok.engine.sequence import Sequence as Answer
from edgetok.engine.stepper import Stepper
from edgetok.grammar.definition import Grammar
from edgetok.grammar.vocabulary import Vocabulary
from edgetok.runtime.backend import Backend
from edgetok.runtime.options import DEFAULT_WAIT_S
from edgetok.runtime.select import LEAST_EVICTING_TOKENS
from edgetok.sampling.constraint import Constraint
from edgetok.sampling.options import SamplingOptions
from edgetok.text.tokenizer import Tokenizer

BATCH = 16  # answers of a batch in the making at once, where a backend computes them together
CAPACITY_STEP = 64


class Engine:
    """Makes sequences and their caches, and has the loop that steps them.

    Attributes:
        backend: computes the steps.
        tokenizer: text to tokens and back.
        eos_tokens: ids that end an answer.
        context_tokens: the longest prompt and answer together; where the cache evicts, what it
            holds.
        limits: of all caches where the user asked for some; None otherwise.
        chats_evict: whether a conversation's cache evicts though nobody asked for limits.
        speculate: whether answers are drafted where that is faster.
        draft_model: a smaller model that drafts besides; None for repetitions alone.
        prefixes: beginnings of prompts that were read before; None where none are kept.
        scheduler: chooses steps.
        stepper: the loop.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        eos_tokens: frozenset[int],
        *,
        context_tokens: int,
        limits: CacheLimits | None = None,
        chats_evict: bool = True,
        speculate: bool = True,
        pace: float | None = None,
        max_wait: float = DEFAULT_WAIT_S,
    ) -> None:
        """Put the parts together; see the attributes. No thread starts before it is needed.

        `pace` is how many tokens all answers together may get per second; None: no limit.
        `max_wait` is how many seconds a token should take at most while a prompt is read.
        """
        self.backend, self.tokenizer, self.eos_tokens = backend, tokenizer, eos_tokens
        self.context_tokens, self.limits = context_tokens, limits
        self.chats_evict, self.speculate = chats_evict, speculate
        self.draft_model: DraftModel | None = None
        self.prefixes: PrefixCache | None = None
        self.scheduler: Scheduler[Answer] = Scheduler(
            backend.capabilities.step_rows, wait_s=max_wait
        )
        self.stepper = Stepper(backend, self.scheduler, pace=None if pace is None else Pace(pace))
        self._vocabulary: Vocabulary | None = None
        self._reading = threading.Lock()

    @property
    def chat_limits(self) -> CacheLimits | None:
        """Return the limits of a conversation's cache; None if it evicts nothing.

        Without limits of the user's it evicts, where backend and context allow it.
        """
        able = (
            self.chats_evict
            and self.backend.capabilities.evicts
            and self.context_tokens >= LEAST_EVICTING_TOKENS
        )
        return CacheLimits() if self.limits is None and able else self.limits

    def conversation(self) -> CachedTokens:
        """A cache for a conversation.

        Raises:
            OptionError: the limits are too tight.
            UnsupportedError: the backend has no cache that evicts, and one was asked for.
        """
        return CachedTokens(self.backend, self.context_tokens, self.chat_limits, self.prefixes)

    def answer(
        self,
        context: CachedTokens,
        prompt: Sequence[int],
        options: SamplingOptions,
        on_finish: Callable[[Result], None] | None = None,
        *,
        priority: int = 0,
        constraint: Constraint | None = None,
        progress: Progress | None = None,
    ) -> Generation:
        """An answer in a cache of its own; nothing is computed before it is read.

        Args:
            context: the cache to use, by one answer at a time; what it holds of the prompt is kept.
            prompt: token ids.
            options: sampling and limits.
            on_finish: called once with the result, however the answer ends.
            priority: 0 for an answer that somebody waits for, more for one in the background.
            constraint: restricts this answer, and no other.
            progress: see `Sequence`.

        Raises:
            ContextError: the prompt does not fit.
            OptionError: the prompt is empty.
        """
        sequence = self.sequence(
            context, prompt, options, priority=priority, constraint=constraint, progress=progress
        )
        return Generation(self.stepper, sequence, on_finish)

    def sequence(
        self,
        context: CachedTokens,
        prompt: Sequence[int],
        options: SamplingOptions,
        *,
        priority: int = 0,
        constraint: Constraint | None = None,
        progress: Progress | None = None,
        shown: Collection[int] = (),
        stops_until: str = "",
        places: ReturnPoints = NOWHERE,
    ) -> Answer:
        """A sequence that has not begun, for a `Generation`.

        Args:
            context: as for `answer`, and so are the others.
            prompt: token ids.
            options: sampling and limits.
            priority: see `answer`.
            constraint: restricts this answer, and no other.
            progress: see `Sequence`.
            shown: special tokens that are spelled out in the text.
            stops_until: text behind which no stop text ends the answer; "" for none.
            places: where later prompts may part from this one; `NOWHERE` where that is not known,
                or nobody asks (`has_snapshots`).

        Raises:
            ContextError: the prompt does not fit.
            OptionError: the prompt is empty.
        """
        return Answer(
            context,
            self.tokenizer,
            prompt,
            options,
            self.eos_tokens,
            priority=priority,
            constraint=constraint,
            context_tokens=None if context.cache.capabilities.evicts else self.context_tokens,
            progress=progress,
            speculate=self.speculate,
            draft_model=self.draft_model,
            shown=shown,
            stops_until=stops_until,
            places=places,
        )

    @property
    def has_snapshots(self) -> bool:
        """Return whether caches of this model or of its draft model need snapshots to go back."""
        drafting = self.draft_model is not None and self.draft_model.backend.capabilities.snapshots
        return drafting or self.backend.capabilities.snapshots

    def capacity_tokens(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """Return the size of the cache that a text of so many tokens gets, in tokens.

        Whole multiples of CAPACITY_STEP: pages of few sizes, which the next text can use again.
        """
        capacity = self.context_tokens
        if self.limits is None and max_tokens is not None and prompt_tokens < capacity:
            steps = -(-(prompt_tokens + max_tokens) // CAPACITY_STEP)
            capacity = min(capacity, steps * CAPACITY_STEP)
        return capacity

    def cache_bytes(self, capacity_tokens: int) -> int:
        """Return the most bytes of a cache of this size, and of a draft model's beside it."""
        found = self.backend.cache_bytes(capacity_tokens, self.limits)
        if self.draft_model is not None:
            found += self.draft_model.cache_bytes(capacity_tokens)
        return found

    def text(
        self,
        prompt: Sequence[int],
        options: SamplingOptions,
        *,
        priority: int = 0,
        constraint: Constraint | None = None,
        progress: Progress | None = None,
    ) -> Generation:
        """The continuation of a text, in a new cache that is as large as it has to be.

        Raises:
            ContextError: the prompt does not fit.
            OptionError: the prompt is empty, or the cache's limits are too tight.
        """
        return self.answer(
            self.room(prompt, options),
            prompt,
            options,
            priority=priority,
            constraint=constraint,
            progress=progress,
        )

    def room(self, prompt: Sequence[int], options: SamplingOptions) -> CachedTokens:
        """A new cache that is as large as one answer to a prompt needs it to be.

        Raises:
            OptionError: the cache's limits are too tight.
        """
        capacity = self.capacity_tokens(len(prompt), options.max_tokens)
        return CachedTokens(self.backend, capacity, self.limits, self.prefixes)

    def batch(
        self,
        prompts: Iterable[Sequence[int]],
        options: SamplingOptions,
        constraint: Constraint | None = None,
    ) -> list[Result]:
        """The continuations of texts, which share steps; results in the order of the prompts.

        A constraint that has not begun restricts each of them.

        Raises:
            ContextError: a prompt does not fit; the others are cancelled.
        """
        most = BATCH if self.backend.capabilities.together else 1
        left, made = iter(prompts), list[Generation]()
        with ExitStack() as closing:

            def refill() -> None:
                for one in made:
                    if one.failed:
                        one.run()
                while sum(not one.over for one in made) < most:
                    prompt = next(left, None)
                    if prompt is None:
                        return
                    own = None if constraint is None else constraint.fork()
                    answer = self.text(prompt, options, priority=1, constraint=own)
                    made.append(closing.enter_context(answer))
                    made[-1].start()

            refill()
            results: list[Result] = []
            while len(results) < len(made):
                for _ in made[len(results)]:
                    refill()
                results.append(made[len(results)].result)
                refill()
            return results

    def vocabulary(self) -> Vocabulary:
        """Return the model's tokens for grammars; the first call takes up to a second.

        Raises:
            GrammarError: the tokens have no text of their own.
            MissingExtraError: llguidance is not installed.
        """
        with self._reading:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self.tokenizer, self.eos_tokens)
        return self._vocabulary

    def constraint(self, grammar: Grammar) -> Constraint:
        """Return a constraint that makes one answer match a grammar.

        Raises:
            GrammarError: the grammar is invalid, unsupported or too complex.
            MissingExtraError: llguidance is not installed.
        """
        return self.vocabulary().constraint(grammar)

    def constraint_of(self, schema: object = None, grammar: object = None) -> Constraint | None:
        """Return the constraint that the options `schema` and `grammar` ask for; None for neither.

        Raises:
            GrammarError: both are given, or as `constraint`.
            MissingExtraError: as `constraint`.
        """
        chosen = Grammar.asked(schema, grammar)
        return None if chosen is None else self.constraint(chosen)

    def close(self) -> None:
        """End all answers and the loop, and write what is kept; a second call does nothing."""
        self.stepper.close()
        if self.prefixes is not None:
            self.prefixes.close()
        if self.draft_model is not None:
            self.draft_model.close()
