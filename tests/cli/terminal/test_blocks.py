"""Large messages of a loaded conversation are shown by their size, as when they were pasted."""

from __future__ import annotations

from edgetok.cli.terminal.blocks import is_large, size_of, summarised


def test_large_messages_show_their_size() -> None:
    pasted = "def f():\n" + "    return 1\n" * 199
    assert is_large(pasted)
    assert size_of(pasted) == "200 lines"
    assert summarised(pasted) == "def f(): [200 lines]"
    assert summarised("x" * 600) == "x" * 60 + " ... [600 characters]"


def test_others_are_shown_as_they_are() -> None:
    for text in ("", "short", "four\nlines\nof\ntext\n", "x" * 500):
        assert summarised(text) == text
