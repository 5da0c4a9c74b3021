"""The KV cache of every backend that has slots: tables on the host, memory on a device.

Each group of layers (`groups.py`) has a table, a policy that names the next slots, and a memory.
Positions are those of the sequence until they would pass the trained length; then all of them are
lowered and stored keys are rotated by the difference.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

import numpy as np

from edgetok.cache.bounds import FREED_SHARE, Bounds
from edgetok.cache.copies import OTHER_SHAPE, shape_of, share_memory
from edgetok.cache.eviction import Eviction
from edgetok.cache.groups import MOST_TOKENS, Chosen, Group, InOrder, check_cut, make_groups
from edgetok.cache.policies.view import Floats
from edgetok.cache.protocol import CacheCapabilities, KVCache
from edgetok.cache.rotation import Rotations
from edgetok.cache.saved import restore_state, write_state
from edgetok.cache.slot_memory import CacheMemory, GroupMemory
from edgetok.cache.state import CacheState
from edgetok.cache.table import EMPTY
from edgetok.errors import ContextError, OptionError, SessionError
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec

ENDLESS = MOST_TOKENS  # capacity of a cache that evicts

M = TypeVar("M", bound=CacheMemory)


class SlotCache(KVCache, Generic[M]):
    """See `KVCache`. Made by a backend.

    Attributes:
        spec: of the layers that it holds.
        groups: tables of all layers.
        memory: theirs, on the device.
        bounds: sizes and policy where tokens are evicted, else None.
        kind: what its bytes are of: caches of another kind cannot take its state.
        kv_bits: of keys and values.
        logits: float32 [vocab_size] of the last run.
        frequencies: radians a position, of each rope.
        position_limit: positions are below it: the tokens that can be seen, or the trained length
            where tokens are evicted.
        eviction: chooses tokens where some are evicted, else None.
        before: the cache of earlier layers on another device, or None; it is told all that this
            one is, but appends on its own.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        groups: list[Group],
        memory: M,
        *,
        capacity_tokens: int,
        block_tokens: int,
        kv_bits: int,
        kind: str,
        bounds: Bounds | None = None,
        before: SlotCache[Any] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            spec: the decoder.
            groups: from `make_groups`.
            memory: for these groups.
            capacity_tokens: tokens that can be seen; of a cache that evicts, the trained length.
            block_tokens: most tokens of one run.
            kv_bits: of keys and values.
            kind: see above.
            bounds: likewise.
            before: likewise.
        """
        self.spec, self.groups, self.memory = spec, groups, memory
        self.bounds, self.kind, self.kv_bits = bounds, kind, kv_bits
        self._block_tokens, self.before = block_tokens, before
        self.position_limit = capacity_tokens
        self._length = 0
        self._shift = 0  # tokens seen less the position of the next one
        self._ready = 0  # up to this length slots exist and are this cache's own
        self.logits: Floats = np.empty(spec.vocab_size, np.float32)
        self.frequencies = [inv_freq(rope, capacity_tokens) for rope in spec.ropes]
        self.eviction: Eviction | None = None
        if bounds is not None:
            self.eviction = Eviction(spec, bounds, Rotations(spec, self.frequencies))

    @property
    def chosen(self) -> Chosen | None:
        """The heads that evict, where there are any; the narrow ones where there are wide ones."""
        first = self.groups[0]
        return first if isinstance(first, Chosen) else None

    @property
    def evicting(self) -> list[tuple[Chosen, GroupMemory]]:
        """All groups of heads that evict, and their memory."""
        pairs = zip(self.groups, self.memory.groups, strict=True)
        return [(group, memory) for group, memory in pairs if isinstance(group, Chosen)]

    @property
    def length_tokens(self) -> int:
        """Tokens seen so far."""
        return self._length

    @property
    def position(self) -> int:
        """Position of the next token."""
        return self._length - self._shift

    @property
    def capacity_tokens(self) -> int:
        """Most tokens that can be seen."""
        return self.position_limit if self.bounds is None else ENDLESS

    @property
    def block_tokens(self) -> int:
        """Most tokens of one run."""
        return self._block_tokens

    @property
    def nbytes(self) -> int:
        """Bytes when it is full, all layers; never more."""
        return self.memory.nbytes + (0 if self.before is None else self.before.nbytes)

    @property
    def states_bytes(self) -> int:
        """Bytes of `nbytes` that are states and snapshots of recurrent layers."""
        before = 0 if self.before is None else self.before.states_bytes
        return self.memory.history.nbytes + before

    @property
    def held_bytes(self) -> int:
        """Bytes allocated now, pages that are shared with other caches included."""
        held = self.memory.fixed_bytes + sum(group.held_bytes for group in self.memory.groups)
        return held + (0 if self.before is None else self.before.held_bytes)

    @property
    def read_bytes(self) -> int:
        """Bytes that the next step of one token reads in all layers: keys, values and states."""
        read = self.memory.history.step_bytes
        for group, memory in zip(self.groups, self.memory.groups, strict=True):
            slots = group.table.limit
            read += memory.most_bytes * min(self._length, slots) // slots
        return read + (0 if self.before is None else self.before.read_bytes)

    @property
    def capabilities(self) -> CacheCapabilities:
        """Capabilities of this cache."""
        saves, evicts = self.before is None, self.bounds is not None
        shares = saves and self.memory.shares
        all_held = not evicts and not self.memory.history.rings
        return CacheCapabilities(
            evicts=evicts,
            saves=saves,
            shares=shares,
            rewinds=shares and all_held and not any(layer.window for layer in self.spec.layers),
        )

    def serves(self, spec: DecoderSpec, kv_bits: int, kind: str) -> bool:
        """Return whether this cache was made for a decoder, a kind of slot and a device."""
        return self.spec is spec and self.kv_bits == kv_bits and self.kind == kind

    @property
    def used_slots(self) -> int:
        """Slots of the longest head, up to the last that holds a token."""
        return max(int(group.table.used.max()) for group in self.groups)

    # Where tokens are evicted

    @property
    def slots(self) -> int:
        """Tokens that a head holds when the cache is full, on average."""
        return self.capacity_tokens if self.bounds is None else self.bounds.slots

    @property
    def recent_tokens(self) -> int:
        """Latest tokens that are always held."""
        return self.capacity_tokens if self.bounds is None else self.bounds.recent

    @property
    def sinks(self) -> int:
        """First tokens that are always held."""
        return 0 if self.bounds is None else self.bounds.sinks

    @property
    def pinned_tokens(self) -> int:
        """Tokens at the beginning that are never evicted."""
        return 0 if self.eviction is None else self.eviction.pinned

    def pin(self, tokens: int) -> None:
        """Never evict the first `tokens` tokens.

        Raises:
            ContextError: they would take more than half of the cache.
        """
        if self.eviction is None:
            return
        if not 0 <= tokens <= self.slots // 2:
            raise ContextError(
                f"{tokens:,} tokens to be kept always, expected at most {self.slots // 2:,}, half "
                "of the cache; shorten the system message or give a larger --kv-budget"
            )
        self.eviction.pinned = tokens

    @property
    def retained(self) -> float:
        """Mean number of tokens that a head without a window holds."""
        held = [group.table.held for group, _ in self.evicting]
        return float(np.concatenate(held).mean()) if held else float(self._length)

    @property
    def loss(self) -> float:
        """Share of all attention so far that went to tokens which are now evicted."""
        if self.eviction is None:
            return 0.0
        masses = []
        for _, memory in self.evicting:
            memory.pull()
            if memory.mass is not None:
                masses.append(memory.mass)
        return self.eviction.loss(masses)

    def kept(self) -> Floats:
        """Return the share of heads that hold each token seen: [length_tokens]."""
        tables = [group.table for group, _ in self.evicting]
        if not tables:
            share = np.float32(self.bounds is None)  # windows alone keep none for good
            return np.full(self._length, share, np.float32)
        held = [table.tokens[table.positions != EMPTY] for table in tables]
        counts = np.bincount(np.concatenate(held), minlength=self._length)
        rows = sum(table.rows for table in tables)
        return np.asarray(counts[: self._length] / rows, np.float32)

    # Appending

    def reserve(self, tokens: int) -> None:
        """Allocate what the next tokens need. See `KVCache`."""
        if self._length + tokens <= self._ready:
            return
        ready = self._length + tokens
        for group, memory in zip(self.groups, self.memory.groups, strict=True):
            memory.reserve(group.most_slots(self._length, tokens))
            slots = group.peek(self._length, tokens)
            if slots is None:
                ready = 0  # where tokens will go is known when others were evicted
            else:
                memory.own(slots)
        self._ready = ready
        if not any(memory.is_shared for memory in self.memory.groups):
            self._ready = min(group.ready(self._length) for group in self.groups)

    def begin(self, tokens: int) -> int:
        """Name the slots of the next tokens, evicting others where there is no room.

        Args:
            tokens: at most `block_tokens`.

        Returns:
            The first one's position.

        Raises:
            ContextError: there is not memory for them; the cache is still usable.
        """
        self.reserve(tokens)
        self.memory.history.begin(tokens, self._length)
        for chosen, evicted in self.evicting:
            if not chosen.has_room(tokens):
                self._make_room(chosen, evicted, tokens)
        if self.bounds is not None and self.position + tokens > self.position_limit:
            self._renumber(tokens)
        length, first = self._length, self.position
        for group, memory in zip(self.groups, self.memory.groups, strict=True):
            slots = group.next_slots(length, tokens)
            if length + tokens > self._ready:
                memory.own(slots)
            group.table.put(slots, length, first)
            memory.append(slots)
        self.memory.begin(tokens, length, first)
        return first

    def advance(self, tokens: int) -> None:
        """Count tokens that were computed."""
        self._length += tokens
        self.memory.queries.advance(tokens)
        self.memory.history.advance(self._length)

    @property
    def spare_tokens(self) -> int:
        """The most of the latest tokens that can be taken back. See `KVCache`."""
        return min(self.capacity_tokens, self.memory.history.spare_tokens)

    @property
    def draft_tokens(self) -> int:
        """The most tokens of the next step that can be taken back. See `KVCache`.

        Attention mass that a token gave cannot: only `loss` counts it then, as if it had stayed.
        """
        if self.before is not None or not self.memory.retracts:
            return 0
        most = min(
            self._ready - self._length, self._block_tokens, self.position_limit - self.position
        )
        if self.bounds is not None and self.bounds.policy.remembers:
            return 0
        return max(0, min(most, self.memory.history.spare_tokens))

    def retract(self, tokens: int) -> None:
        """Take back the last tokens of the latest step. See `KVCache`."""
        for group, memory in zip(self.groups, self.memory.groups, strict=True):
            slots = group.retract(self._length, tokens)
            if memory.mass is not None:
                memory.mass[group.table.row_numbers, slots] = 0.0
        self._length -= tokens
        self.memory.history.retract(self._length)

    def reachable(self, length_tokens: int) -> int:
        """The longest beginning, of at most `length_tokens`, that `truncate` can go back to."""
        while True:
            found = min(group.reachable(length_tokens) for group in self.groups)
            found = self.memory.history.reachable(found)
            if found == length_tokens:
                return found if self.before is None else self.before.reachable(found)
            length_tokens = found

    def mark(self, length_tokens: int) -> None:
        """Note where the next turn goes back to. See `KVCache`."""
        self.memory.history.mark(length_tokens)

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from `length_tokens` on. See `KVCache`.

        Raises:
            OptionError: the length is negative or beyond the tokens seen.
        """
        check_cut(length_tokens, self._length)
        if self.reachable(length_tokens) != length_tokens:
            return False
        if self.before is not None:
            self.before.truncate(length_tokens)
        for group, memory in zip(self.groups, self.memory.groups, strict=True):
            memory.pull()
            if memory.rests is not None and length_tokens < group.mark:
                memory.rests[:] = 0.0  # they stand for what is to be forgotten, too
            group.truncate(length_tokens)
            if memory.mass is not None:
                memory.mass[group.table.positions == EMPTY] = 0.0
        self.memory.queries.forget(self._length - length_tokens)
        self.memory.history.truncate(length_tokens)
        self._length, self._ready = length_tokens, 0
        if length_tokens == 0:
            self.memory.queries.clear()
            self._shift = 0
            if self.eviction is not None:
                self.eviction.dropped = 0.0
        elif self.chosen is not None:
            # Where a head had no room to lower a position, its last token may be further on.
            last = -1
            for group, _ in self.evicting:
                positions = group.table.positions
                last = max(last, int(positions[positions != EMPTY].max(initial=-1)))
            self._lower(-max(0, last + 1 - self.position))
        for memory in self.memory.groups:
            memory.trim()
            memory.tell()
        return True

    def clear(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def _make_room(self, chosen: Chosen, memory: GroupMemory, tokens: int) -> None:
        memory.pull()
        if self.eviction is not None and chosen.fewest_free < tokens:
            self.eviction.evict(chosen, memory, self.memory.queries, self._length, self.position)
        chosen.list_free()
        memory.tell()

    # Positions

    def _renumber(self, tokens: int) -> None:
        """Lower positions, so that the next ones stay within the trained length."""
        held = max((int(group.table.held.max()) for group, _ in self.evicting), default=0)
        window = max((layer.window for layer in self.spec.layers), default=0)
        limit = self.position_limit
        aim = max(window, limit - limit // FREED_SHARE)
        shift = self.position - max(held, min(aim, limit - tokens))
        if self.eviction is not None:
            for chosen, memory in self.evicting:
                memory.pull()
                self.eviction.renumber(chosen, memory, shift)
                memory.tell()
        self._lower(shift)

    def _lower(self, by: int) -> None:
        """Lower the positions of all windows by `by`, and the next token's, rotating keys along.

        What would be before position 0 is forgotten; no window reaches that far.
        """
        eviction = self.eviction
        if by == 0 or eviction is None:
            return
        for group, memory in zip(self.groups, self.memory.groups, strict=True):
            if isinstance(group, InOrder):
                eviction.lower(group, memory, by)
        self._shift += by

    # Copies

    @property
    def shape(self) -> dict[str, Any]:
        """Properties that another cache must share to take this one's state."""
        return shape_of(self)

    def save(self) -> CacheState:
        """A copy of all that it holds, as one block. See `KVCache`."""
        self._check_saves()
        for chosen, _ in self.evicting:
            chosen.list_free()  # as `load` does, so that both go on alike
        for memory in self.memory.groups:
            memory.pull()
        return write_state(self)

    def load(self, state: CacheState) -> None:
        """Become what was saved. See `KVCache`."""
        self._check_saves()
        self._ready = 0
        found = restore_state(self, state)
        self._length, self._shift = found.length, found.shift
        if self.eviction is not None:
            self.eviction.dropped, self.eviction.pinned = found.dropped, found.pinned

    def fork(self) -> SlotCache[M]:
        """A cache of its own that goes on from here. See `KVCache`."""
        groups = make_groups(self.spec, self.position_limit, self.block_tokens, self.bounds)
        made: SlotCache[M] = SlotCache(
            self.spec,
            groups,
            cast(M, self.memory.fork(groups)),
            capacity_tokens=self.position_limit,
            block_tokens=self.block_tokens,
            kv_bits=self.kv_bits,
            kind=self.kind,
            bounds=self.bounds,
        )
        made.adopt(self)
        return made

    def adopt(self, other: KVCache) -> None:
        """Become what another cache is now, sharing its memory where the device can.

        Raises:
            OptionError: this cache is on two devices.
            SessionError: the other is of another shape, or holds more tokens than fit.
            ContextError: there is not memory for it.
        """
        self._check_saves()
        if not isinstance(other, SlotCache):
            raise SessionError(OTHER_SHAPE)
        if other is self:
            return
        share_memory(self, other)
        self._length, self._shift = other._length, other._shift
        self._ready = other._ready = 0  # what was its own is shared now
        if self.eviction is not None and other.eviction is not None:
            self.eviction.dropped = other.eviction.dropped
            self.eviction.pinned = other.eviction.pinned

    def _check_saves(self) -> None:
        if self.before is not None:
            raise OptionError(
                "a cache on two devices can be neither saved nor forked: leave out --gpu-layers"
            )
