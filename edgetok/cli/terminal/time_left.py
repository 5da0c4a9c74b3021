"""An estimate of the time that a task of several stages still takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

_TRUSTED = 0.1  # share of a stage after which its own pace counts as much as that of all before


class TimeLeft:
    """How long a conversion still takes; see `converter.progress.Progress` for what it is told.

    How many seconds a unit of cost takes here and now follows from the stages so far. The rest of a
    stage is taken from its own pace the more, the more of it is done.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._to_come: dict[str, float] = {}
        self._what, self._begun = "", clock()
        self._units = self._done = 0
        self._cost = self._seconds = 0.0  # of planned stages that are over

    def plan(self, costs: Mapping[str, float]) -> None:
        """Take the stages to come; the one that runs counts as none of them."""
        self._to_come = dict(costs)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Begin a stage, which ends the one before."""
        now = self._clock()
        if what in self._to_come:  # what was to come before it, and did not, was not needed
            order = list(self._to_come)
            for skipped in order[: order.index(what)]:
                if skipped != self._what:
                    del self._to_come[skipped]
        if self._what in self._to_come:
            self._cost += self._to_come.pop(self._what)
            self._seconds += now - self._begun
        self._what, self._begun, self._units, self._done = what, now, total - done, 0
        if total and what in self._to_come:
            self._to_come[what] *= self._units / total

    def advance(self, units: int = 1) -> None:
        """Count finished units of the stage."""
        self._done += units

    def seconds(self) -> float | None:
        """Return the estimate; None where nothing is known to go by."""
        spent = self._clock() - self._begun
        share = min(1.0, self._done / self._units) if self._units else 1.0
        cost = self._to_come.get(self._what, 0.0)
        known = self._cost + share * cost
        rate = (self._seconds + (spent if cost else 0.0)) / known if known else None
        own = spent * (1 - share) / share if share else None
        later = sum(self._to_come.values()) - cost
        if rate is None:
            return None if own is None or later else own
        if own is None:
            return rate * (cost + later)
        trust = share / (share + _TRUSTED) if cost else 1.0
        return trust * own + (1 - trust) * rate * cost * (1 - share) + rate * later
