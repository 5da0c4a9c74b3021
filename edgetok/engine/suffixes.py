"""Index of earlier occurrences of a sequence's latest tokens, which shows what may follow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

LENGTHS = (8, 4, 2)  # of the runs of tokens that are looked up, the longest first
_LONGEST = 32  # longer matches are not told apart


class SuffixIndex:
    """The latest place of every run of 2, 4 and 8 tokens.

    Attributes:
        tokens: tokens of the sequence so far.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        """Index the tokens that there are."""
        self.tokens = list(tokens)
        self._after: dict[int, dict[tuple[int, ...], int]] = {}
        for length in LENGTHS:
            runs = zip(*(islice(self.tokens, i, None) for i in range(length)), strict=False)
            # The last run has nothing after it yet: `zip` ends with the places.
            self._after[length] = dict(zip(runs, range(length, len(self.tokens)), strict=False))

    def add(self, token: int) -> None:
        """Append a token, which is what follows the runs that ended before it."""
        tokens = self.tokens
        end = len(tokens)
        for length in LENGTHS:
            if end >= length:
                self._after[length][tuple(tokens[-length:])] = end
        tokens.append(token)

    def find(self) -> tuple[int, int]:
        """Return the place after an earlier occurrence of the latest tokens, and its length.

        The latest of the longest that was looked up; (0, 0) where fewer than two tokens match.
        """
        tokens = self.tokens
        for length in LENGTHS:
            place = self._after[length].get(tuple(tokens[-length:]))
            if place is not None:
                end = len(tokens)
                while (
                    length < min(place, _LONGEST)
                    and tokens[place - 1 - length] == tokens[end - 1 - length]
                ):
                    length += 1
                return place, length
        return 0, 0

    def following(self, place: int, count: int) -> list[int]:
        """Return `count` tokens from a place on; at the end of the sequence they repeat."""
        tokens = self.tokens
        found = tokens[place : place + count]
        if len(found) < count:
            period = len(tokens) - place
            found = [found[i % period] for i in range(count)]
        return found
