"""Read the weights of a written artefact as float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantised import Quantised
from edgetok.converter.write.data_file import DATA_FILE, Layout, TensorFormat
from edgetok.converter.write.pack_codes import SUFFIXES, unpack_linear
from edgetok.formats.layout import TABLE, TABLE_LEVELS, linear_shapes
from edgetok.models.spec import DecoderSpec

Floats = npt.NDArray[np.float32]

_PIECE_WEIGHTS = 1 << 20  # small enough for caches


class WrittenWeights:
    """Canonical tensors out of `model.onnx.data`, dequantised.

    Attributes:
        formats: formats of each matrix.
    """

    def __init__(
        self, artefact: Path, spec: DecoderSpec, formats: Mapping[str, TensorFormat], layout: Layout
    ) -> None:
        self._path = artefact / DATA_FILE
        self._spec = spec
        self._shapes = linear_shapes(spec)
        self.formats = formats
        self._layout = layout

    def tensor(self, name: str) -> Floats:
        """Return one canonical tensor, such as `layers.0.q_proj.weight`."""
        module, _, suffix = name.rpartition(".")
        if suffix == "weight" and (module in self.formats or module == "embed_tokens"):
            shape = self._shapes["lm_head" if module not in self._shapes else module]
            weight, first = np.empty((shape.N, shape.K), np.float32), 0
            for piece in self.pieces(name):
                weight[first : first + len(piece)] = piece
                first += len(piece)
            return weight
        slot = self._layout.tensors[name]
        return self._read(name, 0, slot.shape[0]).astype(np.float32)

    def pieces(self, name: str) -> Iterator[Floats]:
        """Yield a matrix, some rows at a time. A tied embedding is the output head."""
        module = self.stored_module(name)
        form, shape = self.formats[module], self._shapes[module]
        step = max(1, _PIECE_WEIGHTS // shape.K)
        for first in range(0, shape.N, step):
            end = min(first + step, shape.N)
            if form.quantised:
                yield self._rows(module, first, end).dequantise()
            else:
                yield self._read(module + ".weight", first, end).astype(np.float32)

    def stored_module(self, name: str) -> str:
        """Return the module whose bytes hold a tensor: those of a tied embedding are the head's."""
        module = name.rpartition(".")[0]
        return "lm_head" if module == "embed_tokens" and self._spec.tied else module

    def quantised(self, module: str) -> Quantised | None:
        """Codes, scales and zero points of a whole matrix; None where it has none."""
        if module not in self.formats or not self.formats[module].quantised:
            return None
        return self._rows(module, 0, self._shapes[module].N)

    def _rows(self, module: str, first: int, end: int) -> Quantised:
        form, rows = self.formats[module], (first, end)
        parts = {
            suffix: self._read(module + suffix, *((0, TABLE_LEVELS) if suffix == TABLE else rows))
            for suffix in SUFFIXES
            if module + suffix in self._layout.tensors
        }
        return unpack_linear(parts, form, self._shapes[module].K)

    def _read(self, name: str, first: int, end: int) -> npt.NDArray[Any]:
        slot = self._layout.tensors[name]
        row = slot.nbytes // slot.shape[0]
        values = np.fromfile(
            self._path,
            np.dtype(slot.dtype),
            (end - first) * row // np.dtype(slot.dtype).itemsize,
            offset=slot.offset + first * row,
        )
        return values.reshape(end - first, *slot.shape[1:])
