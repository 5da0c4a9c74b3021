"""Markdown as it streams: what a terminal shows at the end is what is shown of the whole."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pyte
import pytest

from edgetok.cli.terminal.markdown import MarkdownView

ANSWER = """# A *title*

Roses are red,
Violets are **blue**, 2*3*4 = 24 and 2**8 is 256.
你好 🙂 `code` here and [a link](http://example.com/x) in a line that has to be wrapped somewhere.

- one item that is so long that it has to be wrapped somewhere, too
- two
  - nested

9. nine
10. ten

```python
def f(x):
    return [x * 2 for x in range(10)]  # a comment that has to be wrapped as well, as it is long
```

| name | n |
|:-----|--:|
| a    | 1 |
| longer than before | 20 |

<think>hm</think> and \\(x^2\\)

A heading
---------

> a quote

the end"""


def at_once() -> Callable[[], float]:
    """A clock by which drawing takes no time and pieces are seconds apart."""
    times = iter(range(10**6))
    return lambda: float(next(times) // 2)


def show(pieces: list[str], columns: int, lines: int) -> list[str]:
    """Return what a terminal of that size shows at the end, with what has scrolled off."""
    screen = pyte.HistoryScreen(columns, lines, history=2000, ratio=0.5)
    screen.set_mode(pyte.modes.LNM)
    view = MarkdownView(pyte.Stream(screen).feed, size=lambda: (columns, lines), clock=at_once())
    for piece in pieces:
        view.push(piece)
    view.finish()
    top = ["".join(line[i].data for i in range(columns)) for line in screen.history.top]
    return "\n".join(line.rstrip() for line in [*top, *screen.display]).rstrip().split("\n")


def cut(text: str, seed: int) -> list[str]:
    rng, pieces = random.Random(seed), []
    while text:
        size = rng.randint(1, 9)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 10), (20, 24)])
@pytest.mark.parametrize("seed", range(3))
def test_streamed_equals_whole(columns: int, lines: int, seed: int) -> None:
    whole = show([ANSWER], columns, 200)
    assert show(cut(ANSWER, seed), columns, 200) == whole
    if columns > 20:  # a table that is higher than the screen keeps rows that have scrolled off
        assert show(cut(ANSWER, seed), columns, lines) == whole


def test_nothing_but_marks_is_lost() -> None:
    shown = "\n".join(show([ANSWER], 100, 200))
    for text in [
        "A title",
        "Roses are red,\nViolets are blue, 2*3*4 = 24 and 2**8 is 256.\n你好 🙂 code",
        "a link (http://example.com/x)",
        " • one",
        "  9. nine\n 10. ten",
        "def f(x):\n    return",
        "longer than before  20",
        "<think>hm</think> and \\(x^2\\)",
        "▌ a quote",
        "the end",
    ]:
        assert text in shown
    assert "---------" not in shown
    assert "```" not in shown
    for text, expected in [
        ("[a]: http://b.c", "[a]: http://b.c"),
        ("![img](http://x/y.png)", "!img (http://x/y.png)"),
        ("<b>x</b>", "<b>x</b>"),
        ("<!-- x -->", "<!-- x -->"),
        ("a\u2028b", "a"),
    ]:
        assert show([text, "\n\nthen this"], 60, 50)[0].startswith(expected)
        assert show([text, "\n\nthen this"], 60, 50)[-1] == "then this"


def test_a_long_code_block_stays_whole() -> None:
    code = "".join(f"line {i}\n" for i in range(60))
    shown = show(cut(f"```\n{code}```\nend", 1), 40, 10)
    assert [line for line in shown if line.startswith("line")] == code.split("\n")[:-1]
    assert shown[-1] == "end"


def test_wrong_markdown_is_text() -> None:
    rng = random.Random(5)
    for _ in range(60):
        text = "".join(rng.choice("ab *_`|-#>[]()\n\\!~1.<&") for _ in range(80))
        shown = "".join(show(cut(text, 1), 50, 200))
        letters = re.sub(r"[^ab]", "", text)
        # a word behind ``` names the language of a block of code and is not shown
        if "```" not in text and "~~~" not in text:
            assert re.sub(r"[^ab]", "", shown) == letters, text


def test_a_narrower_terminal() -> None:
    """Lines that the terminal broke by itself are counted, so that nothing above is overwritten."""
    written: list[str] = []
    size = [(80, 24)]
    view = MarkdownView(written.append, size=lambda: size[0], clock=at_once())
    view.push("word " * 15)
    size[0] = (40, 24)
    written.clear()
    view.push("and more")
    assert "".join(written).startswith("\r\x1b[1A\x1b[J")


def test_drawing_takes_a_tenth_of_the_time() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01  # drawing takes this long
        return now[0]

    written: list[str] = []
    view = MarkdownView(written.append, clock=clock)
    for i in range(100):
        view.push(f"{i} ")
    assert len(written) < 30
    view.finish()
    assert "99" in "".join(written)
