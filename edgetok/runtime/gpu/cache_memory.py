"""A KV cache's memory on the GPU, in the layout of `kernels_gpu/kv_append.py`.

All bytes are allocated with the cache, one range of rows for each head, so that a captured decode
step never changes its addresses; a fork is a copy. Tables are on the host; the device's positions
and attention mass are brought in step after tokens were evicted, never within a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from edgetok.cache.bounds import Bounds
from edgetok.cache.groups import Chosen, Group, make_groups, ring_slots
from edgetok.cache.query_log import ROWS, QueryLog
from edgetok.cache.recurrent import History
from edgetok.cache.slot_cache import SlotCache
from edgetok.cache.table import EMPTY
from edgetok.errors import OptionError, UnsupportedError
from edgetok.kernels_gpu.array import DeviceArray
from edgetok.kernels_gpu.device import Device
from edgetok.kernels_gpu.kv_append import Constants, Slots
from edgetok.models.ops import Stateful
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.gpu.group_memory import Bytes, GpuGroupMemory, slot_bytes

if TYPE_CHECKING:
    import torch

    from edgetok.runtime.gpu.inputs import Inputs

_MOST_BYTES = 1 << 46
KIND = "gpu"


@dataclass(frozen=True, slots=True)
class Run:
    """Places of the next tokens.

    Attributes:
        position: of the first one.
        slots: int32 [rows, T], counted in a head's range; rows as in `GpuCacheMemory.rows`.
        used: int32 [rows], how many slots will then be in use.
        query_row: of the ring of queries, for the first token.
    """

    position: int
    slots: npt.NDArray[np.int32]
    used: npt.NDArray[np.int32]
    query_row: int = 0


class GpuCacheMemory:
    """See `CacheMemory`.

    Attributes:
        layers: the slots of each layer.
        rows: first and last and one of each layer's rows of `Run.slots`: one for all heads, or one
            for each.
        used: int32 [rows] on the device; runs copy `Run.used` to it.
        ordered: of each layer, whether slot i holds position i.
        one: inputs of a single token, made by the backend.
        steps: captured decode steps; they hold addresses of this memory and of `one`.
        run: what the latest `begin` said.
    """

    shares = False
    retracts = False

    def __init__(
        self,
        spec: DecoderSpec,
        groups: Sequence[Group],
        device: Device,
        *,
        kv_bits: int,
        bounds: Bounds | None,
        constants: Sequence[Constants | None],
    ) -> None:
        """Allocate every slot; arguments as for `new_cache`."""
        self._constants = constants
        self._spec, self._device, self._kv_bits, self._bounds = spec, device, kv_bits, bounds
        kept = (False, False)
        if bounds is not None:
            kept = bounds.policy.covariance, bounds.policy.queries
        log = device.zeros((QueryLog.nbytes(spec, *kept),), "uint8")
        self.queries = QueryLog(cast(Bytes, DeviceArray(log)), spec, *kept)
        self.history = History(spec, _no_states)  # this device computes no layers with states
        queries: list[torch.Tensor | None] = [None] * spec.num_layers
        if kept[1]:
            ring = cast(DeviceArray, self.queries.ring).tensor
            queries = list(ring.view(spec.num_layers, ROWS, spec.num_heads, spec.head_dim))
        firsts = np.cumsum([0, *(group.table.rows for group in groups)]).tolist()
        self.used = device.zeros((firsts[-1],), "int32")
        self.groups = [
            GpuGroupMemory(
                group,
                spec,
                device,
                kv_bits,
                self.used[first : first + group.table.rows],
                [queries[layer] for layer in group.layers],
                [constants[layer] for layer in group.layers],
            )
            for group, first in zip(groups, firsts, strict=False)
        ]
        placed: dict[int, tuple[Slots, tuple[int, int], bool]] = {}
        for group, memory, first in zip(groups, self.groups, firsts, strict=False):
            each = group.table.rows // len(group.layers)
            for i, layer in enumerate(group.layers):
                rows = (first, first + 1)
                if isinstance(group, Chosen):
                    rows = (first + i * each, first + (i + 1) * each)
                ordered = group.window == 0 and not isinstance(group, Chosen)
                placed[layer] = memory.layers[i], rows, ordered
        every = [placed[layer] for layer in range(spec.num_layers)]
        self.layers = [slots for slots, _, _ in every]
        self.rows = [rows for _, rows, _ in every]
        self.ordered = [ordered for _, _, ordered in every]
        self._groups = groups
        self.run = Run(0, np.zeros((0, 0), np.int32), np.zeros(0, np.int32))
        self.one: Inputs | None = None
        self.steps: dict[bool, Callable[[], None]] = {}

    @property
    def fixed_bytes(self) -> int:
        """Queries and numbers of slots in use."""
        return self.queries.nbytes_used + int(self.used.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes on the device; never more."""
        return self.fixed_bytes + sum(group.held_bytes for group in self.groups)

    def begin(self, tokens: int, length_tokens: int, position: int) -> None:
        """Put together what the next run is told."""
        self.run = Run(
            position,
            np.concatenate([group.appended for group in self.groups]),
            np.concatenate([group.table.used for group in self._groups]).astype(np.int32),
            length_tokens % ROWS,
        )

    def fork(self, groups: Sequence[Group]) -> GpuCacheMemory:
        """Empty memory of the same kind for other tables."""
        with self._device.active(), memory_for(f"a copy of a cache of {self.nbytes:,} bytes"):
            return GpuCacheMemory(
                self._spec,
                groups,
                self._device,
                kv_bits=self._kv_bits,
                bounds=self._bounds,
                constants=self._constants,
            )


GpuCache = SlotCache[GpuCacheMemory]


def new_cache(
    spec: DecoderSpec,
    device: Device,
    *,
    capacity_tokens: int,
    kv_bits: int,
    block_tokens: int,
    bounds: Bounds | None = None,
    before: SlotCache[Any] | None = None,
    constants: Sequence[Constants | None] | None = None,
) -> GpuCache:
    """An empty cache, all its bytes at once.

    Args:
        spec: the decoder.
        device: where.
        capacity_tokens: tokens that can be seen; with bounds, the trained length.
        kv_bits: 4, 8 or 16 for each key and value.
        block_tokens: most tokens of one run.
        bounds: of a cache that evicts; None for one that holds every token.
        before: the cache of earlier layers, which goes wherever this one does.
        constants: of each layer, those of its keys; None where there are none.

    Raises:
        OptionError: a number is out of range, or there is not memory enough.
    """
    if type(capacity_tokens) is not int or not 1 <= capacity_tokens < EMPTY:
        raise OptionError(
            f"a cache of {capacity_tokens!r} tokens, expected a whole number from 1 up"
        )
    option, what = "--context", f"a cache of {capacity_tokens:,} tokens"
    block_tokens = min(block_tokens, capacity_tokens)
    if bounds is not None:
        block_tokens, option = bounds.block_tokens, "--kv-budget"
        here = compact_bytes(spec, bounds, kv_bits)
        what = f"a cache of {here:,} bytes"
    else:
        if before is not None:
            block_tokens = min(block_tokens, before.block_tokens)
        here = cache_bytes(spec, ring_slots(spec, capacity_tokens, block_tokens), kv_bits)
    if here >= _MOST_BYTES:
        raise OptionError(
            f"{what} needs {here:,} bytes, more than can be addressed; give a smaller {option}"
        )
    device.require(here, what, f"give a smaller {option}")
    groups = make_groups(spec, capacity_tokens, block_tokens, bounds)
    with memory_for(f"{what} ({here:,} bytes)"):
        memory = GpuCacheMemory(
            spec,
            groups,
            device,
            kv_bits=kv_bits,
            bounds=bounds,
            constants=constants or [None] * spec.num_layers,
        )
    return SlotCache(
        spec,
        groups,
        memory,
        capacity_tokens=capacity_tokens,
        block_tokens=block_tokens,
        kv_bits=kv_bits,
        kind=KIND,
        bounds=bounds,
        before=before,
    )


def _no_states(op: Stateful) -> tuple[int, int]:
    raise UnsupportedError(f"the GPU backend keeps no states of {type(op).__name__}")


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


def cache_bytes(spec: DecoderSpec, slots: dict[int, int], kv_bits: int) -> int:
    """Bytes of all layers, in Python integers; `slots` by window."""
    held = [slots[layer.window] for layer in spec.layers if layer.window in slots]
    rows, heads = sum(held) * spec.num_kv_heads, len(held) * spec.num_kv_heads
    return rows * slot_bytes(spec, kv_bits) + 4 * (sum(slots.values()) + len(slots) + heads)


def compact_bytes(spec: DecoderSpec, bounds: Bounds, kv_bits: int) -> int:
    """Bytes of the cache that such bounds give, in Python integers."""
    heads = sum(not layer.window for layer in spec.layers) * spec.num_kv_heads
    rings = ring_slots(spec, spec.context_tokens, bounds.block_tokens)
    rings.pop(0, None)
    pool = heads * (bounds.slots * (slot_bytes(spec, kv_bits) + 8) + 8)
    log = QueryLog.nbytes(spec, bounds.policy.covariance, bounds.policy.queries)
    return pool + log + cache_bytes(spec, rings, kv_bits)
