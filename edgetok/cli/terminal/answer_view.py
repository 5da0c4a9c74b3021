"""Show an answer as it arrives: as markdown, as wrapped text, or as it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import click

from edgetok.cli.streams import (
    answer_writer,
    for_terminal,
)
from edgetok.environment import read_settings

if TYPE_CHECKING:
    from edgetok.answer import ChatAnswer

_QUIET_S = 0.7  # reading a prompt that takes no longer is not worth a line
_QUIET_TOKENS = 300  # a step may read more than these, and nothing is said within one


class AnswerView(Protocol):
    """A view of one answer."""

    def push(self, text: str) -> None:
        """Add the next piece."""

    def finish(self) -> None:
        """Show what is left and end the line."""


class _Text:
    """Text as it is, wrapped in a terminal."""

    def __init__(self) -> None:
        self._write = answer_writer()
        self._last = ""

    def push(self, text: str) -> None:
        self._last = text or self._last
        self._write(text)

    def finish(self) -> None:
        if not self._last.endswith("\n"):
            click.echo()


class _Marked:
    """Markdown in a terminal."""

    def __init__(self) -> None:
        from edgetok.cli.terminal.markdown import MarkdownView

        self._view = MarkdownView(_write)

    def push(self, text: str) -> None:
        self._view.push(for_terminal(text))

    def finish(self) -> None:
        self._view.finish()


def answer_view(plain: bool) -> AnswerView:
    """Return a view: of markdown in a terminal, unless it was switched off."""
    return _Text() if plain or not styled() else _Marked()


def show_answer(
    answer: ChatAnswer, view: AnswerView, arrived: Callable[[], None] = lambda: None
) -> None:
    """Show an answer as it arrives; its reasoning before it, dim, where there are styles.

    Args:
        answer: to be read to its end.
        view: shows its text; the caller finishes it.
        arrived: called before each piece.
    """
    from edgetok.dialect.tool import ReasoningPiece, TextPiece

    thinks = False
    for piece in answer.pieces():
        arrived()
        if isinstance(piece, ReasoningPiece):
            if styled():
                _write(click.style(for_terminal(piece.text), dim=True))
                thinks = True
        elif isinstance(piece, TextPiece):
            if thinks:
                _write("\n\n")
                thinks = False
            view.push(piece.text)


def styled() -> bool:
    """Return whether output may have styles: a terminal, and no NO_COLOR."""
    settings = read_settings()
    return sys.stdout.isatty() and not settings.no_color and not settings.dumb_terminal


class ReadingLine:
    """A line that says how much of the prompt is read, and vanishes; in a terminal only."""

    def __init__(self) -> None:
        """Begin now."""
        self._begin = time.monotonic()
        self._shown = False
        self._terminal = sys.stdout.isatty()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` tokens are read."""
        long = total - done > _QUIET_TOKENS or time.monotonic() - self._begin > _QUIET_S
        if self._terminal and done < total and long:
            line = f"reading: {done:,} of {total:,} tokens"
            _write("\r" + (click.style(line, dim=True) if styled() else line) + "\x1b[K")
            self._shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            _write("\r\x1b[K")
            self._shown = False


def _write(text: str) -> None:
    click.echo(text, nl=False)
