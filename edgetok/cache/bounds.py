"""Sizes of a bounded cache, from limits in bytes or tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgetok.cache.limits import CacheLimits
from edgetok.cache.policies.policy import Policy, policy
from edgetok.cache.table import SLOT_TILE
from edgetok.errors import OptionError
from edgetok.models.spec import DecoderSpec

SINKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The size of a bounded cache, and the parts that it always keeps.

    Attributes:
        policy: which tokens are kept.
        slots: of each head; a multiple of SLOT_TILE.
        block_tokens: most tokens of one run, and how many each head evicts at once.
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
        whole = _tiles(slots)
        if whole < SLOT_TILE:
            raise OptionError(
                f"a cache of {slots} tokens cannot evict selectively, expected at least "
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
    most = _tiles(spec.context_tokens)
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
        middle = _tiles((low + high) // 2)
        low, high = (middle, high) if nbytes(middle) <= limits.budget_bytes else (low, middle)
    best = high if nbytes(high) <= limits.budget_bytes else low
    return Bounds.of_slots(chosen, best, block_tokens)


def _tiles(slots: int) -> int:
    """`slots` rounded down to what a head may have."""
    return slots // SLOT_TILE * SLOT_TILE
