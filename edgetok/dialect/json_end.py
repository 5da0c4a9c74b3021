"""Find where a JSON value ends while it arrives."""

from __future__ import annotations


class JsonEnd:
    """Looks at an object or array once, from its first bracket on."""

    def __init__(self) -> None:
        """Begin before the value."""
        self._depth = 0
        self._string = False
        self._escaped = False

    def push(self, text: str) -> tuple[int, bool]:
        """Look at more text.

        Returns:
            How many of its characters belong to the value, and whether it ended.
        """
        for i, char in enumerate(text):
            if self._string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._string = False
            elif char == '"':
                self._string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return i + 1, True
        return len(text), False
