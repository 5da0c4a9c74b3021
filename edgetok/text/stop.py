"""Stop texts that may span tokens: text is held back while it may still become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Cuts a stream of text before the first of some texts; for one generation.

    Special tokens are not shown, but a stop text may name them: they are part of the text that is
    looked through, and of nothing that is returned.
    """

    def __init__(self, stops: Sequence[str], until: str = "") -> None:
        """Look for `stops`, none of them empty, in front of the text `until`, if it is given."""
        self._stops, self._until = tuple(stops), until
        self._over = not stops
        self._held = ""
        self._hidden: list[bool] = []  # of each character held, whether it is not to be shown
        self.found: str | None = None

    def push(self, text: str, hidden: str = "") -> str:
        """Add text; return what can no longer be part of a stop text.

        Once `found` is set the answer is over and nothing more is returned.

        Args:
            text: that is shown.
            hidden: that stands after it and is not shown.
        """
        if self.found is not None:
            return ""
        if self._over:
            return text
        self._held += text + hidden
        self._hidden += [False] * len(text) + [True] * len(hidden)
        return self._safe(last=False)

    def finish(self) -> str:
        """The text still held back, when no more comes."""
        return self._safe(last=True)

    def _safe(self, *, last: bool) -> str:
        """Take what can no longer be part of a stop text."""
        held, until = self._held, self._until
        end = held.find(until) if until else -1
        most = end  # where a stop text begins at the latest
        if end < 0:
            most = len(held) - (0 if last else _overlap(held, until))
        places = [(held.find(stop), -len(stop), stop) for stop in self._stops if stop in held]
        if places and min(places)[0] <= most:
            place, _, self.found = min(places)
            shown = self._take(place)
            self._held, self._hidden = "", []
            return shown
        keep = 0 if last else max(_overlap(held, text) for text in (*self._stops, until))
        if 0 <= end < len(held) - keep:
            self._over, keep = True, 0
        return self._take(len(held) - keep)

    def _take(self, size: int) -> str:
        shown = "".join(
            char
            for char, hidden in zip(self._held[:size], self._hidden[:size], strict=True)
            if not hidden
        )
        self._held, self._hidden = self._held[size:], self._hidden[size:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
