"""Progress of a conversion, which the command line draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Receiver of progress; the converter calls it in order, never twice at once.

    The remaining time of a stage follows from the units done since `begin`: units within a stage
    take about equally long. That of the whole conversion follows from `plan`.
    """

    def plan(self, costs: Mapping[str, float]) -> None:
        """Take the stages to come and how long they take beside each other, in any unit."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` units, of which an interrupted run finished `done`."""

    def advance(self, units: int = 1) -> None:
        """Count finished units of the stage."""

    def say(self, line: str) -> None:
        """Show a line that stays on the screen."""


class Silent:
    """A receiver that shows nothing."""

    def plan(self, costs: Mapping[str, float]) -> None:
        """Show nothing."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Show nothing."""

    def advance(self, units: int = 1) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""


class Compiling:
    """Shows the compiling of kernels, where there is any, as a stage of its own."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = self._total = -1

    def __call__(self, done: int, total: int) -> None:
        """Take what the kernels' loader tells.

        The total grows where another process turns out to compile more than this one needs. A stage
        keeps the total that it began with, so the work done is told as a share of it.
        """
        if self._done < 0:
            self._progress.begin("Compiling kernels", total)
            self._done, self._total = 0, total
        units = max(self._done, self._total * done // max(1, total))
        self._progress.advance(units - self._done)
        self._done = -1 if done >= total else units
