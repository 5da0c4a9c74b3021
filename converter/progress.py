"""Progress of a conversion, which the command line draws."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receiver of progress; the converter calls it in order, from the caller's thread.

    The remaining time of a stage follows from the units done since `begin`: units within a stage
    take about equally long.
    """

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` units, of which an interrupted run finished `done`."""

    def advance(self, units: int = 1) -> None:
        """Count finished units of the stage."""

    def say(self, line: str) -> None:
        """Show a line that stays on the screen."""


class Silent:
    """A receiver that shows nothing."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Show nothing."""

    def advance(self, units: int = 1) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""
