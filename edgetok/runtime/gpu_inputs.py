"""What a run on a GPU reads besides weights and cache: tokens, positions, slots, rotations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.kernels_gpu.device import Device, Staging
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.gpu_cache import GpuCache


class Inputs:
    """Arrays for a run of T tokens, sent to the device in one copy.

    Attributes:
        tokens, positions: int32 [T].
        slots: int32 [rows, T], see `Run`.
        used: int32 [rows].
        query_row: int32 [1].
        ropes: for each rope cos and sin, float32 [T, R / 2].
    """

    def __init__(self, device: Device, spec: DecoderSpec, rows: int, tokens: int) -> None:
        """Lay out arrays for so many tokens."""
        self.count = tokens
        self._spec = spec
        halves = [rope.rotary_dim // 2 for rope in spec.ropes]
        sizes = (tokens, tokens, rows * tokens, rows, 1)
        self._floats = sum(sizes)
        count = self._floats + 2 * tokens * sum(halves)
        self._staging: Staging = device.staging(count)
        self.tokens, self.positions, slots, self.used, self.query_row, *_ = (
            self._staging.tensor.split([*sizes, count - self._floats])
        )
        self.slots = slots.view(rows, tokens)
        self.ropes, at = [], self._floats
        for half in halves:
            cos = self._staging.floats(at, tokens, half)
            sin = self._staging.floats(at + tokens * half, tokens, half)
            self.ropes.append((cos, sin))
            at += 2 * tokens * half

    def send(self, cache: GpuCache, ids: npt.NDArray[np.int32]) -> None:
        """Fill in the next `ids` [T] of a cache and begin the copy."""
        run = cache.begin(self.count)
        positions = np.arange(run.position, run.position + self.count)
        parts = [ids, positions, run.slots.ravel(), run.used, [run.query_row]]
        floats, at = self._staging.host.view(np.float32), self._floats
        self._staging.host[:at] = np.concatenate(parts)
        for frequencies, rope in zip(cache.frequencies, self._spec.ropes, strict=True):
            angles = np.outer(positions, frequencies)
            for part in (np.cos(angles), np.sin(angles)):
                floats[at : at + part.size] = (part * rope.attention_factor).ravel()
                at += part.size
        self._staging.send()
