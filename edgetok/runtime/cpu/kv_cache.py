"""The CPU backend's KV cache: slots in the layout of `kernels_cpu/attention/launch.py`.

All layers that look equally far back keep the same tokens in the same slots. Layers that see every
token have a slot for each; layers with a sliding window have a ring that holds the window and one
prefill block, since a block's tokens are stored before they are attended to. All bytes are one
allocation, made with the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetok.cache.windows import can_cut, check_cut, ring_slots
from edgetok.errors import OptionError, SessionError
from edgetok.kernels_cpu.attention.launch import (
    EMPTY,
    KV_BITS,
    REC_APPEND,
    REC_KEY_SCALES,
    REC_KEYS,
    REC_USED,
    RECORD_SLOTS,
    SLOT_TILE,
)
from edgetok.kernels_cpu.linear.launch import aligned_bytes
from edgetok.kernels_cpu.linear.layout import round_up
from edgetok.kernels_cpu.program.abi import PART_RECORDS, PART_SLOTS
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.stored_rows import ALIGNMENT_BYTES, Floats, Keys, Places, row_bytes

_MOST_BYTES = 1 << 46  # addresses end soon after


@dataclass(slots=True)
class _Ring:
    """The slots of all layers that look `window` tokens back (0: all).

    Position p is in slot p % slots; those before `oldest` were overwritten.
    """

    window: int
    slots: int
    oldest: int
    layers: npt.NDArray[np.intp]
    positions: npt.NDArray[np.int32]
    append: npt.NDArray[np.int32]


class CpuKVCache:
    """See `KVCache`. Made by `CpuBackend.new_cache`.

    Attributes:
        part: int64 [PART_SLOTS], what a step's table of parts says of it.
        records: of each layer and KV head, as in `attention/launch.py`.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        *,
        capacity_tokens: int,
        kv_bits: int,
        block_tokens: int,
        windows_only: bool = False,
    ) -> None:
        """Allocate every slot.

        Args:
            spec: the decoder.
            capacity_tokens: tokens that can be seen.
            kv_bits: 4, 8, 16 or 32 for each key and value.
            block_tokens: most tokens of one run.
            windows_only: leave layers that see every token to another cache; nothing is counted
                against `capacity_tokens`, which only bounds the rings.

        Raises:
            OptionError: a number is out of range, or there is not memory enough.
        """
        if type(capacity_tokens) is not int or capacity_tokens < 1:
            raise OptionError(
                f"a cache of {capacity_tokens!r} tokens, expected a whole number from 1 up"
            )
        if kv_bits not in KV_BITS:
            raise OptionError(f"kv_bits is {kv_bits!r}, expected one of {KV_BITS}")
        self._spec = spec
        self._capacity_tokens = capacity_tokens
        self._length_tokens = 0
        self._shift = 0  # tokens seen less the position of the next one
        self.kv_bits = kv_bits
        self.block_tokens = min(block_tokens, capacity_tokens)
        sizes = ring_slots(spec, capacity_tokens, self.block_tokens, SLOT_TILE)
        if windows_only:
            sizes.pop(0, None)
        total = self._layout(sizes, 0, None)
        if total >= _MOST_BYTES or capacity_tokens >= EMPTY:
            raise OptionError(
                f"a cache of {capacity_tokens:,} tokens needs {total:,} bytes, more than can be "
                "addressed; give a smaller --context"
            )
        try:
            self._memory = aligned_bytes(total)
        except MemoryError as error:
            raise OptionError(
                f"no memory for a cache of {capacity_tokens:,} tokens ({total:,} bytes); give a "
                "smaller --context"
            ) from error
        self.records = np.zeros((spec.num_layers, spec.num_kv_heads, RECORD_SLOTS), np.int64)
        self.part = np.zeros(PART_SLOTS, np.int64)
        self.part[PART_RECORDS] = self.records.ctypes.data
        self._rings: list[_Ring] = []
        self._layout(sizes, self._memory.ctypes.data, self._rings)
        self.logits = np.empty(spec.vocab_size, np.float32)
        self.frequencies: list[npt.NDArray[np.float64]] = []

    @property
    def length_tokens(self) -> int:
        """Tokens seen so far: the position of the next one."""
        return self._length_tokens

    @property
    def capacity_tokens(self) -> int:
        """How many tokens can be seen."""
        return self._capacity_tokens

    @property
    def nbytes(self) -> int:
        """Bytes allocated, all layers."""
        return int(self._memory.nbytes + self.records.nbytes)

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from position `length_tokens` on.

        Returns:
            False, with nothing changed, where a ring no longer holds tokens that the next one sees.

        Raises:
            OptionError: the length is negative or beyond the tokens seen.
        """
        check_cut(length_tokens, self._length_tokens)
        if not can_cut(self._rings, length_tokens):
            return False
        for ring in self._rings:
            ring.positions[ring.positions >= length_tokens - self._shift] = EMPTY
            if length_tokens == 0:
                ring.oldest = 0
            self.records[ring.layers, :, REC_USED] = min(length_tokens, ring.slots)
        self._length_tokens = length_tokens
        if length_tokens == 0:
            self._shift = 0
        return True

    def clear(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def serves(self, spec: DecoderSpec, kv_bits: int) -> bool:
        """Whether this cache was made for a decoder and kind of slot."""
        return self._spec is spec and self.kv_bits == kv_bits

    def begin(self, tokens: int) -> int:
        """Name the slots of the next `tokens` tokens; `tokens` is at most `block_tokens`.

        Returns:
            The first one's position.
        """
        first, last = self._length_tokens, self._length_tokens + tokens
        position = first - self._shift
        for ring in self._rings:
            if tokens == 1:
                slot = first % ring.slots
                ring.append[0] = slot
                ring.positions[slot] = position
            else:
                order = np.arange(tokens, dtype=np.int64)
                ring.append[:tokens] = (first + order) % ring.slots
                ring.positions[ring.append[:tokens]] = position + order
            ring.oldest = max(ring.oldest, last - ring.slots)
            self.records[ring.layers, :, REC_USED] = min(last, ring.slots)
        return position

    def advance(self, tokens: int) -> None:
        """Count tokens that were computed."""
        self._length_tokens += tokens

    @property
    def memory(self) -> npt.NDArray[np.uint8]:
        """All slots' bytes, as they are."""
        return self._memory

    @property
    def oldest(self) -> list[int]:
        """The first token that each ring still holds."""
        return [ring.oldest for ring in self._rings]

    def restore(
        self, memory: npt.NDArray[np.uint8], length: int, shift: int, oldest: Places
    ) -> None:
        """Become what `memory` and the counters were; they were checked.

        Raises:
            SessionError: a ring holds a position that cannot be; nothing was changed.
        """
        for ring in self._rings:
            start = ring.positions.ctypes.data - self._memory.ctypes.data
            found = memory[start : start + ring.positions.nbytes].view(np.int32)
            found = found[found != EMPTY]
            if found.size and (int(found.min()) < 0 or int(found.max()) >= length - shift):
                raise SessionError("the saved cache holds tokens that cannot be; it is damaged")
        self._memory[:] = memory
        self._length_tokens, self._shift = length, shift
        for ring, first in zip(self._rings, oldest, strict=True):
            ring.oldest = int(first)
            self.records[ring.layers, :, REC_USED] = min(length, ring.slots)

    def shift(self, by: int, turn: Callable[[int, Floats, Places], Floats]) -> None:
        """Lower all positions by `by`, turning keys with `turn(layer, keys [n, D], by [n])`.

        What would be before position 0 is forgotten; no window reaches that far.
        """
        for ring in self._rings:
            held = np.flatnonzero(ring.positions != EMPTY)
            ring.positions[held] -= by
            ring.positions[held[ring.positions[held] < 0]] = EMPTY
            held = np.flatnonzero(ring.positions != EMPTY)
            for layer in ring.layers:
                if self._spec.layers[layer].rope < 0:
                    continue
                for record in self.records[layer]:
                    keys = self._keys(record, ring.slots)
                    keys.write(held, turn(int(layer), keys.read(held), np.full(len(held), -by)))
        self._shift += by

    def _keys(self, record: npt.NDArray[np.int64], slots: int) -> Keys:
        """A head's keys."""
        dims, bits = self._spec.head_dim, self.kv_bits
        start = int(record[REC_KEYS]) - self._memory.ctypes.data
        memory = self._memory[start : start + slots * row_bytes(dims, bits)]
        if not record[REC_KEY_SCALES]:
            return Keys(memory, None, dims, bits)
        start = int(record[REC_KEY_SCALES]) - self._memory.ctypes.data
        return Keys(memory, self._memory[start : start + 4 * slots].view(np.float32), dims, bits)

    def _layout(self, sizes: dict[int, int], base: int, rings: list[_Ring] | None) -> int:
        """Place everything from `base` on; fill records and `rings` unless it is None.

        Returns:
            How many bytes there are, in Python integers.
        """
        spec = self._spec
        heads = spec.num_kv_heads
        at = base
        for window, slots in sizes.items():
            layers = [i for i, layer in enumerate(spec.layers) if layer.window == window]
            positions = at
            at = round_up(at + 4 * slots, ALIGNMENT_BYTES)
            append = at
            at = round_up(at + 4 * self.block_tokens, ALIGNMENT_BYTES)
            head_bytes = slots * row_bytes(spec.head_dim, self.kv_bits)
            scale_bytes = 4 * slots if self.kv_bits <= 8 else 0
            if rings is not None:
                self._place(
                    rings, window, slots, layers, (positions, append, at), head_bytes, scale_bytes
                )
            at += 2 * len(layers) * heads * (head_bytes + scale_bytes)
        return at - base

    def _place(
        self,
        rings: list[_Ring],
        window: int,
        slots: int,
        layers: list[int],
        places: tuple[int, int, int],
        head_bytes: int,
        scale_bytes: int,
    ) -> None:
        """Fill the records of the layers that share a ring."""
        positions, append, at = places
        for layer in layers:
            for head in range(self._spec.num_kv_heads):
                scales = at + 2 * head_bytes
                self.records[layer, head, : REC_APPEND + 1] = (
                    at,
                    at + head_bytes,
                    scales if scale_bytes else 0,
                    scales + scale_bytes if scale_bytes else 0,
                    positions,
                    0,
                    append,
                )
                at += 2 * (head_bytes + scale_bytes)
        ring = _Ring(
            window=window,
            slots=slots,
            oldest=0,
            layers=np.array(layers, np.intp),
            positions=self._view(positions, slots),
            append=self._view(append, self.block_tokens),
        )
        ring.positions[:] = EMPTY
        rings.append(ring)

    def _view(self, address: int, count: int) -> npt.NDArray[np.int32]:
        start = address - self._memory.ctypes.data
        return self._memory[start : start + 4 * count].view(np.int32)
