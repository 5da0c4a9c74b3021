"""Keys and values as slots store them, read and written outside the kernels that attend.

For choosing, turning and moving slots; layout: `kv_append.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetok.kernels_gpu.array import DeviceArray

Places = npt.NDArray[np.int64]
_SMALLEST_ABSMAX = 1e-36  # as in kv_append.store_slot


class StoredRows:
    """The keys, or the values, of many slots on the device."""

    def __init__(self, rows: torch.Tensor, scales: torch.Tensor, head_dim: int) -> None:
        """View memory: [rows, width], and float32 [rows] or [0]."""
        self.rows, self.scales, self._dims = rows, scales, head_dim

    def read(self, at: Places) -> DeviceArray:
        """As float32 [n, D]."""
        where = self._places(at)
        found = self.rows[where, : self._dims].float()
        if len(self.scales):
            found *= self.scales[where, None]
        return DeviceArray(found)

    def write(self, at: Places, x: DeviceArray) -> None:
        """Store x [n, D] as `kv_append` does."""
        where, v = self._places(at), x.tensor
        if len(self.scales):
            largest = v.abs().amax(1)
            small = largest < _SMALLEST_ABSMAX
            inverse = torch.where(small, 0.0, 127.0 / torch.where(small, 1.0, largest))
            self.scales[where] = torch.where(small, 0.0, largest / 127.0)
            v = torch.round(v * inverse[:, None])
        else:
            v = v.clamp(-65504.0, 65504.0)
        self.rows[where, : self._dims] = v.to(self.rows.dtype)

    def copy(self, source: Places, to: Places) -> None:
        """Copy slots; no slot is in both lists."""
        here, there = self._places(source), self._places(to)
        for memory in (self.rows, self.scales):
            if len(memory):
                memory[there] = memory[here]

    def move(self, source: int, to: int, count: int) -> None:
        """Move a range of slots; it may overlap itself."""
        for memory in (self.rows, self.scales):
            if len(memory):
                memory[to : to + count] = memory[source : source + count].clone()

    def _places(self, at: Places) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(at)).to(self.rows.device)


def fill(tensor: torch.Tensor, source: npt.NDArray[Any]) -> None:
    """Copy the host's bytes, or numbers of the same type, into a contiguous tensor."""
    tensor.copy_(torch.from_numpy(np.array(source)).view(tensor.dtype).view(tensor.shape))


def bytes_of(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """A copy of a tensor's bytes on the host."""
    return np.asarray(tensor.cpu().numpy()).reshape(-1).view(np.uint8)
