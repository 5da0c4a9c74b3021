"""Drafts: tokens that may come next, guessed from repetitions, and how likely each is right.

No second model is needed (`draft_model.py` uses one). Text that repeats what prompt or answer say
already (an edit, a summary, code) is found by the tokens before it. A step then computes the
guesses as further rows; those that the sampler chooses, too, are kept, so the answer is the same as
without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgetok.engine.suffixes import SuffixIndex

MOST_TOKENS = 15  # of a draft
_WORTH = 0.95  # of a guessed token beside a sure one: what errors of the estimates may take
_MEMORY = 0.95  # of a chance's estimate for each new observation: about the latest 20 count
# Guesses and those that were right, by the bit length of the match's length, before any
# observation. Longer matches go on more often: typical of chats, edits and code. Two tokens alone
# say little. Tuned on replayed answers of SmolLM2-135M (docs/benchmarks.md, November 2026).
_BEFORE = (0.0, 0.0, 1.4, 2.8, 3.4, 3.6, 3.7)
_BEFORE_OF = 4.0


class Drafter:
    """Guesses the next tokens of one sequence and learns from those that come.

    Each token that comes says whether the guess before it was right, whether it was computed in a
    draft or not: so the chances are known without drafting, and drafting begins where it pays.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        """Begin with what the sequence holds: prompt and answer so far."""
        self._index = SuffixIndex(tokens)
        self._right, self._guessed = list(_BEFORE), [_BEFORE_OF] * len(_BEFORE)
        self._place, self._length = self._index.find()

    def add(self, token: int) -> None:
        """Append the token that came."""
        index, place, length = self._index, self._place, self._length
        follows = False
        if length:
            follows = index.tokens[place] == token
            kind = length.bit_length()
            self._right[kind] = _MEMORY * self._right[kind] + follows
            self._guessed[kind] = _MEMORY * self._guessed[kind] + 1.0
        index.add(token)
        if follows and length >= 8:
            self._place, self._length = place + 1, min(length + 1, 32)
            return
        self._place, self._length = index.find()
        if follows and length >= self._length:
            self._place, self._length = place + 1, length + 1

    def guess(self, most: int, forced: Sequence[int] = ()) -> tuple[list[int], list[float]]:
        """Return up to `most` tokens that may come next, and the chance of each.

        A chance counts on all guesses before it being right. `forced` are tokens that a grammar
        leaves no choice about.
        """
        most = min(most, MOST_TOKENS)
        if forced:
            drafted = list(forced[:most])
            return drafted, [1.0] * len(drafted)
        if not self._length or most < 1:
            return [], []
        chances = [
            self._right[kind] / self._guessed[kind]
            for kind in (min(self._length + i, 32).bit_length() for i in range(most))
        ]
        return self._index.following(self._place, most), chances


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft of a sequence for its next step.

    Attributes:
        count: tokens.
        right: how many of them are right on average.
        seconds: that making the draft takes.
    """

    count: int = 0
    right: float = 0.0
    seconds: float = 0.0

    def rate(self, tokens: float, cost: Callable[[int], float]) -> float:
        """Return tokens a second of a step; see `best_length`."""
        return (tokens + _WORTH * self.right) / (cost(self.count) + self.seconds)


def best_length(
    chances: Sequence[float], tokens: float, cost: Callable[[int], float]
) -> tuple[int, float]:
    """Choose how much of a draft a step computes, so that tokens a second are the most.

    Args:
        chances: chances of each token of the draft, as `Drafter.guess` gives them.
        tokens: that the step gives without the draft.
        cost: seconds of the step with so many more rows.

    Returns:
        Tokens of the draft, 0 where it does not pay, and how many of them are right on average.
    """
    best, expected, right, chance = 0, 0.0, 0.0, 1.0
    rate = tokens / cost(0)
    for count, each in enumerate(chances, 1):
        chance *= each
        right += chance
        if (found := (tokens + _WORTH * right) / cost(count)) > rate:
            best, expected, rate = count, right, found
    return best, expected
