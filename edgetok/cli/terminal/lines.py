"""Read messages from the terminal, with editing, history, completion and pasted blocks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetok.cli.streams import (
    clean_input,
)
from edgetok.environment import read_settings

if TYPE_CHECKING:
    from edgetok.cli.terminal.line_editor import LineEditor

PROMPT = "› "
MORE = "… "
FENCE = '"""'


class LineReader:
    """A reader of messages: an editor in a terminal, plain lines elsewhere."""

    def __init__(self, commands: Sequence[str]) -> None:
        """Prepare.

        Args:
            commands: words that the tab key completes at the start of a line.
        """
        self._editor: LineEditor | None = None
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        if terminal and not read_settings().dumb_terminal:
            from edgetok.cli.terminal.line_editor import LineEditor

            self._editor = LineEditor(commands, _history_file())

    def read(self) -> str | None:
        r"""Read one message.

        A line that ends with a backslash continues in the next line. Three double quotes at the
        start of a line begin a message of several lines, which three more end. Neither means
        anything in a pasted block.

        Returns:
            The message; None at the end of input.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        line = self._line(PROMPT)
        if line is None:
            return None
        if line.lstrip().startswith(FENCE) and "\n" not in line:
            return self._whole(self._fenced(line.lstrip()[len(FENCE) :]))
        lines = [line]
        while lines[-1].endswith("\\") and "\n" not in lines[-1]:
            lines[-1] = lines[-1][:-1]
            line = self._line(MORE)
            if line is None:
                break
            lines.append(line)
        return self._whole("\n".join(lines))

    def _fenced(self, first: str) -> str:
        lines: list[str] = []
        line: str | None = first
        while line is not None:
            if line.rstrip().endswith(FENCE):
                lines.append(line.rstrip()[: -len(FENCE)])
                break
            lines.append(line)
            line = self._line(MORE)
        return "\n".join(lines).strip("\n")

    def _whole(self, text: str) -> str:
        """Put pasted blocks where their summaries stand."""
        return text if self._editor is None else clean_input(self._editor.expanded(text))

    def _line(self, prompt: str) -> str | None:
        try:
            line = input(prompt) if self._editor is None else self._editor.read(prompt)
        except EOFError:
            return None
        except KeyboardInterrupt:
            if self._editor is None:
                click.echo()
            raise
        return clean_input(line)


def _history_file() -> Path | None:
    chosen = read_settings().history
    if chosen is not None:
        return chosen if chosen.name else None
    state = os.path.expanduser("~/.local/state")
    return None if state.startswith("~") else Path(state) / "edgetok" / "history"
