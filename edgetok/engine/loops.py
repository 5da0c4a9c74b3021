"""Notice an answer that repeats itself without end.

Small models fall into it, at low temperatures above all: the same lines again and again, exactly.
Tables, lists, code and songs repeat themselves, too, but not exactly and not for long, so an answer
counts as a loop only where its end is the same passage over and over:

- of words: at least 3 times more, and for at least 160 tokens;
- of numbers, or with marks of code and tables: for at least 512 tokens. A page of empty cells, a
  matrix of zeros and a table of equal entries are shorter.

Tuned on 90 answers of SmolLM2-135M-Instruct (34 of them were cut at 600 tokens; this ends 20 of
those and none of the others, which repeat at most 201 tokens) and on 197 texts of 487,000
tokens: programs, tables, JSON, CSV, HTML, licences, songs. Of these it ends one: a sentence that
is written 50 times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_EVERY = 16  # tokens: how often it looks
_LONGEST = 256  # tokens of a passage
_TIMES = 3  # that a passage comes again
_WORDS = 160  # tokens of repetition, of plain words
_MARKS = 512  # likewise, of anything else
_PLAIN = re.compile(r"[^\W\d_]")
_CODE = re.compile(r"[<>{}\[\]()|=;_\\/]")


def repeats(tokens: Sequence[int], decode: Callable[[list[int]], str]) -> bool:
    """Return whether the end of an answer is a loop; looks at each 16th token only.

    Args:
        tokens: tokens of the answer.
        decode: gives the text of tokens.
    """
    count = len(tokens)
    if count % _EVERY or count < _WORDS:
        return False
    tail = list(tokens[-(_MARKS + _LONGEST) :])
    for period in range(1, _LONGEST + 1):
        least = max(_WORDS, _TIMES * period)
        if least + period > len(tail):
            return False
        if tail[-least:] == tail[-least - period : -period]:
            text = decode(tail[-period:])
            if _PLAIN.search(text) and not _CODE.search(text):
                return True
            least = max(_MARKS, least)
            return tail[-least:] == tail[-least - period : -period]
    return False
