"""Policies of a table: which slots the next tokens take, and what can be taken back.

Layers that look equally far back form a group. `InOrder` serves layers that never evict (their
window is 0 and there is a slot for every token) and layers with a window (a ring of that window
and one chunk, since a chunk's tokens are stored before they are attended to). `Chosen` serves heads
that evict what a policy gives the lowest scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from edgetok.cache.bounds import Bounds, Tier
from edgetok.cache.table import SLOT_TILE, Places, SlotTable
from edgetok.errors import OptionError
from edgetok.models.spec import DecoderSpec

MOST_TOKENS = 1 << 40  # of any sequence


class Group(Protocol):
    """The operations of a cache on layers of one kind; recurrent layers would be another kind.

    Attributes:
        window: how far back its layers look, in tokens; 0 for all.
        layers: which layers of the decoder.
        table: which slots hold what.
    """

    window: int
    layers: tuple[int, ...]
    table: SlotTable

    def next_slots(self, length_tokens: int, tokens: int) -> Places:
        """Slots for the next `tokens` tokens, int64 [table.rows, tokens]."""

    def peek(self, length_tokens: int, tokens: int) -> Places | None:
        """Return the result of `next_slots`; None if tokens have to be evicted first."""

    def most_slots(self, length_tokens: int, tokens: int) -> int:
        """Return the slots that each row needs before `tokens` more are appended."""

    def ready(self, length_tokens: int) -> int:
        """Up to which length tokens fit into slots that exist, whatever is evicted before."""

    def reachable(self, length_tokens: int) -> int:
        """The longest beginning, of at most `length_tokens`, that this group can go back to.

        Attention answers `length_tokens` or 0; a layer with recurrent state would answer where its
        latest snapshot at or before `length_tokens` was taken.
        """

    def truncate(self, length_tokens: int) -> None:
        """Go back to a reachable length."""

    def retract(self, length_tokens: int, tokens: int) -> Places:
        """Take back the last `tokens` of the latest `next_slots`; returns their slots."""

    @property
    def mark(self) -> int:
        """Return the state beside the table, for a saved cache."""

    def restore(self, mark: int) -> None:
        """Take over a mark; the table was replaced."""

    def take(self, other: Any) -> None:
        """Become a copy of a group of the same kind, but for the table's limit."""


class InOrder:
    """Token t is in slot t % limit. See `Group`.

    Attributes:
        oldest: tokens before this one were overwritten.
    """

    def __init__(self, window: int, layers: Sequence[int], slots: int) -> None:
        """Make an empty group of layers that share `slots` slots."""
        self.window, self.layers = window, tuple(layers)
        self.table = SlotTable(1, slots)
        self.oldest = 0

    def next_slots(self, length_tokens: int, tokens: int) -> Places:
        """Slots for the next tokens."""
        self.oldest = max(self.oldest, length_tokens + tokens - self.table.limit)
        return self.peek(length_tokens, tokens)

    def peek(self, length_tokens: int, tokens: int) -> Places:
        """The same, with nothing changed."""
        end, limit = length_tokens + tokens, self.table.limit
        if tokens == 1:
            return np.array([[length_tokens % limit]])
        order = np.arange(max(length_tokens, end - limit), end, dtype=np.int64)[None]
        return order if end <= limit else order % limit

    def most_slots(self, length_tokens: int, tokens: int) -> int:
        """Slots that there must be."""
        return min(self.table.limit, length_tokens + tokens)

    def ready(self, length_tokens: int) -> int:
        """Up to which length slots exist."""
        table = self.table
        return table.size if table.size < table.limit or not self.window else MOST_TOKENS

    def reachable(self, length_tokens: int) -> int:
        """The length itself where all that its next token sees is still there."""
        seen_from = max(0, length_tokens - self.window + 1) if self.window else 0
        return length_tokens if self.oldest <= seen_from else 0

    def truncate(self, length_tokens: int) -> None:
        """Go back."""
        self.table.truncate(length_tokens)
        if length_tokens == 0:
            self.oldest = 0

    def retract(self, length_tokens: int, tokens: int) -> Places:
        """Take back the latest tokens."""
        slots = self.peek(length_tokens - tokens, tokens)
        self.table.retract(slots)
        return slots

    def shift(self, by: int) -> None:
        """Lower all positions by `by`; tokens whose position would be negative are gone."""
        self.table.shift(by)
        at = self.table.slots(0)
        if len(at):
            self.oldest = max(self.oldest, int(self.table.tokens[0, at].min()))

    @property
    def mark(self) -> int:
        """The oldest token."""
        return self.oldest

    def restore(self, mark: int) -> None:
        """Take over the oldest token."""
        self.oldest = mark

    def take(self, other: InOrder) -> None:
        """Become a copy of another."""
        self.table, self.oldest = other.table.copy(self.table.limit), other.oldest


class Chosen:
    """Each head has its own tokens, in any order. See `Group`.

    Attributes:
        heads: (layer, KV head) of each row.
        wide: whether other heads have fewer slots.
        forgotten_to: no token from here on was evicted.
    """

    window = 0

    def __init__(self, tier: Tier, bounds: Bounds) -> None:
        """Make an empty group of a tier's heads."""
        self.layers = tuple(dict.fromkeys(layer for layer, _ in tier.heads))
        self.heads, self._bounds = list(tier.heads), bounds
        self.table = SlotTable(len(self.heads), tier.slots)
        self.wide = tier in bounds.tiers[1:]
        self.forgotten_to = 0
        self._free: Places = np.zeros((len(self.heads), 0), np.int64)
        self._taken = 0  # of the lists of free slots

    def has_room(self, tokens: int) -> bool:
        """Return whether the lists of free slots hold as many."""
        return bool(self._taken + tokens <= self._free.shape[1])

    @property
    def fewest_free(self) -> int:
        """Free slots of the fullest head."""
        return self.table.limit - int(self.table.held.max(initial=0))

    def list_free(self) -> None:
        """List free slots anew, the lowest first.

        Not all that is free: lists stay short, and slots in use near each other.
        """
        room = min(self.fewest_free, 2 * self._bounds.block_tokens)
        table = self.table
        lists = []
        for row in range(table.rows):
            free = table.free(row)[:room]
            more = np.arange(table.size, table.size + room - len(free))
            lists.append(np.concatenate([free, more]))
        self._free = np.array(lists, np.int64).reshape(table.rows, room)
        self._taken = 0

    def next_slots(self, length_tokens: int, tokens: int) -> Places:
        """Slots for the next tokens, from the lists."""
        first, self._taken = self._taken, self._taken + tokens
        return self._free[:, first : self._taken]

    def peek(self, length_tokens: int, tokens: int) -> Places | None:
        """The same, with nothing changed; None where the lists are too short."""
        if not self.has_room(tokens):
            return None
        return self._free[:, self._taken : self._taken + tokens]

    def most_slots(self, length_tokens: int, tokens: int) -> int:
        """Slots that there must be: freed ones are filled first, so often fewer are needed."""
        return min(self.table.limit, int(self.table.held.max(initial=0)) + tokens)

    def ready(self, length_tokens: int) -> int:
        """Up to which length slots exist."""
        return length_tokens + self.table.size - int(self.table.held.max(initial=0))

    def reachable(self, length_tokens: int) -> int:
        """0 where so much was evicted for later tokens that less than half would be held."""
        if length_tokens < self.forgotten_to:
            table = self.table
            left = [
                np.count_nonzero(table.tokens[row, table.slots(row)] < length_tokens)
                for row in range(table.rows)
            ]
            if float(np.mean(left)) < min(length_tokens, table.limit) / 2:
                return 0
        return length_tokens

    def truncate(self, length_tokens: int) -> None:
        """Go back."""
        self.table.truncate(length_tokens)
        self.forgotten_to = min(self.forgotten_to, length_tokens)
        self.list_free()

    def retract(self, length_tokens: int, tokens: int) -> Places:
        """Take back the latest tokens: their slots are the next ones again."""
        last, self._taken = self._taken, self._taken - tokens
        slots = self._free[:, self._taken : last]
        self.table.retract(slots)
        return slots

    @property
    def mark(self) -> int:
        """Up to where tokens were evicted."""
        return self.forgotten_to

    def restore(self, mark: int) -> None:
        """Take over up to where tokens were evicted."""
        self.forgotten_to = mark
        self.list_free()

    def take(self, other: Chosen) -> None:
        """Become a copy of another."""
        self.table, self.forgotten_to = other.table.copy(self.table.limit), other.forgotten_to
        self._free, self._taken = other._free, other._taken


def ring_slots(
    spec: DecoderSpec, capacity_tokens: int, block_tokens: int, multiple: int = SLOT_TILE
) -> dict[int, int]:
    """Slots by window, in the order of the first layer that has it, rounded up to `multiple`."""
    sizes = {}
    for window in dict.fromkeys(spec.layers[i].window for i in spec.attention_layers):
        wanted = min(capacity_tokens, window + block_tokens - 1) if window else capacity_tokens
        sizes[window] = -(-wanted // multiple) * multiple
    return sizes


def make_groups(
    spec: DecoderSpec,
    capacity_tokens: int,
    block_tokens: int,
    bounds: Bounds | None,
) -> list[Group]:
    """Groups of layers with attention: the evicting ones first, then by each window's first layer.

    Heads that evict are one group, or one each tier of the bounds.

    Args:
        spec: the decoder.
        capacity_tokens: most tokens; with bounds, what the rings are made for.
        block_tokens: most tokens of one run.
        bounds: bounds of heads that see every token and evict; None where nothing is evicted.
    """
    made: list[Group] = []
    for window, slots in ring_slots(spec, capacity_tokens, block_tokens).items():
        layers = [i for i in spec.attention_layers if spec.layers[i].window == window]
        if window == 0 and bounds is not None:
            kv_heads = range(spec.kv_sizes(layers[0])[0])
            heads = tuple((layer, head) for layer in layers for head in kv_heads)
            tiers = bounds.tiers or (Tier(bounds.slots, heads),)
            made[:0] = [Chosen(tier, bounds) for tier in tiers]
        else:
            made.append(InOrder(window, layers, slots))
    return made


def check_cut(length_tokens: int, seen_tokens: int) -> None:
    """Refuse to keep a negative number of tokens, or more than were seen.

    Raises:
        OptionError: the length is out of range.
    """
    if not 0 <= length_tokens <= seen_tokens:
        raise OptionError(f"cannot keep {length_tokens} of {seen_tokens} tokens of the cache")
