"""Sizes of a bounded cache, from limits in bytes or tokens.

Few heads look far back for what was said: in SmolLM2 a fifth of them gives the tokens of a phrase
that is repeated 81 % of all attention to its first telling. The others attend to what is near, to
sinks and to delimiters. So a policy may let heads have different numbers of slots, with the same
sum: the fifth with the highest scores (`formats/head_scores.py`) is *wide*, the rest *narrow*
(retrieval and streaming heads of RazorAttention, arXiv 2407.15891). Of few heads each counts: only
those that find next to nothing are narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgetok.cache.limits import CacheLimits
from edgetok.cache.policies.policy import Policy, policy
from edgetok.cache.table import SLOT_TILE
from edgetok.errors import OptionError
from edgetok.formats.head_scores import HeadScores
from edgetok.models.operations import operations, stateful
from edgetok.models.spec import DecoderSpec

SINKS = 4
FREED_SHARE = 4  # of the trained length: positions to free when it would be passed (1 in so many)
# Where heads differ: how far one looks back, in average numbers of slots; what is further back gets
# a share of its slots (1 in so many). Chosen on both real models, half 0 of policies.py.
NARROW_SPAN, WIDE_SPAN = 1, 6
FAR_SHARE = 16
WIDE_SHARE = 0.2  # of heads; chosen on SmolLM2, half 0 of benchmarks/quality/policies.py
FEWEST_HEADS = 10  # of fewer a fifth is too few: of gemma-3-270m's three two give parts of answers
WIDE_SCORE = 0.25  # of the highest, that a head of few has to reach


@dataclass(frozen=True, slots=True)
class Tier:
    """Heads with equally many slots.

    Attributes:
        slots: number of slots of each head; a multiple of SLOT_TILE.
        heads: (layer, KV head), ascending.
    """

    slots: int
    heads: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The size of a bounded cache, and the parts that it always keeps.

    Attributes:
        policy: which tokens are kept.
        slots: number of slots of each head, or on average; a multiple of SLOT_TILE.
        block_tokens: most tokens of one run, and how many each head evicts at once.
        sinks: first tokens, always kept.
        recent: latest tokens, always kept.
        tiers: narrow and wide heads where they differ; else none.
    """

    policy: Policy
    slots: int
    block_tokens: int
    recent: int
    sinks: int = SINKS
    tiers: tuple[Tier, ...] = ()

    @property
    def around(self) -> int:
        """Neighbours on each side whose scores count as much as a token's own: `Policy.around`."""
        return 0 if self.apart else self.policy.around

    @property
    def apart(self) -> bool:
        """Whether some heads are wide and most are narrow.

        Then what a head evicts leaves its mean, and wide heads judge together
        (`policies/shared.py`). Neither gains anything where heads are few.
        """
        return bool(self.tiers) and not mostly_wide(self.tiers)

    def far(self, wide: bool, length: int, position: int) -> int:
        """The first token that is not far from the next one; 0 where no token counts as far.

        Args:
            wide: of which heads.
            length: tokens seen.
            position: of the next token: those further back are not where they were.
        """
        span = self.slots * (WIDE_SPAN if wide else NARROW_SPAN)
        return length - min(position, span) if self.tiers else 0

    @property
    def most_slots(self) -> int:
        """Slots of the widest head."""
        return max((tier.slots for tier in self.tiers), default=self.slots)

    @classmethod
    def of_slots(
        cls,
        policy: Policy,
        slots: int,
        block_tokens: int,
        scores: HeadScores | None = None,
        most: int | None = None,
    ) -> Bounds:
        """Bounds for so many slots, the other numbers in proportion.

        Args:
            policy: which tokens are kept.
            slots: number of slots of each head, or on average.
            block_tokens: most tokens of one run.
            scores: scores of the heads that evict; None where all are alike.
            most: slots of any head.

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
        tiers = _tiers(whole, most or whole, scores) if policy.unequal and scores else ()
        if tiers:
            few = tiers[0].slots
            recent = (
                min(recent, 3 * few // 4) if mostly_wide(tiers) else min(whole // 4, 3 * few // 8)
            )
        return cls(policy=policy, slots=whole, block_tokens=block, recent=recent, tiers=tiers)


def bounds_for(
    spec: DecoderSpec,
    limits: CacheLimits,
    context_tokens: int,
    *,
    block_tokens: int,
    bytes_of: Callable[[Bounds], int],
    scores: HeadScores | None = None,
) -> Bounds:
    """The largest cache within the limits; `bytes_of` is what one with such bounds takes.

    `scores` are those of the heads that evict, where a policy may ask for them.

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
        return Bounds.of_slots(chosen, min(context_tokens, most), block_tokens, scores, most)

    def nbytes(slots: int) -> int:
        return bytes_of(Bounds.of_slots(chosen, slots, block_tokens, scores, most))

    low, high = SLOT_TILE, most
    if nbytes(low) > limits.budget_bytes:
        raise OptionError(
            f"a KV cache of {limits.budget_bytes:,} bytes is too small for this model: "
            f"{_beside(spec)}{low} tokens a head need {nbytes(low):,}; give a larger --kv-budget"
        )
    while high - low > SLOT_TILE:
        middle = _tiles((low + high) // 2)
        low, high = (middle, high) if nbytes(middle) <= limits.budget_bytes else (low, middle)
    best = high if nbytes(high) <= limits.budget_bytes else low
    return Bounds.of_slots(chosen, best, block_tokens, scores, most)


def _beside(spec: DecoderSpec) -> str:
    """Return the beginning of a message: what a cache has beside the heads that evict."""
    kinds = ["windows"] * any(layer.window for layer in spec.layers)
    if stateful(operations(spec)):
        kinds.append("recurrent states with their snapshots")
    return f"its {', '.join(kinds)} and " if kinds else ""


def wide_heads(scores: HeadScores) -> tuple[tuple[int, int], ...]:
    """Return the retrieval heads, ascending; none where all heads are treated alike."""
    if len(scores) < max(2, FEWEST_HEADS):
        best = max(scores.values(), default=0.0)
        found = tuple(sorted(head for head in scores if scores[head] >= WIDE_SCORE * best > 0))
        return found if len(scores) / 2 < len(found) < len(scores) else ()
    # Of equal scores the earlier head is wide, so that the result does not depend on the order.
    ranked = sorted(scores, key=lambda head: (-scores[head], head))
    return tuple(sorted(ranked[: max(1, round(WIDE_SHARE * len(scores)))]))


def mostly_wide(tiers: tuple[Tier, ...]) -> bool:
    """Whether more heads are wide than narrow: then they keep what heads do that are alike."""
    return len(tiers[1].heads) > len(tiers[0].heads)


def _tiers(slots: int, most: int, scores: HeadScores) -> tuple[Tier, ...]:
    """Narrow and wide heads with `slots` on average, rounded down; none if they would be equal."""
    heads = wide_heads(scores)
    count, wide = len(scores), len(heads)
    narrow = count - wide
    if not heads:
        return ()
    few = max(SLOT_TILE, _tiles(slots // 2))
    many = min(most, _tiles((slots * count - few * narrow) // wide))
    few = _tiles((slots * count - many * wide) // narrow)  # what wide heads leave
    if many <= few:
        return ()
    return Tier(few, tuple(sorted(scores.keys() - set(heads)))), Tier(many, heads)


def _tiles(slots: int) -> int:
    """`slots` rounded down to what a head may have."""
    return slots // SLOT_TILE * SLOT_TILE
