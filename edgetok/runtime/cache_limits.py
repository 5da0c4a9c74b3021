"""From what a user asks for, bytes or tokens, to the sizes of a bounded cache."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgetok.cache.policy import policy
from edgetok.errors import OptionError
from edgetok.kernels_cpu.launch_attention import SLOT_TILE
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.compact_cache import Bounds, CompactKVCache
from edgetok.runtime.kv_cache import CpuKVCache
from edgetok.runtime.slots import tiles

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """What a conversation of any length has to make do with.

    Attributes:
        policy: name of the policy that chooses what is kept.
        budget_bytes: of the whole cache; None takes as many slots as the context has tokens.
    """

    policy: str = "retain"
    budget_bytes: int | None = None


def parse_bytes(text: str) -> int:
    """The number of bytes in "64MB", "1.5 GiB" or "4000000".

    Raises:
        OptionError: it is no such text, or not above 0.
    """
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMG]I?)?B?", text.strip().upper())
    value = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if value < 1:
        raise OptionError(f"{text!r:.40} is no amount of memory, expected one such as 64MB or 1GiB")
    return value


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
    most = min(max(context_tokens, SLOT_TILE), spec.context_tokens)
    if limits.budget_bytes is None:
        return Bounds.of_slots(chosen, most, block_tokens)

    def nbytes(slots: int) -> int:
        bounds = Bounds.of_slots(chosen, slots, block_tokens)
        return cache_bytes(spec, bounds, kv_bits, threads)

    low, high = SLOT_TILE, max(SLOT_TILE, tiles(spec.context_tokens))
    if nbytes(low) > limits.budget_bytes:
        raise OptionError(
            f"a KV cache of {limits.budget_bytes:,} bytes is too small for this model: windows "
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
