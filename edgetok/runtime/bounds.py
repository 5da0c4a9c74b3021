"""From limits in bytes or tokens to the sizes of a bounded cache."""

from __future__ import annotations

from edgetok.cache.policy import policy
from edgetok.errors import OptionError
from edgetok.kernels_cpu.launch_attention import SLOT_TILE
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cache_limits import CacheLimits
from edgetok.runtime.compact_cache import Bounds, CompactKVCache
from edgetok.runtime.kv_cache import CpuKVCache
from edgetok.runtime.slots import tiles


def bounds_for(
    spec: DecoderSpec,
    limits: CacheLimits,
    context_tokens: int,
    *,
    block_tokens: int,
    kv_bits: int,
    threads: int,
) -> Bounds:
    """The largest cache within the limits.

    Raises:
        OptionError: not even the smallest fits, or the policy is unknown.
    """
    chosen = policy(limits.policy)
    most = tiles(spec.context_tokens)
    if most < SLOT_TILE:
        raise OptionError(
            f"the model was trained for {spec.context_tokens} tokens, fewer than a bounded cache "
            f"needs ({SLOT_TILE}); use --kv-policy none"
        )
    if limits.budget_bytes is None:
        return Bounds.of_slots(chosen, min(context_tokens, most), block_tokens)

    def nbytes(slots: int) -> int:
        bounds = Bounds.of_slots(chosen, slots, block_tokens)
        return cache_bytes(spec, bounds, kv_bits, threads)

    low, high = SLOT_TILE, most
    if nbytes(low) > limits.budget_bytes:
        raise OptionError(
            f"a KV cache of {limits.budget_bytes:,} bytes is too small for this model: its windows "
            f"and {low} tokens a head need {nbytes(low):,}; give a larger --kv-budget"
        )
    while high - low > SLOT_TILE:
        middle = tiles((low + high) // 2)
        low, high = (middle, high) if nbytes(middle) <= limits.budget_bytes else (low, middle)
    best = high if nbytes(high) <= limits.budget_bytes else low
    return Bounds.of_slots(chosen, best, block_tokens)


def cache_bytes(spec: DecoderSpec, bounds: Bounds, kv_bits: int, threads: int) -> int:
    """`nbytes` of the cache that such bounds give."""
    windows = CpuKVCache(  # not touched, so this takes addresses but no memory
        spec,
        capacity_tokens=spec.context_tokens,
        kv_bits=kv_bits,
        block_tokens=bounds.block_tokens,
        windows_only=True,
    )
    return sum(CompactKVCache.sizes(spec, bounds, kv_bits, threads)) + windows.nbytes
