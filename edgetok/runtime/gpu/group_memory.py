"""One group's memory on the GPU, in the layout of `kernels_gpu/kv_append.py`.

Every slot is allocated with the cache, one range of rows for each head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from edgetok.cache.groups import Chosen, Group
from edgetok.cache.policies.view import Floats
from edgetok.cache.slot_memory import DeviceEviction, Rest
from edgetok.cache.table import EMPTY, Places
from edgetok.errors import UnsupportedError
from edgetok.kernels_gpu.array import DeviceArray
from edgetok.kernels_gpu.device import Device
from edgetok.kernels_gpu.kv_append import KINDS, Constants, Slots, padded_head_dim, row_entries
from edgetok.kernels_gpu.stored import HeadConstants, StoredRows, bytes_of, fill, places_on
from edgetok.models.spec import DecoderSpec

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]


class HeadRows:
    """One head's keys or values: see `Rows`."""

    def __init__(
        self, stored: StoredRows, first: int, constants: HeadConstants | None = None
    ) -> None:
        """View the rows from `first` on; `constants` are those of keys."""
        self._stored, self._first, self._constants = stored, first, constants

    def read(self, at: Places) -> Floats:
        """Return float32 [n, D], on the device."""
        return cast(Floats, self._stored.read(at + self._first, self._constants))

    def write(self, at: Places, x: Floats) -> None:
        """Store x [n, D] as `kv_append` does."""
        self._stored.write(at + self._first, cast(DeviceArray, x), self._constants)


class GpuGroupMemory:
    """See `GroupMemory`.

    Attributes:
        layers: the slots of each of the group's layers.
        appended: int32 [table.rows, T], where the next tokens go.
    """

    def __init__(
        self,
        group: Group,
        spec: DecoderSpec,
        device: Device,
        kv_bits: int,
        used: torch.Tensor,
        queries: Sequence[torch.Tensor | None],
        constants: Sequence[Constants | None],
    ) -> None:
        """Allocate every slot.

        Args:
            group: tables.
            spec: the decoder.
            device: where.
            kv_bits: bits of keys and values.
            used: int32 [table.rows] on the device; runs copy `Run.used` to it.
            queries: for each of the group's layers, the memory of its latest queries.
            constants: key constants of each of the group's layers.
        """
        self._group, self._heads = group, spec.num_kv_heads
        table, dims = group.table, spec.head_dim
        table.grow(table.limit)
        count, span = len(group.layers) * self._heads, table.limit
        self.mass: Floats | None = None
        self.rests: Floats | None = None  # attention on this device has none
        self._mass: torch.Tensor | None = None
        if isinstance(group, Chosen):
            self.mass = np.zeros((count, span), np.float32)
            self._mass = device.zeros((count * span,), "float32")
        self._positions = device.zeros((table.rows * span,), "int32")
        self._positions.fill_(EMPTY)
        # All rows of the group are one array where heads evict; else each layer has its own.
        together = isinstance(group, Chosen)
        layers = 1 if together else len(group.layers)
        memory = [slot_memory(device, spec, count // layers * span, kv_bits) for _ in range(layers)]
        starts = device.copy(np.arange(count // layers, dtype=np.int32) * np.int32(span))
        self._rows = memory
        self._together = together
        self._span = span
        self._stored = [
            [
                StoredRows(rows[name], rows[scales], dims, keys=name == "keys")
                for name, scales in (("keys", "key_scales"), ("values", "value_scales"))
            ]
            for rows in memory
        ]
        self.row_bytes = slot_bytes(spec, kv_bits)
        self.appended = np.zeros((table.rows, 0), np.int32)
        self.eviction: DeviceEviction | None = None  # NumPy's choice, of keys read from the device
        self.layers = []
        for i in range(len(group.layers)):
            heads = slice(i * self._heads, (i + 1) * self._heads) if together else slice(None)
            self.layers.append(
                Slots(
                    head_dim=dims,
                    positions=self._positions,
                    starts=starts[heads],
                    used=used[heads] if together else used,
                    span=span,
                    mass=self._mass,
                    queries=queries[i],
                    constants=constants[i],
                    **memory[0 if together else i],
                )
            )

    @property
    def held_bytes(self) -> int:
        """Bytes on the device."""
        tensors = [tensor for rows in self._rows for tensor in _tensors(rows)]
        tensors += [self._positions] + ([] if self._mass is None else [self._mass])
        return sum(int(tensor.nbytes) for tensor in tensors)

    @property
    def most_bytes(self) -> int:
        """The same: every slot exists from the start."""
        return self.held_bytes

    @property
    def is_shared(self) -> bool:
        """False: a fork is a copy."""
        return False

    def reserve(self, slots: int) -> None:
        """Nothing: every slot is there."""

    def own(self, slots: Places | None) -> None:
        """Nothing: no slot is shared."""

    def append(self, slots: Places) -> None:
        """Say where the next tokens go."""
        self.appended = slots.astype(np.int32)

    def tell(self) -> None:
        """Lists to the device; called where `pull` was since the last run, or nothing ran."""
        fill(self._positions, self._group.table.positions)
        if self._mass is not None and self.mass is not None:
            fill(self._mass, self.mass)

    def pull(self) -> None:
        """Mass as the kernels left it."""
        if self._mass is not None and self.mass is not None:
            self.mass[:] = self._mass.cpu().numpy().reshape(self.mass.shape)

    def trim(self) -> None:
        """Nothing: the device keeps every slot."""

    def keys(self, layer: int, head: int) -> HeadRows:
        """A head's keys."""
        return self._head(self._group.layers.index(layer), head, 0)

    def values(self, layer: int, head: int) -> HeadRows:
        """A head's values; at 4 and 8 bits as they are stored, rotated."""
        return self._head(self._group.layers.index(layer), head, 1)

    def rest(self, layer: int, head: int) -> Rest:
        """Refuse: attention on this device has none.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(f"layer {layer}, head {head}: evicted tokens leave nothing here")

    def take(self, lists: Sequence[Places]) -> Bytes:
        """Stored rows of slots, head by head. See `GroupMemory`."""
        made = []
        for rows, at, _ in self._each(lists):
            made += [bytes_of(tensor[places_on(tensor, at)]) for tensor in _tensors(rows)]
        return np.concatenate([np.zeros(0, np.uint8), *made])

    def put(self, lists: Sequence[Places], stored: Bytes) -> None:
        """Write what `take` gave."""
        first = 0
        for rows, at, _ in self._each(lists):
            for tensor in _tensors(rows):
                part = tensor[places_on(tensor, at)]
                fill(part, stored[first : first + part.nbytes])
                tensor[places_on(tensor, at)] = part
                first += part.nbytes

    def share(self, other: GpuGroupMemory) -> None:
        """Copy another cache's slots, as many as both have."""
        span = min(self._span, other._span)
        for mine, theirs in zip(self._rows, other._rows, strict=True):
            for to, source in zip(_tensors(mine), _tensors(theirs), strict=True):
                whole = to.view(-1, self._span, *to.shape[1:])
                whole[:, :span] = source.view(-1, other._span, *to.shape[1:])[:, :span]
        self._group.table.grow(self._span)
        if self.mass is not None and other.mass is not None:
            self.mass[:, :span] = other.mass[:, :span]
        self.tell()

    def _head(self, index: int, head: int, which: int) -> HeadRows:
        known = self.layers[index].constants if which == 0 else None
        constants = None if known is None else (known.centre[head], known.factor[head])
        if self._together:
            row = index * self._heads + head
            return HeadRows(self._stored[0][which], row * self._span, constants)
        return HeadRows(self._stored[index][which], head * self._span, constants)

    def _each(self, lists: Sequence[Places]) -> Iterator[tuple[dict[str, Any], Places, int]]:
        """Yield, for each head, the arrays it lies in and the rows of its slots."""
        for i in range(len(self._group.layers)):
            for head in range(self._heads):
                row = i * self._heads + head
                at = lists[row if len(lists) > 1 else 0]
                first = row if self._together else head
                yield self._rows[0 if self._together else i], at + first * self._span, row


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


def _tensors(rows: dict[str, Any]) -> list[torch.Tensor]:
    """Keys, values and, but for 16 bits, their scales."""
    every = (rows[name] for name in ("keys", "values", "key_scales", "value_scales"))
    return [tensor for tensor in every if len(tensor)]
