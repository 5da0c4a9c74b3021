"""Tokens of texts that go on where earlier ones ended, such as the prompts of conversations.

Tokenising a conversation of 32,768 tokens takes as long as a third of the first token may. A
program sends the whole conversation again with each turn, so what it shares with an earlier one is
looked up: up to the last special token, at which tokenizers split first, in the beginning that both
have. The result always equals that of tokenising everything.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetok.text.tokenizer import Tokenizer

LEAST_CHARACTERS = 4096  # of a text that is kept: shorter ones take less than a millisecond or two
_MOST_CHARACTERS = 4 << 20  # of all texts that are kept


@dataclass(frozen=True, slots=True)
class _Known:
    """A text and its tokens.

    Attributes:
        text: as it was given.
        ids: int32 [T].
        cuts: special tokens in it before which a text may be cut, and how each is written.
    """

    text: str
    ids: npt.NDArray[np.int32]
    cuts: dict[int, str]

    def cut(self, common: int) -> tuple[int, int]:
        """Return the last place to cut at within the first `common` characters.

        Returns:
            Characters and tokens before it; (0, 0) where there is none.
        """
        best, token = max(
            ((self.text.rfind(content, 0, common), i) for i, content in self.cuts.items()),
            default=(0, -1),
        )
        if best <= 0:
            return 0, 0
        content, places = self.cuts[token], np.flatnonzero(self.ids == token)
        if self.text.count(content) != len(places):  # written where it is not this token
            return 0, 0
        return best, int(places[self.text.count(content, 0, best)])


class GrowingTexts:
    """Tokenises long texts at the cost of what is new. Safe to use from many threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Begin without a text."""
        self._tokenizer = tokenizer
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text that a chat template made: `Tokenizer.encode` without extras.

        Raises:
            OptionError: see `Tokenizer.encode`.
        """
        if len(text) < LEAST_CHARACTERS:
            return self._tokenizer.encode(text, special=False)
        with self._lock:
            known = list(self._known.values())
        ids = self._continued(text, known)
        if ids is None:
            ids = self._tokenizer.encode(text, special=False)
        made = _Known(text, np.array(ids, np.int32), self._tokenizer.cuts(ids))
        with self._lock:
            self._known[text] = made
            self._known.move_to_end(text)
            total = sum(map(len, self._known))
            while total > _MOST_CHARACTERS:
                total -= len(self._known.popitem(last=False)[0])
        return ids

    def _continued(self, text: str, known: list[_Known]) -> list[int] | None:
        """None where no text is known that begins likewise and can be cut."""
        common, best = max(
            ((_common(one.text, text), i) for i, one in enumerate(known)), default=(0, -1)
        )
        if common < LEAST_CHARACTERS // 2:
            return None
        characters, tokens = known[best].cut(common)
        if not characters:
            return None
        added = self._tokenizer.encode(text[characters:], special=False)
        if not added or not self._tokenizer.is_cut(added[0]):
            return None
        found: list[int] = known[best].ids[:tokens].tolist()
        return found + added


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
