"""The cost of steps, estimated while the engine runs, without calibration at load."""

from __future__ import annotations

_NEWEST = 0.3  # weight of the newest measurement: follows a growing depth within some steps
_OUTLIER = 2.0  # times the estimate: more counts as this much, because something else took the time
_ROW = 0.2  # of one row's step, that each further row costs: a guess until it is measured
_FRESH_STEPS = 64  # for so many steps an estimate is what drafts are weighed against
_KEPT_STEPS = 256  # longer ago than this, a measurement is forgotten and made again


class Costs:
    """Running estimates of a step's seconds.

    Decode steps are estimated by their number of rows, those in between by the nearest ones. A
    chunk of a prompt is estimated by its latest seconds a row, as are steps of which it is a part:
    larger ones cost less a row, so the estimate settles where the chosen size and its own cost
    meet.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._decode_s: dict[int, float] = {}
        self._measured: dict[int, int] = {}  # in which step
        self._steps = 0
        self._read_row_s: float | None = None
        self._beside_row_s: float | None = None

    def decoded(self, rows: int, seconds: float) -> None:
        """Note a decode step."""
        self._steps += 1
        self._decode_s[rows] = _mixed(self._decode_s.get(rows), seconds)
        self._measured[rows] = self._steps
        if self._steps % _FRESH_STEPS == 0:
            for old in [n for n, at in self._measured.items() if self._steps - at > _KEPT_STEPS]:
                del self._measured[old], self._decode_s[old]

    def read(self, rows: int, seconds: float) -> None:
        """Note a chunk of a prompt."""
        self._read_row_s = _mixed(self._read_row_s, seconds / rows)

    def read_beside(self, rows: int, seconds: float) -> None:
        """Note a step of a chunk and others' rows, so many together."""
        self._beside_row_s = _mixed(self._beside_row_s, seconds / rows)

    def is_fresh(self, rows: int) -> bool:
        """Return whether a decode step of just so many rows was measured lately."""
        at = self._measured.get(rows)
        return at is not None and self._steps - at < _FRESH_STEPS

    def decode_s(self, rows: int) -> float:
        """Seconds of a decode step of so many rows; 0 while none was measured.

        Between two numbers of rows that were measured it is in proportion.
        """
        known = self._decode_s
        if rows in known:
            return known[rows]
        if not known:
            return 0.0
        below = max((n for n in known if n < rows), default=None)
        above = min((n for n in known if n > rows), default=None)
        if below is not None and above is not None:
            share = (rows - below) / (above - below)
            return known[below] + share * (known[above] - known[below])
        near = min(known, key=lambda n: abs(n - rows))
        return known[near] * _guess(rows) / _guess(near)

    def read_s(self, rows: int) -> float:
        """Seconds that reading so many rows of a prompt takes; 0 while none was measured."""
        return 0.0 if self._read_row_s is None else rows * self._read_row_s

    def rows_within(self, seconds: float) -> int | None:
        """Return the rows of a prompt that fit into a time in seconds; None while unknown."""
        return _fitting(seconds, self._read_row_s)

    def rows_beside(self, seconds: float) -> int | None:
        """Return the rows, others' included, that fit a step with a chunk; None while unknown."""
        return _fitting(seconds, self._beside_row_s)


def _fitting(seconds: float, row_s: float | None) -> int | None:
    return None if row_s is None else int(max(0.0, seconds) / row_s)


def _guess(rows: int) -> float:
    return 1.0 + _ROW * (rows - 1)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + _NEWEST * (min(new, _OUTLIER * old) - old)
