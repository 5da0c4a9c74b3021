"""Say on stderr why a first start takes longer, how far it is and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from edgetok.machine import cores

_UNIT_S = 0.1  # a guess until the first unit of work is done
_LINE_S = 10  # between two lines where stderr is not a terminal
_TITLE = "compiling kernels for this machine, once"


class Compiling:
    """Progress of compiling: one line that is overwritten, or a line now and then.

    The time left is extrapolated from the work that is done, and counts down until more is; before
    any is done, it is a guess.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, title: str = _TITLE) -> None:
        self._clock, self._title = clock, title
        self._began = self._changed = self._told = 0.0
        self._done = -1

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` units of work are done."""
        now = self._clock()
        terminal = sys.stderr.isatty()
        if self._done < 0:
            self._began = self._changed = self._told = now
            self._done = 0
            self._show(f"{self._title} ...", end=not terminal)
        if done != self._done:
            self._done, self._changed = done, now
        if done >= total:
            self._show(f"{self._title}: took {now - self._began:.0f} s", end=True)
            self._done = -1
        elif now - self._told >= (1 if terminal else _LINE_S):
            self._told = now
            self._show(self._line(total, now), end=not terminal)

    def _line(self, total: int, now: float) -> str:
        if not self._done:
            left = max(1.0, _UNIT_S * total / cores() - (now - self._began))
            return f"{self._title}: about {left:.0f} s left"
        pace = (self._changed - self._began) / self._done
        left = max(1.0, pace * (total - self._done) - (now - self._changed))
        return f"{self._title}: {100 * self._done // total} %, about {left:.0f} s left"

    def _show(self, text: str, *, end: bool) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{text}", err=True, nl=end)
        else:
            click.echo(text, err=True)
