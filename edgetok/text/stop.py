"""Stop texts that may span tokens: text is held back while it may still become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Cuts a stream of text before the first of some texts; for one generation."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for `stops`, none of them empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text; return what can no longer be part of a stop text.

        Once `found` is set the answer is over and nothing more is returned.
        """
        if self.found is not None:
            return ""
        text = self._held + text
        places = [(text.find(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if places:
            place, _, self.found = min(places)
            self._held = ""
            return text[:place]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return the text still held back at the end."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
