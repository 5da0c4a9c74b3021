"""Read messages from the terminal, with line editing, history and completion."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import click

from edgetok.cli.options import clean_input
from edgetok.environment import read_settings

PROMPT = "› "
MORE = "… "
FENCE = '"""'
_HISTORY_LINES = 1000

try:  # absent on Windows, where the console edits lines itself
    import readline
except ImportError:  # pragma: no cover
    readline = None  # type: ignore[assignment]


class LineReader:
    """A reader of messages. As a context manager it loads and saves the history."""

    def __init__(self, commands: Sequence[str]) -> None:
        """Prepare.

        Args:
            commands: words that the tab key completes at the start of a line.
        """
        self._commands = list(commands)
        self._history = _history_file()

    def __enter__(self) -> LineReader:
        if readline is not None:
            readline.set_completer(self._complete)
            readline.set_completer_delims(" \t\n")
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind("set enable-bracketed-paste on")
            readline.set_history_length(_HISTORY_LINES)
            if self._history is not None:
                with contextlib.suppress(OSError):
                    readline.read_history_file(self._history)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if readline is not None and self._history is not None:
            # A history that cannot be saved must not end the chat with an error.
            with contextlib.suppress(OSError):
                self._history.parent.mkdir(parents=True, exist_ok=True)
                self._history.touch(mode=0o600)
                readline.write_history_file(self._history)

    def read(self) -> str | None:
        r"""Read one message.

        A line that ends with a backslash continues in the next line. Three double quotes at the
        start of a line begin a message of several lines, which three more end.

        Returns:
            The message; None at the end of input.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        line = self._line(PROMPT)
        if line is None:
            return None
        if line.lstrip().startswith(FENCE):
            return self._fenced(line.lstrip()[len(FENCE) :])
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            line = self._line(MORE)
            if line is None:
                break
            lines.append(line)
        return "\n".join(lines)

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

    def _line(self, prompt: str) -> str | None:
        if sys.stdout.isatty():
            prompt = click.style(prompt, fg="cyan", bold=True)
            if readline is not None:
                # \001 and \002 tell readline which part takes no room.
                prompt = re.sub(r"(\x1b\[[0-9;]*m)", "\001\\1\002", prompt)
        try:
            return clean_input(input(prompt))
        except EOFError:
            return None
        except KeyboardInterrupt:
            click.echo()
            raise

    def _complete(self, text: str, state: int) -> str | None:
        if readline is None or readline.get_begidx() != 0:
            return None
        matches = [name for name in self._commands if name.startswith(text)] if text else []
        return matches[state] + " " if state < len(matches) else None


def _history_file() -> Path | None:
    chosen = read_settings().history
    if chosen is not None:
        return chosen if chosen.name else None
    state = os.path.expanduser("~/.local/state")
    return None if state.startswith("~") else Path(state) / "edgetok" / "history"
