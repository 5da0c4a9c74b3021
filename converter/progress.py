"""How a conversion tells what it is doing; the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told by the converter, in order, from the thread that called it.

    How long a stage will yet take follows from what was done since `begin`: units within a stage
    take about equally long.
    """

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """A stage of `total` units starts, of which an earlier, interrupted run did `done`."""

    def advance(self, units: int = 1) -> None:
        """So many more units of the stage are done."""

    def say(self, line: str) -> None:
        """A line worth keeping on the screen."""


class Silent:
    """Tells nobody."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Nothing is shown."""

    def advance(self, units: int = 1) -> None:
        """Nothing is shown."""

    def say(self, line: str) -> None:
        """Nothing is shown."""
