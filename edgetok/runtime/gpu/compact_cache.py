"""A cache that forgets, on the device.

Which slots hold what is decided on the host, by the code of the CPU's cache: lists of positions and
tokens are there. Keys, values, queries and attention mass stay on the device; scores are computed
there (`kernels_gpu/array.py`), and so are keys turned to other positions. The device's positions
and mass are brought in step after tokens were forgotten, never within a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from edgetok.cache.policies.view import Floats
from edgetok.cache.query_log import ROWS, QueryLog
from edgetok.cache.windows import ring_slots
from edgetok.kernels_cpu.program.abi import PART_SLOTS
from edgetok.kernels_gpu.array import DeviceArray
from edgetok.kernels_gpu.device import Device
from edgetok.kernels_gpu.kv_append import EMPTY, Slots
from edgetok.kernels_gpu.stored import StoredRows, bytes_of, fill
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.compact_cache import CompactKVCache
from edgetok.runtime.cpu.sizes import Bounds
from edgetok.runtime.cpu.slots import SlotPool
from edgetok.runtime.cpu.stored_rows import Bytes
from edgetok.runtime.gpu.kv_cache import (
    GpuKVCache,
    Run,
    cache_bytes,
    memory_for,
    slot_bytes,
    slot_memory,
)

if TYPE_CHECKING:
    from edgetok.runtime.cpu.kv_cache import CpuKVCache
    from edgetok.runtime.gpu.inputs import Inputs

_LISTS = 3  # int32 and float32 of each slot on the host: position, token, mass


class _Pool(SlotPool):
    """Slots whose keys and values are on the device."""

    def __init__(
        self, memory: Bytes, rows: dict[str, Any], *, heads: int, slots: int, spec: DecoderSpec
    ) -> None:
        """Lay out lists in host memory, uint8 [4 * _LISTS * heads * slots]."""
        self.head_dim, self.kv_bits = spec.head_dim, rows["bits"]
        self.slots = heads * slots
        self.start = np.arange(heads, dtype=np.int64) * slots
        self.size = np.full(heads, slots, np.int64)
        self._memory = memory
        positions, tokens, mass = memory.reshape(_LISTS, -1)
        self.positions, self.tokens = positions.view(np.int32), tokens.view(np.int32)
        self.mass = mass.view(np.float32)
        self.positions[:] = EMPTY
        self._stored = tuple(
            StoredRows(rows[name], rows[scales], spec.head_dim, keys=name == "keys")
            for name, scales in (("keys", "key_scales"), ("values", "value_scales"))
        )
        self.keys = cast(Any, self._stored[0])

    def values(self, at: npt.NDArray[np.int64]) -> Floats:
        """Values of slots as float32 [n, D], on the device."""
        return cast(Floats, self._stored[1].read(at))


class GpuCompactCache(CompactKVCache):
    """See `GpuCache` and `BoundedCache`. Made by `GpuBackend.new_bounded_cache`."""

    def __init__(self, spec: DecoderSpec, bounds: Bounds, device: Device, *, kv_bits: int) -> None:
        """Allocate every slot.

        Raises:
            OptionError: the trained context is too short for any, or memory is.
        """
        self.spec, self.device = spec, device
        self.one: Inputs | None = None
        self.before: CpuKVCache | None = None
        self.steps: dict[bool, Callable[[], None]] = {}
        super().__init__(spec, bounds, kv_bits=kv_bits, threads=1)

    def _allocate(self, threads: int) -> None:
        spec, bounds, device, heads = self.spec, self.bounds, self.device, len(self._heads)
        total = heads * bounds.slots
        self._nbytes = compact_bytes(spec, bounds, self.kv_bits)
        what = f"a cache of {self._nbytes:,} bytes"
        device.require(self._nbytes, what, "give a smaller --kv-budget")
        self._rings = GpuKVCache(
            spec,
            device,
            capacity_tokens=self._limit,
            kv_bits=self.kv_bits,
            block_tokens=bounds.block_tokens,
            windows_only=True,
        )
        self._windows = self._rings
        size, kept = bounds.slots, (bounds.policy.covariance, bounds.policy.queries)
        with memory_for(what):
            rows = slot_memory(device, spec, total, self.kv_bits)
            self._positions = device.zeros((total,), "int32")
            self._mass = device.zeros((total,), "float32")
            starts = device.copy(np.arange(heads, dtype=np.int32) * np.int32(size))
            self.used = device.zeros((len(self._rings.used) + heads,), "int32")
            log = device.zeros((QueryLog.nbytes(spec, *kept),), "uint8")
        self._memory = np.zeros(4 * _LISTS * total, np.uint8)
        self._pool = _Pool(self._memory, rows, heads=heads, slots=size, spec=spec)
        self._log = QueryLog(cast(Bytes, DeviceArray(log)), spec, *kept)
        queries: Any = [None] * spec.num_layers
        if bounds.policy.queries:
            ring = cast(DeviceArray, self._log.ring).tensor
            queries = ring.view(spec.num_layers, ROWS, spec.num_heads, spec.head_dim)
        self._append = np.zeros((heads, self.block_tokens), np.int32)
        self.part = np.zeros(PART_SLOTS, np.int64)
        self._tensors = [
            *(rows[name] for name in ("keys", "values", "key_scales", "value_scales")),
            log,
        ]
        self.layers: list[Slots] = []
        self.rows: list[tuple[int, int]] = []
        first, at = len(self._rings.used), 0
        rings = list(zip(self._rings.layers, self._rings.rows, strict=True))
        for layer, what_layer in enumerate(spec.layers):
            if what_layer.window:
                slots, places = rings.pop(0)
                self.layers.append(replace(slots, used=self.used[slice(*places)]))
                self.rows.append(places)
                continue
            end = at + spec.num_kv_heads
            self.rows.append((first + at, first + end))
            self.layers.append(
                Slots(
                    head_dim=spec.head_dim,
                    positions=self._positions,
                    starts=starts[at:end],
                    used=self.used[first + at : first + end],
                    span=size,
                    mass=self._mass,
                    queries=queries[layer],
                    **rows,
                )
            )
            at = end
        self.ordered = [False] * len(self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes on the device, all layers; never more."""
        return self._nbytes

    @property
    def loss(self) -> float:
        """Share of all attention so far that went to tokens which are now forgotten."""
        self._pull()
        return super().loss

    @property
    def shape(self) -> dict[str, Any]:
        """What another cache must have in common to take this one's state."""
        return super().shape | {"kind": "compact, on a GPU"}

    def begin(self, tokens: int) -> int:
        """Name the slots of the next tokens, forgetting others where there is no room."""
        first = super().begin(tokens)
        rings = self._rings.run
        self.run = Run(
            first,
            np.concatenate([rings.slots, self._append[:, :tokens]]),
            np.concatenate([rings.used, self._used]),
            self._length % ROWS,
        )
        return first

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from `length_tokens` on. See `CompactKVCache.truncate`."""
        self._pull()
        return super().truncate(length_tokens)

    def save(self) -> Any:
        """A copy of everything that it holds."""
        self._pull()
        return super().save()

    def _contents(self) -> tuple[npt.NDArray[np.uint8], ...]:
        return self._memory, self._rings.memory, *map(bytes_of, self._tensors)

    def _fill(self, contents: tuple[npt.NDArray[np.uint8], ...]) -> None:
        self._memory[:] = contents[0]
        for tensor, part in zip(self._tensors, contents[2:], strict=True):
            fill(tensor, part)

    def _make_room(self, tokens: int) -> None:
        self._pull()
        super()._make_room(tokens)

    def _renumber(self, tokens: int) -> None:
        super()._renumber(tokens)
        fill(self._positions, self._pool.positions)

    def _pull(self) -> None:
        """Mass as the kernels left it."""
        self._pool.mass[:] = self._mass.cpu().numpy()

    def _tell(self) -> None:
        """Lists to the device; called where `_pull` was since the last run, or nothing ran."""
        pool = self._pool
        fill(self._positions, pool.positions)
        fill(self._mass, pool.mass)
        last = [
            int(pool.held(i).max(initial=first - 1)) - int(first)
            for i, first in enumerate(pool.start)
        ]
        self._used = np.maximum(last, self._free.max(axis=1, initial=-1)).astype(np.int32) + 1


def compact_bytes(spec: DecoderSpec, bounds: Bounds, kv_bits: int) -> int:
    """`nbytes` of the cache that such bounds give, in Python integers."""
    heads = sum(not layer.window for layer in spec.layers) * spec.num_kv_heads
    rings = ring_slots(spec, spec.context_tokens, bounds.block_tokens, 64)
    rings.pop(0, None)
    pool = heads * (bounds.slots * (slot_bytes(spec, kv_bits) + 8) + 8)
    log = QueryLog.nbytes(spec, bounds.policy.covariance, bounds.policy.queries)
    return pool + log + cache_bytes(spec, rings, kv_bits)
