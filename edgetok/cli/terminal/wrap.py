"""Wrap text between words at the terminal's edge while it arrives.

A word is printed as it arrives. If it becomes too long for its line, it is erased and printed again
on the next line.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable

_ERASE = "\x1b[{}D\x1b[K"


class WordWrap:
    """A writer of one answer to a terminal."""

    def __init__(self, write: Callable[[str], None], columns: int | None = None) -> None:
        """Start at the left edge.

        Args:
            write: prints text as it is.
            columns: width of the terminal; None: the present width.
        """
        self._write = write
        self._columns = columns or shutil.get_terminal_size().columns
        self._column = 0
        self._word = ""
        self._word_width = 0

    def push(self, text: str) -> None:
        """Write the next piece of text."""
        for char in text:
            self._char(char)

    def _char(self, char: str) -> None:
        if char == "\n":
            self._write(char)
            self._column = self._word_width = 0
            self._word = ""
            return
        if char == "\t":
            char = " "
        width = _width(char)
        if char == " ":
            self._word, self._word_width = "", 0
            if self._column + 1 >= self._columns:
                # The break between words falls on the edge.
                self._write("\n")
                self._column = 0
            else:
                self._write(char)
                self._column += 1
            return
        if self._column + width > self._columns - 1:
            self._break_line()
        self._write(char)
        self._column += width
        self._word += char
        self._word_width += width

    def _break_line(self) -> None:
        moved, width = self._word, self._word_width
        if width and width < self._column:
            self._write(_ERASE.format(width) + "\n" + moved)
            self._column = width
        else:  # a word longer than a line is broken where the line ends
            self._write("\n")
            self._column = 0
            self._word, self._word_width = "", 0


def wrapped(text: str, columns: int) -> list[str]:
    """Return the lines of a text, broken between words; a longer word is broken where it must.

    Args:
        text: without control characters but line ends.
        columns: most columns of a line.
    """
    lines: list[str] = []
    for line in text.replace("\t", " ").split("\n"):
        made, used = "", 0
        for part in re.findall(r" +|[^ ]+", line):
            width = sum(map(_width, part))
            if used + width > columns and made.strip():
                lines.append(made.rstrip())
                made, used = "", 0
                if part.isspace():
                    continue
            for char in part:
                if used + _width(char) > columns and made:
                    lines.append(made)
                    made, used = "", 0
                made += char
                used += _width(char)
        lines.append(made.rstrip())
    return lines


def _width(char: str) -> int:
    """Return the number of columns that a character takes."""
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
