"""The chat's typed lines, kept from one chat to the next."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History

_MOST_LINES = 1000
_MOST_CHARACTERS = 2000  # of an entry: nobody looks for a pasted file


class LineHistory(History):
    """A history in a file that only its owner can read: one JSON text a line, the oldest first.

    A file that cannot be read or written must not end the chat: then nothing is kept.
    """

    def __init__(self, path: Path, without: re.Pattern[str]) -> None:
        """Use a file; it and its folder are made when the first line is kept.

        Args:
            path: the file.
            without: lines with a match are not kept in it.
        """
        super().__init__()
        self._path, self._without = path, without

    def load_history_strings(self) -> Iterable[str]:
        """Return the latest lines, the latest first."""
        try:
            lines = self._path.read_text("utf-8", "replace").splitlines()
        except OSError:
            return []
        if len(lines) > 2 * _MOST_LINES:
            lines = lines[-_MOST_LINES:]
            with contextlib.suppress(OSError):
                self._path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return [_text(line) for line in reversed(lines[-_MOST_LINES:])]

    def store_string(self, string: str) -> None:
        """Add a line at the end of the file."""
        if len(string) > _MOST_CHARACTERS or self._without.search(string):
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
            with open(file, "a", encoding="utf-8", errors="replace") as stream:
                stream.write(json.dumps(string, ensure_ascii=False) + "\n")


def _text(line: str) -> str:
    """Return an entry; a line that an earlier edgetok wrote is the text itself."""
    try:
        value = json.loads(line)
    except ValueError:
        return line
    return value if isinstance(value, str) else line
