"""Large blocks of text, of which the chat shows the size only."""

from __future__ import annotations

_SHOWN_LINES = 5  # of a block that is shown as it is
_SHOWN_CHARACTERS = 500


def is_large(text: str) -> bool:
    """Return whether only the size of a text is shown."""
    return text.count("\n") >= _SHOWN_LINES or len(text) > _SHOWN_CHARACTERS


def size_of(text: str) -> str:
    """Return a text's size in words: "200 lines"."""
    lines = text.count("\n") + (not text.endswith("\n"))
    return f"{lines:,} lines" if lines > 1 else f"{len(text):,} characters"


def summarised(text: str) -> str:
    """Return a message as it is, or its first line and its size if it is large."""
    if not is_large(text):
        return text
    first = text.split("\n", 1)[0].strip()
    start = first[:60] + (" ..." if len(first) > 60 else "")
    return f"{start} [{size_of(text)}]".strip()
