"""A KV cache on the CPU: the memory of its groups, its queries, and what a step is told of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgetok.cache.bounds import Bounds, bounds_for
from edgetok.cache.groups import Group, make_groups
from edgetok.cache.key_constants import KeyConstants
from edgetok.cache.limits import CacheLimits
from edgetok.cache.pages import PagePool
from edgetok.cache.query_log import ROWS, QueryLog
from edgetok.cache.recurrent import History
from edgetok.cache.slot_cache import SlotCache
from edgetok.cache.table import EMPTY
from edgetok.errors import OptionError
from edgetok.formats.head_scores import HeadScores
from edgetok.kernels_cpu.attention.launch import (
    KV_BITS,
    RECORD_SLOTS,
    mass_slots,
    mass_workspace_bytes,
)
from edgetok.kernels_cpu.eviction.evictor import Evictor
from edgetok.kernels_cpu.program.abi import (
    PART_MASS_KEEP,
    PART_MASS_SLOTS,
    PART_QUERIES,
    PART_QUERY_ROW,
    PART_QUERY_ROWS,
    PART_RECORDS,
    PART_SEEN,
    PART_SLOTS,
    PART_STATES,
)
from edgetok.kernels_cpu.program.memory import aligned_bytes
from edgetok.kernels_cpu.program.tables import float_bits
from edgetok.models.ops import STATES
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.group_memory import CpuGroupMemory
from edgetok.runtime.cpu.lowering.recurrent import history_shape
from edgetok.runtime.cpu.page_layout import PageLayout

_MOST_BYTES = 1 << 46  # addresses end soon after
KIND = "cpu"


class CacheStore:
    """Memory and kernels that all caches of a backend share.

    Attributes:
        pool: their pages.
        threads: that attend at once.
        evictor: kernels by which caches made from now on evict; None where NumPy does.
        constants: of the keys of all layers, where the artefact has any.
    """

    def __init__(
        self,
        threads: int,
        limit_bytes: int | None = None,
        constants: KeyConstants | None = None,
    ) -> None:
        """Begin without pages; `limit_bytes` of all caches together, None for no limit."""
        self.pool, self.threads = PagePool(limit_bytes), threads
        self.constants = constants
        self.evictor: Evictor | None = None


class CpuCacheMemory:
    """See `CacheMemory`.

    Attributes:
        part: int64 [PART_SLOTS], what a step's table of parts says of the cache.
        records: of each layer and KV head, as in `attention/launch.py`.
    """

    shares = True
    retracts = True

    def __init__(
        self,
        spec: DecoderSpec,
        groups: Sequence[Group],
        store: CacheStore,
        *,
        kv_bits: int,
        block_tokens: int,
        bounds: Bounds | None,
    ) -> None:
        """Begin without pages; arguments as for `new_cache`."""
        self._spec, self._store, self._bounds = spec, store, bounds
        self._kv_bits, self._block_tokens = kv_bits, block_tokens
        self.records = np.zeros((spec.num_layers, spec.most_kv_heads, RECORD_SLOTS), np.int64)
        self.part = np.zeros(PART_SLOTS, np.int64)
        self.part[PART_RECORDS] = self.records.ctypes.data
        self.groups = [
            CpuGroupMemory(
                group,
                spec,
                kv_bits,
                store.pool,
                self.records,
                block_tokens,
                store.evictor,
                store.constants,
                bounds is not None and bounds.apart,
            )
            for group in groups
        ]
        self.queries = QueryLog(aligned_bytes(0), spec, covariance=False, queries=False)
        self.history = History(spec, history_shape)
        self._states = np.zeros(STATES * spec.num_layers, np.int64)
        for state, ring in self.history.rings.items():
            self._states[state] = ring.ctypes.data
        self.part[PART_STATES] = self._states.ctypes.data
        self._workspace_bytes = 0
        if bounds is not None:
            kept = bounds.policy.covariance, bounds.policy.queries
            self.queries = QueryLog(aligned_bytes(QueryLog.nbytes(spec, *kept)), spec, *kept)
            self.part[PART_QUERIES] = self.queries.ring.ctypes.data if self.queries.rows else 0
            self.part[PART_QUERY_ROWS] = ROWS
            self.part[PART_MASS_SLOTS] = mass_slots(bounds.most_slots)
            self.part[PART_MASS_KEEP] = float_bits(1.0)
            self._workspace_bytes = mass_workspace_bytes(
                bounds.most_slots, spec.num_heads, spec.most_kv_heads, store.threads
            )

    @property
    def fixed_bytes(self) -> int:
        """Records, lists of slots, queries and states."""
        lists = sum(group.list_bytes for group in self.groups)
        own = self.records.nbytes + self.queries.nbytes_used + self.history.held_bytes
        return own + lists

    @property
    def nbytes(self) -> int:
        """Bytes when all groups are full, with the workspace that steps share."""
        groups = sum(group.most_bytes for group in self.groups)
        snapshots = self.history.nbytes - self.history.held_bytes
        return groups + self.fixed_bytes + snapshots + self._workspace_bytes

    def begin(self, tokens: int, length_tokens: int, position: int) -> None:
        """Name the row of queries, and how many tokens the states have seen."""
        self.part[PART_QUERY_ROW] = length_tokens % ROWS
        self.part[PART_SEEN] = length_tokens

    def fork(self, groups: Sequence[Group]) -> CpuCacheMemory:
        """Empty memory of the same kind for other tables."""
        return CpuCacheMemory(
            self._spec,
            groups,
            self._store,
            kv_bits=self._kv_bits,
            block_tokens=self._block_tokens,
            bounds=self._bounds,
        )


CpuCache = SlotCache[CpuCacheMemory]


def new_cache(
    spec: DecoderSpec,
    store: CacheStore,
    *,
    capacity_tokens: int,
    kv_bits: int,
    block_tokens: int,
    bounds: Bounds | None = None,
) -> CpuCache:
    """An empty cache; pages are allocated as tokens come.

    Args:
        spec: the decoder.
        store: of the backend.
        capacity_tokens: tokens that can be seen; with bounds, the trained length.
        kv_bits: 4, 5, 8, 16 or 32 for each key and value.
        block_tokens: most tokens of one run.
        bounds: of a cache that evicts; None for one that holds every token.

    Raises:
        OptionError: a number is out of range.
    """
    if type(capacity_tokens) is not int or capacity_tokens < 1:
        raise OptionError(
            f"a cache of {capacity_tokens!r} tokens, expected a whole number from 1 up"
        )
    if kv_bits not in KV_BITS:
        raise OptionError(f"kv_bits is {kv_bits!r}, expected one of {KV_BITS}")
    if bounds is not None:
        block_tokens = bounds.block_tokens
        if bounds.most_slots > capacity_tokens:
            raise OptionError(
                f"{bounds.most_slots:,} slots, expected at most {capacity_tokens:,}, the length "
                "that the model was trained for"
            )
    block_tokens = min(block_tokens, capacity_tokens)
    _check_size(spec, capacity_tokens, kv_bits)
    groups = make_groups(spec, capacity_tokens, block_tokens, bounds)
    memory = CpuCacheMemory(
        spec, groups, store, kv_bits=kv_bits, block_tokens=block_tokens, bounds=bounds
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
    )


def cache_bytes(spec: DecoderSpec, bounds: Bounds, kv_bits: int, threads: int) -> int:
    """`nbytes` of the cache that such bounds give."""
    return new_cache(
        spec,
        CacheStore(threads),
        capacity_tokens=spec.context_tokens,
        kv_bits=kv_bits,
        block_tokens=bounds.block_tokens,
        bounds=bounds,
    ).nbytes


def bounds_of(
    spec: DecoderSpec,
    limits: CacheLimits,
    context_tokens: int,
    *,
    kv_bits: int,
    block_tokens: int,
    threads: int,
    scores: HeadScores | None = None,
) -> Bounds:
    """Return the sizes of a bounded cache. See `bounds_for`."""
    return bounds_for(
        spec,
        limits,
        context_tokens,
        block_tokens=block_tokens,
        bytes_of=lambda sizes: cache_bytes(spec, sizes, kv_bits, threads),
        scores=scores,
    )


def planned_bytes(
    spec: DecoderSpec,
    context_tokens: int,
    limits: CacheLimits | None,
    *,
    kv_bits: int,
    block_tokens: int,
    threads: int,
    scores: HeadScores | None = None,
) -> int:
    """Return the bytes of a full cache before there is one.

    Args:
        spec: the decoder.
        context_tokens: tokens of a conversation.
        limits: of a cache that evicts; None for one that holds every token.
        kv_bits: for each key and value.
        block_tokens: most tokens of one run.
        threads: of the backend.
        scores: of the heads that evict, where they were measured.

    Raises:
        OptionError: the limits are too tight, or a number is out of range.
    """
    if limits is not None:
        bounds = bounds_of(
            spec,
            limits,
            context_tokens,
            kv_bits=kv_bits,
            block_tokens=block_tokens,
            threads=threads,
            scores=scores,
        )
        return cache_bytes(spec, bounds, kv_bits, threads)
    return new_cache(
        spec,
        CacheStore(threads),
        capacity_tokens=context_tokens,
        kv_bits=kv_bits,
        block_tokens=block_tokens,
    ).nbytes


def _check_size(spec: DecoderSpec, capacity_tokens: int, kv_bits: int) -> None:
    """Refuse what cannot be addressed, in Python integers.

    Raises:
        OptionError: it cannot.
    """
    slot = sum(
        PageLayout(heads, 1, dims, kv_bits).bytes_of(0)
        for heads, dims in map(spec.kv_sizes, spec.attention_layers)
    )
    if slot * capacity_tokens >= _MOST_BYTES or capacity_tokens >= EMPTY:
        raise OptionError(
            f"a cache of {capacity_tokens:,} tokens needs {slot * capacity_tokens:,} bytes, more "
            "than can be addressed; give a smaller --context"
        )
