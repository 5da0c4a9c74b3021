"""Inputs of a run on a GPU beside weights and cache: tokens, positions, slots, rotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgetok.kernels_gpu.device import Device, Staging
from edgetok.kernels_gpu.jit import PLANES, plane_stride
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.gpu.cache_memory import GpuCache

if TYPE_CHECKING:
    import torch


class Inputs:
    """Arrays for a run of T tokens, sent to the device in one copy.

    Attributes:
        tokens, positions: int32 [T].
        slots: int32 [rows, T], see `Run`.
        used: int32 [rows].
        query_row: int32 [1].
        ropes: for each rope cos and sin, float32 [T, R / 2].
        hidden: float32 [T, 8, plane_stride(hidden_size)], what earlier layers left, if they run
            elsewhere.
    """

    def __init__(
        self, device: Device, spec: DecoderSpec, rows: int, tokens: int, *, hidden: bool = False
    ) -> None:
        """Lay out arrays for so many tokens."""
        self.count = tokens
        self._spec = spec
        halves = [rope.rotary_dim // 2 for rope in spec.ropes]
        sizes = (tokens, tokens, rows * tokens, rows, 1)
        self._floats = sum(sizes)
        stride = plane_stride(spec.hidden_size)
        planes = tokens * PLANES * stride if hidden else 0
        count = self._floats + 2 * tokens * sum(halves) + planes
        self._staging: Staging = device.staging(count)
        ends = np.cumsum(sizes).tolist()
        self.tokens, self.positions, slots, self.used, self.query_row = (
            self._staging.tensor[end - size : end] for end, size in zip(ends, sizes, strict=True)
        )
        self.slots = slots.view(rows, tokens)
        self.ropes, at = [], self._floats
        for half in halves:
            cos = self._staging.floats(at, tokens, half)
            sin = self._staging.floats(at + tokens * half, tokens, half)
            self.ropes.append((cos, sin))
            at += 2 * tokens * half
        self.hidden: torch.Tensor | None = None
        if hidden:
            self.hidden = self._staging.floats(at, tokens, PLANES * stride)
            self.hidden = self.hidden.view(tokens, PLANES, stride)

    def send(
        self,
        cache: GpuCache,
        ids: npt.NDArray[np.int32],
        hidden: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Fill in the next `ids` [T] of a cache, what is `hidden` [T, size], and begin the copy."""
        cache.begin(self.count)
        run = cache.memory.run
        positions = np.arange(run.position, run.position + self.count)
        row = np.array([run.query_row], np.int32)
        parts = [ids, positions.astype(np.int32), run.slots.ravel(), run.used, row]
        floats, at = self._staging.host.view(np.float32), self._floats
        self._staging.host[:at] = np.concatenate(parts)
        for frequencies, rope in zip(cache.frequencies, self._spec.ropes, strict=True):
            angles = np.outer(positions, frequencies)
            for part in (np.cos(angles), np.sin(angles)):
                floats[at : at + part.size] = (part * rope.attention_factor).ravel()
                at += part.size
        if hidden is not None:
            padded = floats[at:].reshape(self.count, PLANES, -1)
            for plane in range(PLANES):
                columns = hidden[:, plane::PLANES]
                padded[:, plane, : columns.shape[1]] = columns
        self._staging.send()
