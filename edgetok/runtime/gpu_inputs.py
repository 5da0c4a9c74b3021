"""What a run on a GPU reads besides weights and cache: tokens, positions, slots, rotations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.kernels_gpu.device import Device, Staging
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.gpu_cache import GpuKVCache


class Inputs:
    """Arrays for a run of T tokens, sent to the device in one copy.

    Attributes:
        tokens, positions: int32 [T].
        slots: for each ring int32 [T].
        used: int32 [rings].
        ropes: for each rope cos and sin, float32 [T, R / 2].
    """

    def __init__(self, device: Device, spec: DecoderSpec, rings: int, tokens: int) -> None:
        """Lay out arrays for so many tokens."""
        self.count = tokens
        self._spec = spec
        halves = [rope.rotary_dim // 2 for rope in spec.ropes]
        self._staging: Staging = device.staging(tokens * (2 + rings + 2 * sum(halves)) + rings)
        every, at = self._staging.tensor, 0
        parts = []
        for size in (tokens, tokens, *[tokens] * rings, rings):
            parts.append(every[at : at + size])
            at += size
        self.tokens, self.positions, *self.slots, self.used = parts
        self._floats = at
        self.ropes = []
        for half in halves:
            cos = self._staging.floats(at, tokens, half)
            sin = self._staging.floats(at + tokens * half, tokens, half)
            self.ropes.append((cos, sin))
            at += 2 * tokens * half

    def send(self, cache: GpuKVCache, ids: npt.NDArray[np.int32]) -> None:
        """Fill in the next `ids` [T] of a cache and begin the copy."""
        host, count, first = self._staging.host, self.count, cache.length_tokens
        positions = np.arange(first, first + count)
        host[:count] = ids
        host[count : 2 * count] = positions
        at = 2 * count
        rings = cache.next_slots(count)
        for slots, _ in rings:
            host[at : at + count] = slots
            at += count
        host[at : at + len(rings)] = [used for _, used in rings]
        floats, at = host.view(np.float32), self._floats
        for frequencies, rope in zip(cache.frequencies, self._spec.ropes, strict=True):
            angles = np.outer(positions, frequencies)
            for part in (np.cos(angles), np.sin(angles)):
                floats[at : at + part.size] = (part * rope.attention_factor).ravel()
                at += part.size
        self._staging.send()
