"""Checkpoints that are quantised already, whatever packed them: integers are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantised import Quantised
from edgetok.errors import CheckpointError
from edgetok.formats.checkpoint import Checkpoint
from edgetok.formats.safetensors_file import TensorInfo
from edgetok.models.family import Family

KEY = "quantization_config"


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


class WrappedCheckpoint(CodedCheckpoint):
    """A checkpoint whose config.json names the method, read through the plain one."""

    def __init__(
        self,
        inner: Checkpoint,
        method: str,
        infos: dict[str, TensorInfo],
        coded: Collection[str],
        *,
        suffix: str,
    ) -> None:
        """Keep the parts.

        Args:
            inner: the plain checkpoint, from which everything else is read.
            method: method that quantised it.
            infos: tensors as they read here.
            coded: names of those with codes.
            suffix: how the stored tensor of such a matrix is named, for a message.

        Raises:
            CheckpointError: none has codes.
        """
        if not coded:
            raise CheckpointError(
                f"{inner.folder}: config.json has {KEY} with quant_method {method!r}, but no "
                f"tensor is named {suffix}; remove {KEY} if the weights are floating-point ones"
            )
        config = {key: value for key, value in inner.config.items() if key != KEY}
        super().__init__(inner.folder, config, inner.generation_config, infos, inner.fingerprint)
        self.method, self.coded, self.notes = method, coded, inner.notes
        self._inner = inner

    def tensor(
        self, name: str, rows: tuple[int, int] | None = None, *, flat: bool = False
    ) -> npt.NDArray[np.float32]:
        """Read a tensor as `Checkpoint.tensor` does; packed matrices are dequantised."""
        codes = self.codes(name)
        if codes is None:
            return self._inner.tensor(name, rows, flat=flat)
        return codes.rows(slice(*(rows or (0, len(codes.codes))))).dequantise()
