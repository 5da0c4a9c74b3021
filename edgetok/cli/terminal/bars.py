"""Progress of a conversion on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from edgetok.cli.terminal.time_left import TimeLeft

_LINE_S = 30  # between two lines of progress where stderr is not a terminal
_BAR_COLUMNS = 16  # the longest line of a stage then has 78


class _Times(ProgressColumn):
    """The time that a stage took; while it runs, the time so far and the time left."""

    def render(self, task: Task) -> Text:
        passed = task.elapsed if task.finished_time is None else task.finished_time
        text = _clock(passed or 0.0)
        running = task.stop_time is None and task.completed < (task.total or 0)
        if running and task.time_remaining is not None:
            text += f", {_clock(task.time_remaining)} left"
        return Text(text, style="progress.elapsed")


class Bars:
    """Progress bars on stderr; lines where stderr is not a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._plain = not quiet and not sys.stderr.isatty()
        self._drawn = not quiet and not self._plain
        self._stages = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(_BAR_COLUMNS),
            MofNCompleteColumn(),
            _Times(),
        )
        self._left = TimeLeft()
        self._planned = self._ended = False
        self._live = Live(console=self._console, get_renderable=self._picture)
        self._task: TaskID | None = None
        self._said = 0.0

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        if self._task is not None:
            self._stages.stop_task(self._task)
        self._live.stop()
        if kind is KeyboardInterrupt and self._task is not None:
            self.say("interrupted; run the same command again to continue")

    def plan(self, costs: Mapping[str, float]) -> None:
        """Take the stages to come and how long they take beside each other."""
        self._left.plan(costs)
        self._planned = True

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Begin a stage."""
        self._left.begin(what, total, done)
        if self._task is not None:
            self._stages.stop_task(self._task)
        self._task = self._stages.add_task(what, total=total, completed=done)
        if self._drawn:
            self._live.start()
        if self._plain:
            self._console.print(what)
            self._said = time.monotonic()

    def advance(self, units: int = 1) -> None:
        """Count finished units of the stage."""
        if self._task is None:
            return
        self._left.advance(units)
        self._stages.update(self._task, advance=units)
        if self._plain and time.monotonic() - self._said > _LINE_S:
            self._said = time.monotonic()
            task = self._stages.tasks[self._task]
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            whole = self._whole()
            self._console.print(
                f"  {task.completed:.0f} of {task.total:.0f}{left}{whole and f'; {whole}'}"
            )

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, markup=False, highlight=False)

    def _picture(self) -> RenderableType:
        whole = self._whole()
        return Group(self._stages, Text(whole)) if whole else self._stages

    def _whole(self) -> str:
        """The time left of all stages; empty where it is not known."""
        seconds = None if self._ended or not self._planned else self._left.seconds()
        return "" if seconds is None else f"about {_clock(seconds)} left in all"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
