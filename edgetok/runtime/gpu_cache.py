"""The GPU backend's KV cache: slots on the device, in the layout of `kernels_gpu/kv_append.py`.

As on the CPU, layers that look equally far back keep the same tokens in the same slots: one for
every token, or a ring of the window and one prefill block. All bytes are allocated with the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgetok.errors import OptionError
from edgetok.kernels_gpu.device import Device
from edgetok.kernels_gpu.kv_append import EMPTY, Slots, padded_head_dim
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.rings import can_cut, check_cut, ring_slots

if TYPE_CHECKING:
    import torch

_MOST_BYTES = 1 << 46
_SLOT_TILE = 64


@dataclass(slots=True)
class Ring:
    """The slots of all layers that look `window` tokens back (0: all).

    Position p is in slot p % slots; those before `oldest` were overwritten. `ordered` while slot i
    holds position i.
    """

    window: int
    slots: int
    oldest: int
    positions: torch.Tensor

    @property
    def ordered(self) -> bool:
        """Whether the ring never wraps."""
        return self.window == 0


class GpuKVCache:
    """See `KVCache`. Made by `GpuBackend.new_cache`."""

    def __init__(
        self,
        spec: DecoderSpec,
        device: Device,
        *,
        capacity_tokens: int,
        kv_bits: int,
        block_tokens: int,
    ) -> None:
        """Allocate every slot.

        Raises:
            OptionError: a number is out of range, or there is not memory enough.
        """
        if type(capacity_tokens) is not int or not 1 <= capacity_tokens < EMPTY:
            raise OptionError(
                f"a cache of {capacity_tokens!r} tokens, expected a whole number from 1 up"
            )
        self.spec, self.device, self.kv_bits = spec, device, kv_bits
        self._capacity_tokens = capacity_tokens
        self._length_tokens = 0
        self.block_tokens = min(block_tokens, capacity_tokens)
        sizes = ring_slots(spec, capacity_tokens, self.block_tokens, _SLOT_TILE)
        windows = list(sizes)
        self.nbytes = cache_bytes(spec, sizes, kv_bits)
        if self.nbytes >= _MOST_BYTES:
            raise OptionError(
                f"a cache of {capacity_tokens:,} tokens needs {self.nbytes:,} bytes, more than can "
                "be addressed; give a smaller --context"
            )
        device.require(
            self.nbytes, f"a cache of {capacity_tokens:,} tokens", "give a smaller --context"
        )
        self.used = device.zeros((len(windows),), "int32")
        self.rings: list[Ring] = []
        for window in windows:
            positions = device.zeros((sizes[window],), "int32")
            positions.fill_(EMPTY)
            self.rings.append(Ring(window, sizes[window], 0, positions))
        self.ring_of = [windows.index(layer.window) for layer in spec.layers]
        try:
            self.layers = [self._slots(index) for index in self.ring_of]
        except RuntimeError as error:  # torch's for memory, also where another process was faster
            raise OptionError(
                f"no memory for a cache of {capacity_tokens:,} tokens ({self.nbytes:,} bytes); "
                "give a smaller --context"
            ) from error
        self.logits = np.empty(spec.vocab_size, np.float32)
        self.frequencies = [inv_freq(rope, capacity_tokens) for rope in spec.ropes]
        # Captured decode steps; kept here since they hold this cache's addresses.
        self.steps: dict[bool, Callable[[], None]] = {}

    @property
    def length_tokens(self) -> int:
        """Tokens seen so far: the position of the next one."""
        return self._length_tokens

    @property
    def capacity_tokens(self) -> int:
        """How many tokens can be seen."""
        return self._capacity_tokens

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from position `length_tokens` on.

        Returns:
            False, with nothing changed, where a ring no longer holds tokens that the next one sees.

        Raises:
            OptionError: the length is negative or beyond the tokens seen.
        """
        check_cut(length_tokens, self._length_tokens)
        if not can_cut(self.rings, length_tokens):
            return False
        for ring in self.rings:
            ring.positions.masked_fill_(ring.positions >= length_tokens, EMPTY)
            if length_tokens == 0:
                ring.oldest = 0
        self._length_tokens = length_tokens
        return True

    def clear(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def next_slots(self, tokens: int) -> list[tuple[npt.NDArray[np.int32], int]]:
        """For each ring the slots of the next `tokens` tokens, and how many will be in use.

        `tokens` is at most `block_tokens`.
        """
        first, last = self._length_tokens, self._length_tokens + tokens
        positions = np.arange(first, last, dtype=np.int32)
        made = []
        for ring in self.rings:
            ring.oldest = max(ring.oldest, last - ring.slots)
            made.append((positions % np.int32(ring.slots), min(last, ring.slots)))
        return made

    def advance(self, tokens: int) -> None:
        """Count tokens that were computed."""
        self._length_tokens += tokens

    def _slots(self, index: int) -> Slots:
        ring, spec, device = self.rings[index], self.spec, self.device
        KH, width = spec.num_kv_heads, padded_head_dim(spec.head_dim)
        kind = "int8" if self.kv_bits == 8 else "float16"
        scales = (KH, ring.slots) if self.kv_bits == 8 else (0, 0)
        return Slots(
            bits=self.kv_bits,
            head_dim=spec.head_dim,
            keys=device.zeros((KH, ring.slots, width), kind),
            values=device.zeros((KH, ring.slots, width), kind),
            key_scales=device.zeros(scales, "float32"),
            value_scales=device.zeros(scales, "float32"),
            positions=ring.positions,
            used=self.used[index : index + 1],
        )


def cache_bytes(spec: DecoderSpec, slots: dict[int, int], kv_bits: int) -> int:
    """Bytes of all layers, in Python integers; `slots` by window."""
    slot = 2 * (padded_head_dim(spec.head_dim) * kv_bits // 8 + (4 if kv_bits == 8 else 0))
    keys = sum(slots[layer.window] for layer in spec.layers) * spec.num_kv_heads * slot
    return keys + 4 * sum(slots.values()) + 4 * len(slots)
