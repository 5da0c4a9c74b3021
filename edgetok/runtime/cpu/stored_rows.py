"""Keys and values as slots store them, read and written as float32 with NumPy.

Kernels do this for the tokens of a run; here it is for choosing, turning and moving slots.
Layout: `attention/launch.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.cache.key_constants import KeyConstants
from edgetok.kernels_cpu.attention.launch import (
    KEY_TILE,
    REST_KEY,
    VALUE_TILE,
    is_rotated,
    key_bits,
    key_bytes,
    padded_head_dim,
    value_bits,
    value_bytes,
)
from edgetok.kernels_cpu.reference import SMALLEST_ABSMAX, hadamard, quantise_slots

__all__ = ["ALIGNMENT_BYTES", "Bytes", "Floats", "HeadRest", "Keys", "Places", "Values"]

ALIGNMENT_BYTES = 64  # of each array in a cache

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


class _Rows:
    """Keys or values of many slots, those of `tile` slots interleaved `unit` bytes at a time.

    At 4 bits, byte j of `half` bytes holds dims j and j + half of 2 * half. 6 bits: `launch.py`.
    """

    def __init__(
        self,
        memory: Bytes,
        scales: Floats | None,
        head_dim: int,
        bits: int,
        row: int,
        tile: int,
        unit: int,
        half: int,
    ) -> None:
        self._dims, self._bits, self._scales = head_dim, bits, scales
        self._tile, self._half, self._row = tile, half, row
        self._tiles = memory.reshape(-1, self._row // unit, tile, unit)

    def _read(self, at: Places, zero: int) -> Floats:
        """Return float32 [n, D]; at 6 and 8 bits codes count from `zero`."""
        rows = self._rows(at)
        if self._scales is None:
            wide = rows.view(np.float16 if self._bits == 16 else np.float32)
            return wide[:, : self._dims].astype(np.float32)
        if self._bits in (6, 8):
            wide = _codes_6(rows) if self._bits == 6 else rows
            codes = wide[:, : self._dims].astype(np.float32) - np.float32(zero)
            return np.asarray(codes * self._scales[at, None])
        words = self._scales.view(np.uint32)[at, None]
        scale, base = (words << 16).view(np.float32), (words & 0xFFFF0000).view(np.float32)
        pairs = rows.reshape(len(at), self._row // self._half, self._half)
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=-1)
        codes = codes.reshape(len(at), 2 * self._row)[:, : self._dims]
        return np.asarray(codes.astype(np.float32) * scale + base)

    def _write(self, at: Places, x: Floats, zero: int) -> None:
        """Store x [n, D] as `kv_append` does."""
        padded = 8 * self._row // self._bits
        rows: npt.NDArray[np.generic]
        if self._scales is None:
            dtype = np.float16 if self._bits == 16 else np.float32
            wide = np.zeros((len(at), padded), dtype)
            limit = float(np.finfo(dtype).max)
            wide[:, : self._dims] = np.clip(x, -limit, limit)
            rows = wide.view(np.uint8)
        elif self._bits in (6, 8):
            most = np.float32(31.0 if self._bits == 6 else 127.0)
            largest = np.abs(x).max(axis=1, initial=0.0)
            largest = np.where(largest >= SMALLEST_ABSMAX, largest, np.float32(0.0))
            inverse = np.zeros_like(largest)
            np.divide(most, largest, out=inverse, where=largest > 0)
            rows = np.full((len(at), padded), zero, np.uint8)
            codes = np.rint(x * inverse[:, None]).astype(np.int16) + zero
            rows[:, : self._dims] = codes.astype(np.uint8)
            rows = _rows_6(rows) if self._bits == 6 else rows
            self._scales[at] = largest * np.float32(1.0 / most)
        else:
            few, scale, base = quantise_slots(x)
            codes4 = np.zeros((len(at), padded), np.uint8)
            codes4[:, : self._dims] = few
            pairs = codes4.reshape(len(at), padded // (2 * self._half), 2, self._half)
            rows = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(at), self._row)
            words = base.view(np.uint32) | scale.view(np.uint32) >> 16
            self._scales.view(np.uint32)[at] = words[:, 0]
        self._store(at, rows)

    def _rows(self, at: Places) -> npt.NDArray[Any]:
        """Bytes [n, row] of slots, taken out from among the others of their tile."""
        rows = np.ascontiguousarray(self._tiles[at // self._tile, :, at % self._tile])
        return rows.reshape(len(at), self._row)

    def _store(self, at: Places, rows: npt.NDArray[Any]) -> None:
        unit = self._tiles.shape[3]
        rows = rows.reshape(len(at), self._row // unit, unit)
        self._tiles[at // self._tile, :, at % self._tile] = rows


class Keys(_Rows):
    """Keys of many slots, as rope rotates them to their positions."""

    def __init__(
        self,
        memory: Bytes,
        scales: Floats | None,
        head_dim: int,
        kv_bits: int,
        constants: KeyConstants | None = None,
    ) -> None:
        """View memory: uint8 [slots * row_bytes], and float32 [slots] at 4 to 8 bits.

        Args:
            memory: see above.
            scales: likewise.
            head_dim: D.
            kv_bits: bits of keys.
            constants: constants of this head.
        """
        bits, row = key_bits(kv_bits), key_bytes(head_dim, kv_bits)
        unit = 4 if bits <= 8 else bits // 8
        super().__init__(memory, scales, head_dim, bits, row, KEY_TILE, unit, 4)
        self._zero = 32 if bits == 6 else 128
        self._constants = constants

    def read(self, at: Places) -> Floats:
        """Keys as float32 [n, D]."""
        return plain_keys(self._read(at, self._zero), self._bits, self._constants)

    def write(self, at: Places, keys: Floats) -> None:
        """Store keys [n, D] as `kv_append` does."""
        self._write(at, stored_keys(keys, self._bits, self._constants), self._zero)


def plain_keys(keys: Floats, bits: int, constants: KeyConstants | None) -> Floats:
    """Keys [n, D] of one head as rope left them, of keys as slots of so many bits hold them."""
    if not is_rotated(bits):
        return keys
    keys = hadamard(keys)
    return keys if constants is None else constants.undo(keys)


def stored_keys(keys: Floats, bits: int, constants: KeyConstants | None) -> Floats:
    """Undo `plain_keys`."""
    if not is_rotated(bits):
        return keys
    return hadamard(keys if constants is None else constants.apply(keys))


class HeadRest:
    """See `Rest`. Layout: `attention/launch.py`."""

    def __init__(
        self, rest: Floats, head_dim: int, kv_bits: int, constants: KeyConstants | None
    ) -> None:
        """View a head's rest, float32 [rest_floats]; `constants` are those of its keys."""
        self._count, self._bits, self._constants = rest[:1], kv_bits, constants
        value = REST_KEY + padded_head_dim(head_dim, kv_bits)
        self._key, self._value = rest[REST_KEY:][:head_dim], rest[value:][:head_dim]

    def read(self) -> tuple[float, Floats, Floats]:
        """Return for how many tokens it stands, their mean key [D] and their mean value [D]."""
        key = plain_keys(self._key[None].copy(), self._bits, self._constants)[0]
        return float(self._count[0]), key, self._value.copy()

    def write(self, count: float, key: Floats, value: Floats) -> None:
        """Set them."""
        self._count[0], self._value[:] = count, value
        self._key[:] = stored_keys(key[None], self._bits, self._constants)[0]


class Values(_Rows):
    """Values of many slots; at 4 to 8 bits as `hadamard` rotates them, which keeps lengths."""

    def __init__(self, memory: Bytes, scales: Floats | None, head_dim: int, kv_bits: int) -> None:
        """View memory: uint8 [slots * row_bytes], and float32 [slots] at 4 to 8 bits."""
        row = value_bytes(head_dim, kv_bits)
        tile, unit = (VALUE_TILE, 1) if kv_bits <= 8 else (1, row)
        super().__init__(memory, scales, head_dim, value_bits(kv_bits), row, tile, unit, 16)
        if kv_bits == 8:
            self._tiles = self._tiles.view(np.int8)

    def read(self, at: Places) -> Floats:
        """Values as float32 [n, D]."""
        return self._read(at, 0)

    def write(self, at: Places, values: Floats) -> None:
        """Store values [n, D] as `kv_append` does."""
        self._write(at, values, 0)


def _codes_6(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Codes [n, dims] of 6-bit keys [n, bytes]."""
    words = rows.reshape(len(rows), -1, 3, 4)
    parts = [
        (words[:, :, part // 2] >> 4 * (part % 2) & 15) << 2 | words[:, :, 2] >> 2 * part & 3
        for part in range(4)
    ]
    return np.stack(parts, axis=2).reshape(len(rows), -1)


def _rows_6(codes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The inverse of `_codes_6`."""
    parts = codes.reshape(len(codes), -1, 4, 4)
    high, low = parts >> 2, parts & 3
    words = np.stack(
        [
            high[:, :, 0] | high[:, :, 1] << 4,
            high[:, :, 2] | high[:, :, 3] << 4,
            low[:, :, 0] | low[:, :, 1] << 2 | low[:, :, 2] << 4 | low[:, :, 3] << 6,
        ],
        axis=2,
    )
    return np.asarray(words.reshape(len(codes), -1), np.uint8)
