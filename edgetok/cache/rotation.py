"""Rotate keys and queries by rotary position embeddings, outside the kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgetok.models.spec import DecoderSpec

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]


class Rotations:
    """The ropes of a decoder; a layer names one by its index, -1 for none."""

    def __init__(self, spec: DecoderSpec, frequencies: Sequence[npt.NDArray[np.float64]]) -> None:
        """Use radians a position of each rope, [rotary_dim / 2] each (`inv_freq`)."""
        self._ropes = spec.ropes
        self._frequencies = frequencies

    def frequencies(self, rope: int) -> npt.NDArray[np.float64] | None:
        """Radians a position of a rope, [rotary_dim / 2]; None for no rope."""
        return None if rope < 0 else self._frequencies[rope]

    def rotate(self, rope: int, x: Floats, positions: Positions, *, scaled: bool) -> Floats:
        """Rotate x [..., D] to positions [...], with the rope's attention factor where `scaled`."""
        if rope < 0:
            return x
        spec = self._ropes[rope]
        half = spec.rotary_dim // 2
        angles = np.asarray(positions)[..., None] * self._frequencies[rope]
        factor = spec.attention_factor if scaled else 1.0
        cos = (np.cos(angles) * factor).astype(np.float32)
        sin = (np.sin(angles) * factor).astype(np.float32)
        a, b = x[..., :half], x[..., half : 2 * half]
        return np.concatenate(
            [a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], axis=-1
        ).astype(np.float32)

    def mean(self, rope: int, positions: Positions, *, head_dim: int) -> Floats:
        """[D, D]: x @ it is x rotated to each position, with the attention factor, averaged."""
        made = np.eye(head_dim, dtype=np.float32)
        if rope < 0:
            return made
        spec = self._ropes[rope]
        angles = positions[:, None] * self._frequencies[rope]
        cos = np.cos(angles).mean(axis=0) * spec.attention_factor
        sin = np.sin(angles).mean(axis=0) * spec.attention_factor
        first = np.arange(spec.rotary_dim // 2)
        second = first + spec.rotary_dim // 2
        made[first, first] = made[second, second] = cos
        made[first, second] = sin
        made[second, first] = -sin
        return made
