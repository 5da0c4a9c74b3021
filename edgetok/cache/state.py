"""What a cache holds, as plain numbers and bytes: for a copy, a branch or a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import SessionError


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheState:
    """A cache at one moment; restored only into a cache of the same `shape`.

    Attributes:
        shape: all that decides the layout of `memory`: JSON values.
        numbers: counters: JSON values.
        memory: uint8, copies of the cache's own bytes.
    """

    shape: dict[str, Any]
    numbers: dict[str, Any]
    memory: tuple[npt.NDArray[np.uint8], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(part.nbytes for part in self.memory)

    def check(self, shape: dict[str, Any], sizes: tuple[int, ...]) -> None:
        """Whether it fits a cache of this shape, whose memory has these sizes in bytes.

        Raises:
            SessionError: it does not.
        """
        for name in sorted(shape.keys() | self.shape.keys()):
            if shape.get(name) != self.shape.get(name):
                raise SessionError(
                    f"the saved cache has {name} {self.shape.get(name)!r:.60}, this one "
                    f"{shape.get(name)!r:.60}; start with the options that it was saved with"
                )
        found = tuple(part.nbytes for part in self.memory)
        if found != sizes:
            raise SessionError(f"the saved cache has parts of {found} bytes, expected {sizes}")

    def integer(self, name: str, low: int, high: int) -> int:
        """A counter in low..high.

        Raises:
            SessionError: it is missing or out of range.
        """
        value = self.numbers.get(name)
        if type(value) is not int or not low <= value <= high:
            raise SessionError(
                f"the saved cache has {name} {value!r:.40}, expected {low} to {high}"
            )
        return value

    def integers(self, name: str, count: int, low: int, high: int) -> npt.NDArray[np.int64]:
        """A list of `count` counters in low..high.

        Raises:
            SessionError: it is no such list.
        """
        value = self.numbers.get(name)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(type(item) is int and low <= item <= high for item in value)
        ):
            raise SessionError(
                f"the saved cache has no {name}: {count} numbers from {low} to {high}"
            )
        return np.array(value, np.int64)
