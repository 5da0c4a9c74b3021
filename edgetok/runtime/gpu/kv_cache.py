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

from edgetok.cache.protocol import KVCache
from edgetok.cache.windows import can_cut, check_cut, ring_slots
from edgetok.errors import OptionError, SessionError
from edgetok.kernels_gpu.array import DeviceArray
from edgetok.kernels_gpu.device import Device
from edgetok.kernels_gpu.kv_append import EMPTY, KINDS, Slots, padded_head_dim, row_entries
from edgetok.kernels_gpu.stored import StoredRows, bytes_of, fill
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.backend import Logits

if TYPE_CHECKING:
    import torch

    from edgetok.runtime.cpu.kv_cache import CpuKVCache
    from edgetok.runtime.gpu.inputs import Inputs

_MOST_BYTES = 1 << 46
_SLOT_TILE = 64
Turn = Callable[[int, DeviceArray, npt.NDArray[np.int64]], DeviceArray]


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
        before: of layers that the CPU computes, or None.
        steps: captured decode steps; they hold addresses of this cache and of `one`.
        run: what `begin` said last.
    """

    spec: DecoderSpec
    block_tokens: int
    logits: Logits
    frequencies: list[npt.NDArray[np.float64]]
    layers: list[Slots]
    rows: list[tuple[int, int]]
    used: torch.Tensor
    ordered: list[bool]
    before: CpuKVCache | None
    one: Inputs | None
    steps: dict[bool, Callable[[], None]]

    run: Run

    def begin(self, tokens: int) -> int:
        """Name the slots of the next tokens, at most `block_tokens`, in `run`.

        Returns:
            The first one's position.
        """

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
        windows_only: bool = False,
        before: CpuKVCache | None = None,
    ) -> None:
        """Allocate every slot.

        Layers `before` these have a cache of their own, which goes wherever this one does.

        With `windows_only` layers that see every token are left to another cache; nothing is
        counted against `capacity_tokens`, which only bounds the rings.

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
        self.before = before
        if before is not None:
            self.block_tokens = min(self.block_tokens, before.block_tokens)
        self._shift = 0  # tokens seen less the position of the next one
        sizes = ring_slots(spec, capacity_tokens, self.block_tokens, _SLOT_TILE)
        if windows_only:
            sizes.pop(0, None)
        windows = list(sizes)
        here = cache_bytes(spec, sizes, kv_bits)
        if here >= _MOST_BYTES:
            raise OptionError(
                f"a cache of {capacity_tokens:,} tokens needs {here:,} bytes, more than can be "
                "addressed; give a smaller --context"
            )
        device.require(here, f"a cache of {capacity_tokens:,} tokens", "give a smaller --context")
        self.nbytes = here + (0 if before is None else before.nbytes)
        self.used = device.zeros((len(windows),), "int32")
        self.rings: list[Ring] = []
        for window in windows:
            positions = device.zeros((sizes[window],), "int32")
            positions.fill_(EMPTY)
            self.rings.append(Ring(window, sizes[window], 0, positions))
        ring_of = {
            layer: windows.index(what.window)
            for layer, what in enumerate(spec.layers)
            if what.window in sizes
        }
        self.rows = [(ring, ring + 1) for ring in ring_of.values()]
        self.ordered = [layer.window == 0 for layer in spec.layers]
        with memory_for(f"a cache of {capacity_tokens:,} tokens ({here:,} bytes)"):
            self._slots_of = {layer: self._slots(ring) for layer, ring in ring_of.items()}
        self.layers = list(self._slots_of.values())
        self.run = Run(0, np.zeros((0, 0), np.int32), np.zeros(0, np.int32))
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
        if self.before is not None and not self.before.truncate(length_tokens):
            return False
        for ring in self.rings:
            ring.positions.masked_fill_(ring.positions >= length_tokens - self._shift, EMPTY)
            if length_tokens == 0:
                ring.oldest = 0
        self._length_tokens = length_tokens
        if length_tokens == 0:
            self._shift = 0
        return True

    def clear(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def begin(self, tokens: int) -> int:
        """Name the slots of the next tokens. See `GpuCache`."""
        first, last = self._length_tokens, self._length_tokens + tokens
        sizes = np.array([ring.slots for ring in self.rings], np.int32).reshape(-1, 1)
        for ring in self.rings:
            ring.oldest = max(ring.oldest, last - ring.slots)
        order = np.arange(first, last, dtype=np.int32)
        self.run = Run(first - self._shift, order % sizes, np.minimum(last, sizes[:, 0]))
        return self.run.position

    def advance(self, tokens: int) -> None:
        """Count tokens that were computed."""
        self._length_tokens += tokens

    # For a cache that leaves its windows to this one

    @property
    def oldest(self) -> list[int]:
        """The first token that each ring still holds."""
        return [ring.oldest for ring in self.rings]

    @property
    def memory(self) -> npt.NDArray[np.uint8]:
        """A copy of all slots' bytes."""
        return np.concatenate([np.zeros(0, np.uint8), *map(bytes_of, self._tensors())])

    def restore(
        self,
        memory: npt.NDArray[np.uint8],
        length: int,
        shift: int,
        oldest: npt.NDArray[np.int64],
    ) -> None:
        """Become what `memory` and the counters were; they were checked.

        Raises:
            SessionError: a ring holds a position that cannot be; nothing was changed.
        """
        ends = np.cumsum([tensor.nbytes for tensor in self._tensors()])
        parts = np.split(memory, ends[:-1]) if len(ends) else []
        for part in parts[: len(self.rings)]:
            found = part.view(np.int32)
            found = found[found != EMPTY]
            if found.size and (int(found.min()) < 0 or int(found.max()) >= length - shift):
                raise SessionError("the saved cache holds tokens that cannot be; it is damaged")
        for tensor, part in zip(self._tensors(), parts, strict=True):
            fill(tensor, part)
        self._length_tokens, self._shift = length, shift
        for ring, first in zip(self.rings, oldest, strict=True):
            ring.oldest = int(first)

    def shift(self, by: int, turn: Turn) -> None:
        """Lower all positions by `by`, turning keys with `turn(layer, keys [n, D], by [n])`.

        What would be before position 0 is forgotten; no window reaches that far.
        """
        for ring in self.rings:
            ring.positions.sub_(by * (ring.positions != EMPTY))
            ring.positions.masked_fill_(ring.positions < 0, EMPTY)
        for layer, slots in self._slots_of.items():
            if self.spec.layers[layer].rope < 0:
                continue
            positions = slots.positions.cpu().numpy()
            held = np.flatnonzero(positions != EMPTY)
            keys = StoredRows(slots.keys, slots.key_scales, self.spec.head_dim, keys=True)
            for head in range(slots.kv_heads):
                at = held + head * slots.span
                keys.write(at, turn(layer, keys.read(at), np.full(len(at), -by)))
        self._shift += by

    def _tensors(self) -> list[torch.Tensor]:
        """All that it holds, positions first."""
        return [
            *(ring.positions for ring in self.rings),
            *(tensor for slots in self.layers for tensor in stored(slots)),
        ]

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


def stored(slots: Slots) -> tuple[torch.Tensor, ...]:
    """Keys, values and their scales."""
    return slots.keys, slots.values, slots.key_scales, slots.value_scales


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
    width = row_entries(spec.head_dim, kv_bits)
    kind = str(KINDS[kv_bits]).removeprefix("torch.")
    scales = 0 if kv_bits == 16 else rows
    return {
        "bits": kv_bits,
        "keys": device.zeros((rows, width), kind),
        "values": device.zeros((rows, width), kind),
        "key_scales": device.zeros((scales,), "float32"),
        "value_scales": device.zeros((scales,), "float32"),
    }


def slot_bytes(spec: DecoderSpec, kv_bits: int) -> int:
    """Bytes of one slot's key, value and scales."""
    return 2 * (padded_head_dim(spec.head_dim) * kv_bits // 8 + (0 if kv_bits == 16 else 4))


def cache_bytes(spec: DecoderSpec, slots: dict[int, int], kv_bits: int) -> int:
    """Bytes of all layers, in Python integers; `slots` by window."""
    held = [slots[layer.window] for layer in spec.layers if layer.window in slots]
    rows, heads = sum(held) * spec.num_kv_heads, len(held) * spec.num_kv_heads
    return rows * slot_bytes(spec, kv_bits) + 4 * (sum(slots.values()) + len(slots) + heads)
