"""The drafts of one sequence: by repetitions or by a second model, whichever gives more tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgetok.engine.cached_tokens import CachedTokens, ReturnPoints
from edgetok.engine.draft_model import MARGIN, DraftModel, Lengths, ModelDrafter
from edgetok.engine.drafts import MOST_TOKENS, Draft, Drafter, best_length
from edgetok.sampling.constraint import Constraint
from edgetok.sampling.sampler import Sampler

Since = Callable[[int], list[int]]


class SequenceDrafts:
    """Chooses who drafts for a sequence's next step, makes the draft, and learns how it went.

    Attributes:
        tokens: the draft of the next step.
        by_model: whether it is the draft model's, which `make` is to be called for before the step.
    """

    def __init__(
        self, model: DraftModel | None, context: CachedTokens, places: ReturnPoints
    ) -> None:
        """Prepare; nothing is searched or computed yet.

        Args:
            model: a second model that drafts, too; None for repetitions alone.
            context: the sequence's cache.
            places: of the sequence, see there.
        """
        self.tokens: list[int] = []
        self._model, self._context, self._places = model, context, places
        self._drafter: Drafter | None = None
        self._modelled: ModelDrafter | None = None
        self.by_model = False

    def clear(self) -> None:
        """Draft nothing for the next step."""
        self.tokens, self.by_model = [], False

    def choose(
        self,
        since: Since,
        most: int,
        forced: Sequence[int],
        tokens: float,
        cost: Callable[[int], float],
        lengths: Lengths,
    ) -> Draft:
        """Choose the draft that gives the most tokens a second.

        Args:
            since: gives the sequence's tokens from a place on, prompt and answer together.
            most: tokens of the draft, at least 1.
            forced: tokens that a grammar leaves no choice about.
            tokens: that the step gives without a draft.
            cost: seconds of the step with so many more rows.
            lengths: tokens of prompt and answer.
        """
        if self._drafter is None:
            self._drafter = Drafter(since(0))
        self.tokens, chances = self._drafter.guess(most, forced)
        best = Draft(*best_length(chances, tokens, cost))
        if self._model is None or forced:
            return best
        if self._modelled is None:
            self._modelled = ModelDrafter(self._model, self._context, since(0), self._places)
        offered = self._modelled.offer(min(most, MOST_TOKENS), tokens, cost, lengths)
        reads = self._modelled.reads and not best.count
        self.by_model = reads or offered.rate(tokens, cost) > MARGIN * best.rate(tokens, cost)
        if not self.by_model:
            self._modelled.rested()
        return offered if self.by_model else best

    def make(
        self, since: Since, count: int, sampler: Sampler, constraint: Constraint | None
    ) -> None:
        """Let the model draft `count` tokens; see `ModelDrafter.draft`."""
        if self._modelled is not None:
            self.tokens = self._modelled.draft(since, count, sampler, constraint)

    def add(self, token: int) -> None:
        """Append a token of the answer."""
        if self._drafter is not None:
            self._drafter.add(token)

    def learn(self, drafted: int, right: int) -> None:
        """Take in how many tokens of the step's draft held."""
        if self.by_model and self._modelled is not None and drafted:
            self._modelled.learn(drafted, right)
        self.by_model = False
