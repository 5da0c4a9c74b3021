"""Progress of a conversion on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

from edgetok.cli.terminal.time_left import TimeLeft

_LINE_S = 30  # between two lines of progress where stderr is not a terminal


class Bars:
    """Progress bars on stderr; lines where stderr is not a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console(stderr=True, quiet=quiet)
        self._plain = not quiet and not sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[whole]}"),
            console=self._console,
            disable=quiet or self._plain,
        )
        self._left = TimeLeft()
        self._planned = False
        self._task: Any = None
        self._said = 0.0

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def plan(self, costs: Mapping[str, float]) -> None:
        """Take the stages to come and how long they take beside each other."""
        self._left.plan(costs)
        self._planned = True

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Begin a stage."""
        self._left.begin(what, total, done)
        self._progress.start()  # not before: until then a download may draw bars of its own
        if self._plain:
            self._console.print(what)
            self._said = time.monotonic()
        self._task = self._progress.add_task(what, total=total, completed=done, whole=self._whole())

    def advance(self, units: int = 1) -> None:
        """Count finished units of the stage."""
        if self._task is None:
            return
        self._left.advance(units)
        self._progress.update(self._task, advance=units, whole=self._whole())
        if self._plain and time.monotonic() - self._said > _LINE_S:
            self._said = time.monotonic()
            task = self._progress.tasks[self._task]
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            whole = f", {self._whole()}" if self._whole() else ""
            self._console.print(f"  {task.completed:.0f} of {task.total:.0f}{left}{whole}")

    def _whole(self) -> str:
        """The time left of all stages; empty where they are not known."""
        seconds = self._left.seconds() if self._planned else None
        return "" if seconds is None else f"{timedelta(seconds=round(seconds))} in all"

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, markup=False, highlight=False)
