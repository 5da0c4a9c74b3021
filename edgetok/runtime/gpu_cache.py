"""The GPU backend's KV cache: slots on the device, in the layout of `kernels_gpu/kv_append.py`.

As on the CPU, layers that look equally far back keep the same tokens in the same slots: one for
every token, or a ring of the window and one prefill block. All bytes are allocated with the cache.
What a run has to be told of a cache is a `Run`; a cache that forgets is told in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgetok.errors import OptionError
from edgetok.kernels_gpu.device import Device
from edgetok.kernels_gpu.kv_append import EMPTY, Slots, padded_head_dim
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.backend import KVCache, Logits
from edgetok.runtime.rings import can_cut, check_cut, ring_slots

if TYPE_CHECKING:
    import torch

    from edgetok.runtime.gpu_inputs import Inputs

_MOST_BYTES = 1 << 46
_SLOT_TILE = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Where the next tokens go.

    Attributes:
        position: of the first one.
        slots: int32 [rows, T], counted in a head's range; rows as in `GpuCache.rows`.
        used: int32 [rows], how many slots will then be in use.
        query_row: of the ring of queries, for the first token.
    """

    position: int
    slots: npt.NDArray[np.int32]
    used: npt.NDArray[np.int32]
    query_row: int = 0


class GpuCache(KVCache, Protocol):
    """What the GPU backend asks of a cache.

    Attributes:
        spec: of the layers that it holds.
        block_tokens: most tokens of one run.
        logits: float32 [vocab_size], of the last run.
        frequencies: radians a position, of each rope.
        layers: the slots of each layer.
        rows: first and last and one of each layer's rows of `Run.slots`: one for all heads, or one
            for each.
        used: int32 [rows] on the device; runs copy `Run.used` to it.
        ordered: of each layer, whether slot i holds position i.
        one: inputs of a single token, made by the backend.
        steps: captured decode steps; they hold addresses of this cache and of `one`.
    """

    spec: DecoderSpec
    block_tokens: int
    logits: Logits
    frequencies: list[npt.NDArray[np.float64]]
    layers: list[Slots]
    rows: list[tuple[int, int]]
    used: torch.Tensor
    ordered: list[bool]
    one: Inputs | None
    steps: dict[bool, Callable[[], None]]

    def begin(self, tokens: int) -> Run:
        """Name the slots of the next tokens, at most `block_tokens`."""

    def advance(self, tokens: int) -> None:
        """Count tokens that were computed."""


@dataclass(slots=True)
class Ring:
    """The slots of all layers that look `window` tokens back (0: all).

    Position p is in slot p % slots; those before `oldest` were overwritten.
    """

    window: int
    slots: int
    oldest: int
    positions: torch.Tensor


class GpuKVCache:
    """See `GpuCache`. Made by `GpuBackend.new_cache`."""

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
        ring_of = [windows.index(layer.window) for layer in spec.layers]
        self.rows = [(ring, ring + 1) for ring in ring_of]
        self.ordered = [layer.window == 0 for layer in spec.layers]
        with memory_for(f"a cache of {capacity_tokens:,} tokens ({self.nbytes:,} bytes)"):
            self.layers = [self._slots(index) for index in ring_of]
        self.logits: Logits = np.empty(spec.vocab_size, np.float32)
        self.frequencies = [inv_freq(rope, capacity_tokens) for rope in spec.ropes]
        self.one: Inputs | None = None
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

    def begin(self, tokens: int) -> Run:
        """Name the slots of the next tokens, at most `block_tokens`."""
        first, last = self._length_tokens, self._length_tokens + tokens
        sizes = np.array([[ring.slots] for ring in self.rings], np.int32)
        for ring in self.rings:
            ring.oldest = max(ring.oldest, last - ring.slots)
        order = np.arange(first, last, dtype=np.int32)
        return Run(first, order % sizes, np.minimum(last, sizes[:, 0]))

    def advance(self, tokens: int) -> None:
        """Count tokens that were computed."""
        self._length_tokens += tokens

    def _slots(self, index: int) -> Slots:
        ring, spec, device = self.rings[index], self.spec, self.device
        starts = np.arange(spec.num_kv_heads, dtype=np.int32) * np.int32(ring.slots)
        return Slots(
            head_dim=spec.head_dim,
            positions=ring.positions,
            starts=device.copy(starts),
            used=self.used[index : index + 1],
            span=ring.slots,
            **slot_memory(device, spec, spec.num_kv_heads * ring.slots, self.kv_bits),
        )


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Around allocations on the device.

    Raises:
        OptionError: there is no memory for `what`.
    """
    try:
        yield
    except RuntimeError as error:  # torch's for memory, also where another process was faster
        raise OptionError(f"no memory for {what}; give a smaller --context") from error


def slot_memory(device: Device, spec: DecoderSpec, rows: int, kv_bits: int) -> dict[str, Any]:
    """Keys, values and scales of so many slots, zeroed, and their bits: arguments of `Slots`."""
    width = padded_head_dim(spec.head_dim)
    kind = "int8" if kv_bits == 8 else "float16"
    scales = rows if kv_bits == 8 else 0
    return {
        "bits": kv_bits,
        "keys": device.zeros((rows, width), kind),
        "values": device.zeros((rows, width), kind),
        "key_scales": device.zeros((scales,), "float32"),
        "value_scales": device.zeros((scales,), "float32"),
    }


def slot_bytes(spec: DecoderSpec, kv_bits: int) -> int:
    """Bytes of one slot's key, value and scales."""
    return 2 * (padded_head_dim(spec.head_dim) * kv_bits // 8 + (4 if kv_bits == 8 else 0))


def cache_bytes(spec: DecoderSpec, slots: dict[int, int], kv_bits: int) -> int:
    """Bytes of all layers, in Python integers; `slots` by window."""
    rows = sum(slots[layer.window] for layer in spec.layers) * spec.num_kv_heads
    heads = spec.num_layers * spec.num_kv_heads
    return rows * slot_bytes(spec, kv_bits) + 4 * (sum(slots.values()) + len(slots) + heads)
