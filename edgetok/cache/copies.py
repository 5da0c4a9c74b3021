"""Copies between two `SlotCache`s: the shape that they must share, and sharing memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgetok.cache.groups import Chosen
from edgetok.errors import SessionError

if TYPE_CHECKING:
    from edgetok.cache.slot_cache import SlotCache

OTHER_SHAPE = "a cache of another shape cannot be taken over"


def shape_of(cache: SlotCache[Any]) -> dict[str, Any]:
    """Return the properties that two caches must share for one to take the other's state."""
    rings = [
        [group.window, group.table.limit]
        for group in cache.groups
        if group.window and not isinstance(group, Chosen)
    ]
    made: dict[str, Any] = {
        "block_tokens": cache.block_tokens,
        "kind": cache.kind,
        "kv_bits": cache.kv_bits,
        "rings": rings,
    }
    if cache.bounds is not None:
        made |= {"policy": cache.bounds.policy.name, "slots": cache.bounds.slots}
        if cache.bounds.tiers:
            made["wide"] = [list(head) for head in cache.bounds.tiers[-1].heads]
        return made
    if any(rope.scaling == "longrope" for rope in cache.spec.ropes):
        made["context"] = cache.position_limit  # keys are rotated by what depends on it
    return made


def share_memory(cache: SlotCache[Any], other: SlotCache[Any]) -> None:
    """Make a cache's tables and memory those of another one, shared where the device can.

    Raises:
        SessionError: the other has another shape, or holds more tokens than fit.
        ContextError: there is not memory for it.
    """
    if other.shape != cache.shape:
        raise SessionError(OTHER_SHAPE)
    if other.length_tokens > cache.capacity_tokens:
        raise SessionError(
            f"a cache of {other.length_tokens:,} tokens does not fit into one of "
            f"{cache.capacity_tokens:,}"
        )
    for i, (memory, theirs) in enumerate(
        zip(cache.memory.groups, other.memory.groups, strict=True)
    ):
        theirs.pull()
        limit = cache.groups[i].table.limit
        cache.groups[i].take(other.groups[i])
        cache.groups[i].table.limit = limit
        memory.share(theirs)
    cache.memory.queries.copy_from(other.memory.queries)
    cache.memory.history.take(other.memory.history)
