"""Keys and values as slots store them, read and written outside the kernels that attend.

For choosing slots and rotating keys; layout: `kv_append.py`. Values of 4 and 8 bits are given as
they are stored, rotated, which changes no length; keys are rotated back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl

from edgetok.kernels_gpu.array import DeviceArray
from edgetok.kernels_gpu.hadamard import hadamard
from edgetok.kernels_gpu.jit import jit, launch, next_power
from edgetok.kernels_gpu.kv_append import (
    KINDS,
    load_codes,
    load_scales,
    padded_head_dim,
    rotation_log,
    store_slots,
)

Places = npt.NDArray[np.int64]
HeadConstants = tuple[torch.Tensor, torch.Tensor]  # centre and factor of a head, [D] each
_ROWS = 16


@jit
def _read_slots(  # type: ignore[no-untyped-def]
    memory, scales, places, out, count, D, width,
    KV_BITS: tl.constexpr, ROTATION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, dims = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)[None, :]
    live = row < count
    at = tl.load(places + row, mask=live, other=0)
    both = live[:, None] & (dims < D)
    v = load_codes(memory, at[:, None], dims, width, both, KV_BITS).to(tl.float32)
    if KV_BITS != 16:
        scale, base = load_scales(scales, at, live, KV_BITS)
        v = tl.where(both, v * scale[:, None] + base[:, None], 0.0)
    v = hadamard(v, ROTATION, ROWS, BLOCK)
    tl.store(out + row[:, None].to(tl.int64) * D + dims, v, mask=both)


@jit
def _write_slots(  # type: ignore[no-untyped-def]
    x, places, memory, scales, count, D, width,
    KV_BITS: tl.constexpr, ROTATION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, dims = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)[None, :]
    live = row < count
    both = live[:, None] & (dims < D)
    v = tl.load(x + row[:, None].to(tl.int64) * D + dims, mask=both, other=0)
    v = hadamard(v, ROTATION, ROWS, BLOCK)
    at = tl.load(places + row, mask=live, other=0)
    store_slots(memory, scales, at, live, v, D, width, KV_BITS, ROWS, BLOCK)


class StoredRows:
    """The keys, or the values, of many slots on the device."""

    def __init__(
        self, rows: torch.Tensor, scales: torch.Tensor, head_dim: int, *, keys: bool
    ) -> None:
        """View memory of slots, see `kv_append.Slots`."""
        self.rows, self.scales, self._dims = rows, scales, head_dim
        bits = next(bits for bits, kind in KINDS.items() if kind == rows.dtype)
        width = padded_head_dim(head_dim)
        self._sizes = (head_dim, width)
        self._constants = {
            "KV_BITS": bits,
            "ROTATION": rotation_log(head_dim, bits) if keys else 0,
            "ROWS": _ROWS,
            "BLOCK": next_power(width),
        }

    def read(self, at: Places, constants: HeadConstants | None = None) -> DeviceArray:
        """Return rows as float32 [n, D]; keys of one head as they were before its constants."""
        where = self._places(at)
        out = torch.empty((len(where), self._dims), device=self.rows.device)
        self._launch(_read_slots, self.rows, self.scales, where, out)
        return DeviceArray(out if constants is None else out / constants[1] + constants[0])

    def write(self, at: Places, x: DeviceArray, constants: HeadConstants | None = None) -> None:
        """Store x [n, D] as `kv_append` does."""
        tensor = x.tensor
        if constants is not None:
            tensor = (tensor - constants[0]) * constants[1]
        self._launch(_write_slots, tensor.contiguous(), self._places(at), self.rows, self.scales)

    def _launch(self, kernel: Any, *tensors: torch.Tensor) -> None:
        count = len(tensors[2 if kernel is _read_slots else 1])
        grid = (-(-count // _ROWS),)
        launch(kernel, grid, *tensors, count, *self._sizes, **self._constants)

    def _places(self, at: Places) -> torch.Tensor:
        return places_on(self.rows, at)


def places_on(tensor: torch.Tensor, at: Places) -> torch.Tensor:
    """Return places (int64) on the device of a tensor, to index it with."""
    return torch.from_numpy(np.ascontiguousarray(at)).to(tensor.device)


def fill(tensor: torch.Tensor, source: npt.NDArray[Any]) -> None:
    """Copy the host's bytes, or numbers of the same type, into a contiguous tensor."""
    tensor.copy_(torch.from_numpy(np.array(source)).view(tensor.dtype).view(tensor.shape))


def bytes_of(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Return a copy of a tensor's bytes on the host."""
    return np.asarray(tensor.cpu().numpy()).reshape(-1).view(np.uint8)
