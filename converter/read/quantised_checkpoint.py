"""Checkpoints that are quantised already, whatever packed them: integers are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from edgetok.converter.quantised import Quantised
from edgetok.formats.checkpoint import Checkpoint
from edgetok.models.family import Family


class CodedCheckpoint(Checkpoint, ABC):
    """A checkpoint of floating-point tensors, of which some matrices also have codes.

    Attributes:
        method: method that quantised it.
        coded: names of the matrices whose integers are kept.
    """

    method: str
    coded: Collection[str]
    _last: tuple[str, Quantised] | None = None

    def described(self, family: Family) -> Family:
        """Return the family with the names that tensors have here."""
        return family

    def codes(self, name: str) -> Quantised | None:
        """Return a matrix's integers, scales and zero points; None where it has none.

        Raises:
            CheckpointError: parts do not fit each other.
            UnsupportedError: a width or an order of inputs that an artefact does not hold.
        """
        return self._read_last(name) if name in self.coded else None

    def _read_last(self, name: str) -> Quantised:
        """Return a matrix of `coded`; the last one is remembered."""
        last = self._last  # of whichever thread was here before
        if last is None or last[0] != name:
            self._last = last = name, self._read_codes(name)
        return last[1]

    @abstractmethod
    def _read_codes(self, name: str) -> Quantised:
        """Read and check a matrix of `coded`."""
