"""Keys and values as slots store them, read and written as float32 with NumPy.

Kernels do this for the tokens of a run; here it is for choosing, turning and moving slots.
Layout: `launch_attention.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.kernels_cpu.launch_attention import KEY_TILE, padded_head_dim

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

_SMALLEST_ABSMAX = np.float32(1e-36)


def row_bytes(head_dim: int, kv_bits: int) -> int:
    """Bytes of one key or value, without its scale."""
    return padded_head_dim(head_dim) * kv_bits // 8


def _dtype(kv_bits: int) -> type[np.floating]:
    return np.float16 if kv_bits == 16 else np.float32


class Keys:
    """Keys of many slots, those of KEY_TILE slots interleaved."""

    def __init__(self, memory: Bytes, scales: Floats | None, head_dim: int, kv_bits: int) -> None:
        """View memory: uint8 [slots * row_bytes], and float32 [slots] at 8 bits."""
        self._head_dim, self._kv_bits, self._scales = head_dim, kv_bits, scales
        self._row = row_bytes(head_dim, kv_bits)
        unit = 4 if kv_bits == 8 else kv_bits // 8
        self._tiles = memory.reshape(-1, self._row // unit, KEY_TILE, unit)

    def read(self, at: Places) -> Floats:
        """Keys as float32 [n, D]."""
        rows = np.ascontiguousarray(self._tiles[at // KEY_TILE, :, at % KEY_TILE])
        rows = rows.reshape(len(at), self._row)
        if self._scales is not None:
            codes = rows[:, : self._head_dim].astype(np.float32) - np.float32(128.0)
            return np.asarray(codes * self._scales[at, None])
        wide = rows.view(_dtype(self._kv_bits))
        return wide[:, : self._head_dim].astype(np.float32)

    def write(self, at: Places, keys: Floats) -> None:
        """Store keys [n, D] as `kv_append` does."""
        rows: Bytes
        if self._scales is not None:
            largest = np.abs(keys).max(axis=1, initial=0.0)
            largest = np.where(largest >= _SMALLEST_ABSMAX, largest, np.float32(0.0))
            inverse = np.zeros_like(largest)
            np.divide(np.float32(127.0), largest, out=inverse, where=largest > 0)
            rows = np.full((len(at), self._row), 128, np.uint8)
            rows[:, : self._head_dim] = np.rint(keys * inverse[:, None]) + 128
            self._scales[at] = largest * np.float32(1.0 / 127.0)
        else:
            dtype = _dtype(self._kv_bits)
            wide = np.zeros((len(at), padded_head_dim(self._head_dim)), dtype)
            limit = float(np.finfo(dtype).max)
            wide[:, : self._head_dim] = np.clip(keys, -limit, limit)
            rows = wide.view(np.uint8)
        unit = self._tiles.shape[3]
        self._tiles[at // KEY_TILE, :, at % KEY_TILE] = rows.reshape(len(at), -1, unit)

    def copy(self, source: Places, to: Places) -> None:
        """Copy slots; scales are their owner's."""
        self._tiles[to // KEY_TILE, :, to % KEY_TILE] = self._tiles[
            source // KEY_TILE, :, source % KEY_TILE
        ]


def read_values(memory: Bytes, scales: Floats | None, head_dim: int, kv_bits: int) -> Floats:
    """Values, uint8 [n, row_bytes], as float32 [n, D]; scales [n] at 8 bits."""
    if scales is not None:
        codes = memory.view(np.int8)[:, :head_dim].astype(np.float32)
        return np.asarray(codes * scales[:, None])
    return memory.view(_dtype(kv_bits))[:, :head_dim].astype(np.float32)
