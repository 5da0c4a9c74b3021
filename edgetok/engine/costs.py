"""The cost of steps, estimated while the engine runs, without calibration at load."""

from __future__ import annotations

_NEWEST = 0.3  # weight of the newest measurement: follows a growing depth within some steps


class Costs:
    """Running estimates of a step's seconds.

    Decode steps are estimated by their number of rows, in classes of powers of two. A chunk of a
    prompt is estimated by its latest seconds a row: larger chunks cost less a row, so the estimate
    settles where the chosen size and its own cost meet.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._decode_s: dict[int, float] = {}
        self._read_row_s: float | None = None

    def decoded(self, rows: int, seconds: float) -> None:
        """Note a decode step."""
        place = rows.bit_length()
        self._decode_s[place] = _mixed(self._decode_s.get(place), seconds)

    def read(self, rows: int, seconds: float) -> None:
        """Note a chunk of a prompt."""
        self._read_row_s = _mixed(self._read_row_s, seconds / rows)

    def decode_s(self, rows: int) -> float:
        """Seconds of a decode step of so many rows; 0 while none was measured.

        Of a class that was not measured, the nearest one's are taken in proportion to rows.
        """
        if not self._decode_s:
            return 0.0
        place = rows.bit_length()
        near = min(self._decode_s, key=lambda known: (abs(known - place), known))
        return float(self._decode_s[near] * 2.0 ** max(0, place - near))

    def rows_within(self, seconds: float) -> int | None:
        """Return the rows of a prompt that fit into a time in seconds; None while unknown."""
        return None if self._read_row_s is None else int(max(0.0, seconds) / self._read_row_s)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + _NEWEST * (new - old)
