"""Holds a speed: says how long to rest before the next step.

Whoever makes the steps rests by waiting for a letter or a call that long (`stepper.py`).
"""

from __future__ import annotations

import math

from edgetok.runtime.options import check_pace


class Pace:
    """A speed of written tokens, of all answers together; prompts are read at full speed.

    A step of n tokens puts the next one off by n / tokens_per_s seconds from when it was due, so
    that late wake-ups do not add up. A step that is late by more than one token's time follows a
    pause, or is slower than the pace: then from when it began, so that there are no bursts.
    """

    def __init__(self, tokens_per_s: float) -> None:
        """Begin with nothing owed.

        Raises:
            OptionError: the speed is too low, or no finite number.
        """
        check_pace(tokens_per_s)
        self._token_s = 1 / tokens_per_s
        self._due_s = -math.inf

    def rest_s(self, now_s: float) -> float:
        """Return the seconds from now until the next step may begin; 0 for at once."""
        return max(0.0, self._due_s - now_s)

    def made(self, tokens: int, began_s: float) -> None:
        """Note that a step that began then has made tokens."""
        on_time = self._due_s >= began_s - self._token_s
        self._due_s = (self._due_s if on_time else began_s) + tokens * self._token_s
