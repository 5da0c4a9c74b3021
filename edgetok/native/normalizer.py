"""Tables of Unicode's normal form C for `kernels_cpu/text/normal.py`.

They follow the version of Unicode that the `tokenizers` package has, which is older than Python's:
each entry is asked of the package. Only the classes of marks are Python's, of those marks that the
package knows. Hangul is computed and not in them. Source: UAX 15, UAX 44.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass

from tokenizers import normalizers

_PROBED = 0x30000  # no character from here on is composed or a mark, but for tags
_HANGUL = range(0xAC00, 0xD7A4)
_VOWELS, _TRAILING = range(0x1161, 0x1176), range(0x11A8, 0x11C3)
_IOTA = "\u0345"  # the mark of the highest class, 240
_MOST_PARTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalTables:
    """The tables, in ascending order.

    Attributes:
        decompositions: a character and the up to 4 that it stands for, 0 for none.
        classes: first and last of a range of marks, and their class.
        compositions: two characters and the one that they become.
        unstable: ranges of characters that may change a text or be changed: texts without them are
            in normal form.
    """

    decompositions: list[tuple[int, ...]]
    classes: list[tuple[int, int, int]]
    compositions: list[tuple[int, int, int]]
    unstable: list[tuple[int, int]]


@functools.cache
def normal_tables() -> NormalTables:
    """Ask the package for each character."""
    apart, together = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str
    decompositions, compositions, classes, unstable = [], [], {}, {*_VOWELS, *_TRAILING}
    for code in range(_PROBED):
        char = chr(code)
        if code in _HANGUL or 0xD800 <= code < 0xE000:
            continue
        own = unicodedata.combining(char)
        if own and (code == ord(_IOTA) or apart(f"a{_IOTA}{char}")[-1] == _IOTA):
            classes[code] = own
            unstable.add(code)
        parts = apart(char)
        if parts == char:
            continue
        decompositions.append((code, *map(ord, parts), *[0] * (_MOST_PARTS - len(parts))))
        if together(char) != char:
            unstable.add(code)
        elif len(parts) > 1:
            first, second = ord(together(parts[:-1])), ord(parts[-1])
            compositions.append((first, second, code))
            unstable.add(second)
    return NormalTables(
        decompositions=decompositions,
        classes=[(first, last, classes[first]) for first, last in _ranges(classes)],
        compositions=sorted(compositions),
        unstable=_ranges(dict.fromkeys(sorted(unstable), 0)),
    )


def _ranges(values: dict[int, int]) -> list[tuple[int, int]]:
    """First and last of each run of keys with one value; keys ascend."""
    made: list[tuple[int, int]] = []
    for key, value in values.items():
        if made and made[-1][1] == key - 1 and values[key - 1] == value:
            made[-1] = made[-1][0], key
        else:
            made.append((key, key))
    return made
