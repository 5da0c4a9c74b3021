"""How large a bounded cache is: from limits in bytes or tokens to its sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgetok.cache.limits import CacheLimits
from edgetok.cache.policies.policy import Policy, policy
from edgetok.cache.query_log import QueryLog
from edgetok.errors import OptionError
from edgetok.kernels_cpu.attention.launch import SLOT_TILE, mass_workspace_bytes
from edgetok.kernels_cpu.linear.layout import round_up
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.kv_cache import CpuKVCache
from edgetok.runtime.cpu.slots import SlotPool, tiles
from edgetok.runtime.cpu.stored_rows import ALIGNMENT_BYTES

SINKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How large a bounded cache is and what it keeps.

    Attributes:
        policy: which tokens are kept.
        slots: of each head; a multiple of SLOT_TILE.
        block_tokens: most tokens of one run, and how many each head forgets at once.
        sinks: first tokens, always kept.
        recent: latest tokens, always kept.
    """

    policy: Policy
    slots: int
    block_tokens: int
    recent: int
    sinks: int = SINKS

    @classmethod
    def of_slots(cls, policy: Policy, slots: int, block_tokens: int) -> Bounds:
        """Bounds for so many slots, the other numbers in proportion.

        Raises:
            OptionError: fewer than 64 slots.
        """
        whole = tiles(slots)
        if whole < SLOT_TILE:
            raise OptionError(
                f"a cache of {slots} tokens cannot forget selectively, expected at least "
                f"{SLOT_TILE}: give a larger --context or --kv-budget"
            )
        # An eighth at once: rare enough to cost little, small enough to leave the rest in use.
        block = min(block_tokens, max(8, whole // 8))
        recent = max(8, whole // policy.recent)
        return cls(policy=policy, slots=whole, block_tokens=block, recent=recent)


def bounds_for(
    spec: DecoderSpec,
    limits: CacheLimits,
    context_tokens: int,
    *,
    block_tokens: int,
    bytes_of: Callable[[Bounds], int],
) -> Bounds:
    """The largest cache within the limits; `bytes_of` is what one with such bounds takes.

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
        return bytes_of(Bounds.of_slots(chosen, slots, block_tokens))

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
    return sum(part_bytes(spec, bounds, kv_bits, threads)) + windows.nbytes


def part_bytes(
    spec: DecoderSpec, bounds: Bounds, kv_bits: int, threads: int
) -> tuple[int, int, int, int]:
    """Bytes of the pool of slots, the queries, the lists of slots and the workspace."""
    heads = sum(not layer.window for layer in spec.layers) * spec.num_kv_heads
    policy = bounds.policy
    return (
        round_up(SlotPool.nbytes(heads, bounds.slots, spec.head_dim, kv_bits), ALIGNMENT_BYTES),
        round_up(QueryLog.nbytes(spec, policy.covariance, policy.queries), ALIGNMENT_BYTES),
        round_up(4 * heads * bounds.block_tokens, ALIGNMENT_BYTES),
        mass_workspace_bytes(bounds.slots, spec.num_heads, spec.num_kv_heads, threads),
    )
