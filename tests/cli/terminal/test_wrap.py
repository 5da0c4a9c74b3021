"""Words move to the next line as a whole; checked on a tiny model of a terminal."""

from __future__ import annotations

import random
import re
import textwrap

import pytest

from edgetok.cli.terminal.wrap import WordWrap


class Screen:
    """Understands characters, line feeds, cursor left and erase to the end of the line."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]

    def write(self, text: str) -> None:
        for escape, char in re.findall(r"(\x1b\[\d*[DK])|(.)", text, re.DOTALL):
            if escape.endswith("D"):
                self.lines[-1] = self.lines[-1][: -int(escape[2:-1])]
            elif escape:
                pass  # what is right of the cursor is gone already
            elif char == "\n":
                self.lines.append("")
            else:
                self.lines[-1] += char
                assert len(self.lines[-1]) < self.columns


def shown(text: str, columns: int, seed: int = 0) -> list[str]:
    screen = Screen(columns)
    wrap = WordWrap(screen.write, columns)
    rng = random.Random(seed)
    while text:
        cut = rng.randint(1, 6)
        wrap.push(text[:cut])
        text = text[cut:]
    return [line.rstrip() for line in screen.lines]


@pytest.mark.parametrize("columns", [12, 20, 33, 80])
@pytest.mark.parametrize("seed", range(5))
def test_as_textwrap(columns: int, seed: int) -> None:
    rng = random.Random(seed)
    words = ["a" * rng.randint(1, 9) for _ in range(60)]
    text = " ".join(words)
    assert shown(text, columns, seed) == textwrap.wrap(text, columns - 1)


def test_long_words_and_line_feeds() -> None:
    assert shown("ab\n\n" + "x" * 25, 11) == ["ab", "", "x" * 10, "x" * 10, "x" * 5]
    assert shown("ab " + "x" * 12, 11) == ["ab", "x" * 10, "xx"]


def test_wide_characters_take_two_columns() -> None:
    screen = Screen(100)
    WordWrap(screen.write, 9).push("日本語日本語")
    assert screen.lines == ["日本語日", "本語"]
