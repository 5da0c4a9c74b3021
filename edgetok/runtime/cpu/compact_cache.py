"""A KV cache of fixed size for a conversation of any length.

Layers that see every token share one pool of slots. When it is full, a policy says which tokens
each head forgets: a block of them at once, never the first ones, the pinned ones and the latest.
Freed slots are filled again in place. Positions are those of the conversation until they reach the
trained length; then they are made contiguous and keys are turned by the difference. Layers with a
sliding window keep their ring. All bytes are allocated with the cache.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.cache.policies.view import Floats, HeadView
from edgetok.cache.query_log import ROWS, QueryLog
from edgetok.cache.rotation import Rotations
from edgetok.cache.state import CacheState
from edgetok.cache.windows import Windows, check_cut
from edgetok.errors import ContextError, OptionError, SessionError
from edgetok.kernels_cpu.attention.launch import (
    EMPTY,
    REC_APPEND,
    REC_KEY_SCALES,
    REC_KEYS,
    REC_MASS,
    REC_POSITIONS,
    REC_USED,
    REC_VALUE_SCALES,
    REC_VALUES,
    mass_slots,
)
from edgetok.kernels_cpu.linear.launch import aligned_bytes
from edgetok.kernels_cpu.program.abi import (
    PART_MASS_KEEP,
    PART_MASS_SLOTS,
    PART_QUERIES,
    PART_QUERY_ROW,
    PART_QUERY_ROWS,
)
from edgetok.kernels_cpu.program.tables import float_bits
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.kv_cache import CpuKVCache
from edgetok.runtime.cpu.sizes import Bounds, part_bytes
from edgetok.runtime.cpu.slots import SlotPool

_ENDLESS = 1 << 40


class CompactKVCache:
    """See `KVCache`. Made by `CpuBackend.new_cache` with `Bounds`."""

    def __init__(self, spec: DecoderSpec, bounds: Bounds, *, kv_bits: int, threads: int) -> None:
        """Allocate every slot.

        Args:
            spec: the decoder.
            bounds: sizes and policy.
            kv_bits: of keys and values.
            threads: that attend at once.

        Raises:
            OptionError: the trained context is too short for any, or memory is.
        """
        limit = spec.context_tokens
        if bounds.slots > limit:
            raise OptionError(
                f"{bounds.slots:,} slots, expected at most {limit:,}, the length that the model "
                "was trained for"
            )
        self._spec, self.bounds, self.kv_bits = spec, bounds, kv_bits
        self.block_tokens = bounds.block_tokens
        self._limit = limit
        self._heads = [
            (layer, head)
            for layer, what in enumerate(spec.layers)
            if not what.window
            for head in range(spec.num_kv_heads)
        ]
        count = len(self._heads)
        self._allocate(threads)
        self._free: npt.NDArray[np.int64] = np.zeros((count, 0), np.int64)
        self._used_free = 0
        self._held = np.zeros(count, np.int64)
        self._length = 0
        self._shift = 0  # tokens seen less the position of the next one
        self._forgotten_to = 0  # no token from here on was forgotten
        self._dropped = 0.0  # attention mass of what was forgotten
        self._pinned = 0
        self.logits = np.empty(spec.vocab_size, np.float32)
        self.frequencies = [inv_freq(rope, limit) for rope in spec.ropes]
        self._rotations = Rotations(spec, self.frequencies)
        self._place()

    def _allocate(self, threads: int) -> None:
        """Memory for slots and queries, and what kernels are told; overridden for a device."""
        spec, bounds, count = self._spec, self.bounds, len(self._heads)
        windows = CpuKVCache(
            spec,
            capacity_tokens=self._limit,
            kv_bits=self.kv_bits,
            block_tokens=bounds.block_tokens,
            windows_only=True,
        )
        self._windows: Windows = windows
        self.records = windows.records
        sizes = part_bytes(spec, bounds, self.kv_bits, threads)[:-1]  # steps share the workspace
        try:
            self._memory = aligned_bytes(sum(sizes))
        except MemoryError as error:
            raise OptionError(
                f"no memory for a cache of {sum(sizes):,} bytes; give a smaller --kv-budget"
            ) from error
        self._memory[:] = 0
        ends = np.cumsum(sizes)
        pool, log, append = np.split(self._memory, ends[:-1])
        self._kept_bytes = int(ends[1])  # the rest holds nothing between runs
        self._pool = SlotPool(
            pool, heads=count, slots=bounds.slots, head_dim=spec.head_dim, kv_bits=self.kv_bits
        )
        kept = bounds.policy.covariance, bounds.policy.queries
        self._log = QueryLog(log[: QueryLog.nbytes(spec, *kept)], spec, *kept)
        self._append = append[: 4 * count * self.block_tokens].view(np.int32)
        self._append = self._append.reshape(count, self.block_tokens)
        self.part = windows.part.copy()
        self.part[PART_QUERIES] = self._log.ring.ctypes.data if self._log.rows else 0
        self.part[PART_QUERY_ROWS] = ROWS
        self.part[PART_MASS_SLOTS] = mass_slots(bounds.slots)
        self.part[PART_MASS_KEEP] = float_bits(1.0)

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
        """How many tokens can be seen: as good as endless."""
        return _ENDLESS

    @property
    def nbytes(self) -> int:
        """Bytes allocated, all layers; never more."""
        return int(self._memory.nbytes + self._windows.nbytes)

    @property
    def slots(self) -> int:
        """Tokens that a head holds on average when the cache is full."""
        return self.bounds.slots

    @property
    def recent_tokens(self) -> int:
        """Latest tokens that are always held."""
        return self.bounds.recent

    @property
    def sinks(self) -> int:
        """First tokens that are always held."""
        return self.bounds.sinks

    @property
    def pinned_tokens(self) -> int:
        """Tokens at the beginning that are never forgotten."""
        return self._pinned

    def pin(self, tokens: int) -> None:
        """Never forget the first `tokens` tokens.

        Raises:
            ContextError: they would take more than half of the cache.
        """
        if not 0 <= tokens <= self.slots // 2:
            raise ContextError(
                f"{tokens:,} tokens to be kept always, expected at most {self.slots // 2:,}, half "
                "of the cache; shorten the system message or give a larger --kv-budget"
            )
        self._pinned = tokens

    def kept(self) -> Floats:
        """Of every token seen, the share of heads that hold it: [length_tokens]."""
        if not self._heads:
            return np.zeros(self._length, np.float32)
        tokens = self._pool.tokens[self._pool.positions != EMPTY]
        counts = np.bincount(tokens, minlength=self._length)[: self._length]
        return np.asarray(counts / len(self._heads), np.float32)

    @property
    def loss(self) -> float:
        """Share of all attention so far that went to tokens which are now forgotten."""
        total = self._dropped + float(self._pool.mass.sum(dtype=np.float64))
        return self._dropped / total if self._dropped else 0.0

    @property
    def retained(self) -> float:
        """How many tokens a head that sees every one holds, on average."""
        return float(self._held.mean()) if len(self._heads) else float(self._length)

    def serves(self, spec: DecoderSpec, kv_bits: int) -> bool:
        """Whether this cache was made for a decoder and kind of slot."""
        return self._spec is spec and self.kv_bits == kv_bits

    # Appending

    def begin(self, tokens: int) -> int:
        """Name the slots of the next tokens, forgetting others where there is no room.

        Returns:
            The first one's position.
        """
        if self._used_free + tokens > self._free.shape[1]:
            self._make_room(tokens)
        if self.position + tokens > self._limit:
            self._renumber(tokens)
        first = self.position
        self.part[PART_QUERY_ROW] = self._length % ROWS
        if self._heads:
            to = self._free[:, self._used_free : self._used_free + tokens]
            self._append[:, :tokens] = to
            at = self._pool.start[:, None] + to
            self._pool.positions[at] = np.arange(first, first + tokens, dtype=np.int32)
            self._pool.tokens[at] = np.arange(self._length, self._length + tokens, dtype=np.int32)
        self._windows.begin(tokens)
        return first

    def advance(self, tokens: int) -> None:
        """Count tokens that were computed."""
        self._length += tokens
        self._used_free += tokens
        self._held += tokens
        self._log.advance(tokens)
        self._windows.advance(tokens)

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from `length_tokens` on.

        Returns:
            False, with nothing changed, where so many tokens were forgotten in favour of those that
            now go that less than half of what fits would be held.

        Raises:
            OptionError: the length is negative or beyond the tokens seen.
        """
        check_cut(length_tokens, self._length)
        lists = [self._pool.held(head) for head in range(len(self._heads))]
        keep = [held[self._pool.tokens[held] < length_tokens] for held in lists]
        left = float(np.mean([len(held) for held in keep])) if keep else float(length_tokens)
        if length_tokens < self._forgotten_to and left < min(length_tokens, self.slots) / 2:
            return False
        if not self._windows.truncate(length_tokens):
            return False
        for held, kept in zip(lists, keep, strict=True):
            self._pool.forget(np.setdiff1d(held, kept, assume_unique=True))
        self._log.forget(self._length - length_tokens)
        self._length = length_tokens
        # Where positions were made contiguous over a gap, the last token held may be further on.
        last = max((int(self._pool.positions[at].max(initial=-1)) for at in keep), default=-1)
        gap = max(0, last + 1 - self.position) if length_tokens else 0
        if gap:
            self._windows.shift(-gap, self._turn)
            self._shift -= gap
        self._forgotten_to = min(self._forgotten_to, length_tokens)
        if length_tokens == 0:
            self._log.clear()
            self._shift = 0
            self._dropped = 0.0
        self._place()
        return True

    def clear(self) -> None:
        """Forget everything."""
        self.truncate(0)

    # Copies

    @property
    def shape(self) -> dict[str, Any]:
        """What another cache must have in common to take this one's state."""
        return {
            "kind": "compact",
            "policy": self.bounds.policy.name,
            "slots": self.bounds.slots,
            "block_tokens": self.block_tokens,
            "kv_bits": self.kv_bits,
        }

    def save(self) -> CacheState:
        """A copy of everything that it holds."""
        self._place()
        log, rings = self._log, self._windows
        return CacheState(
            shape=self.shape,
            numbers={
                "length": self._length,
                "shift": self._shift,
                "forgotten_to": self._forgotten_to,
                "pinned_tokens": self.pinned_tokens,
                "dropped": self._dropped,
                "queries": [log.count, log.valid, log.new],
                "oldest": rings.oldest,
            },
            memory=tuple(part.copy() for part in self._contents()),
        )

    def load(self, state: CacheState) -> None:
        """Become what was saved.

        Raises:
            SessionError: the state is damaged or of another shape; nothing was changed.
        """
        state.check(self.shape, tuple(part.nbytes for part in self._contents()))
        length = state.integer("length", 0, _ENDLESS)
        shift = state.integer("shift", 0, length)
        forgotten = state.integer("forgotten_to", 0, length)
        pinned = state.integer("pinned_tokens", 0, self.slots // 2)
        queries = state.integers("queries", 3, 0, _ENDLESS)
        oldest = state.integers("oldest", len(self._windows.oldest), 0, length)
        dropped = state.numbers.get("dropped")
        if (
            length - shift > self._limit
            or queries[1:].max() > min(self._log.rows, length)
            or type(dropped) is not float
            or not 0.0 <= dropped < np.inf
        ):
            raise SessionError("the saved cache's counters contradict each other")
        memory = state.memory[0]
        self._pool.check(memory, length, length - shift)
        self._windows.restore(state.memory[1], length, shift, oldest)
        self._fill(state.memory)
        self._log.count, self._log.valid, self._log.new = (int(n) for n in queries)
        self._length, self._shift, self._forgotten_to = length, shift, forgotten
        self._dropped, self._pinned = dropped, pinned
        self._place()

    def _contents(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """What a copy of it consists of, as it lies in memory: slots and queries, rings."""
        return self._memory[: self._kept_bytes], self._windows.memory

    def _fill(self, contents: tuple[npt.NDArray[np.uint8], ...]) -> None:
        """Take over slots and queries from what was `_contents`."""
        self._memory[: self._kept_bytes] = contents[0]

    # Making room

    def _make_room(self, tokens: int) -> None:
        if self._heads and int((self._pool.size - self._held).min()) < tokens:
            self._forget()
        self._place()

    def _forget(self) -> None:
        """Make each head forget so much that a block of tokens fits."""
        self._log.absorb(self._length)
        pool, score_of = self._pool, self.bounds.policy.score
        room = self.bounds.slots - self.block_tokens
        for index in range(len(self._heads)):
            at = pool.held(index)
            at = at[np.argsort(pool.tokens[at])]
            score = np.asarray(score_of(self.view(index, at)), np.float32).copy()
            seen = pool.tokens[at]
            score[seen < max(self.bounds.sinks, self.pinned_tokens)] = np.inf
            score[seen >= self._length - self.bounds.recent] = np.inf
            # Of equal scores the oldest go.
            gone = np.sort(at[np.argsort(score, kind="stable")[: max(0, len(at) - room)]])
            if len(gone):
                self._dropped += float(pool.mass[gone].sum(dtype=np.float64))
                self._forgotten_to = max(self._forgotten_to, int(pool.tokens[gone].max()) + 1)
                pool.forget(gone)

    def view(self, index: int, at: npt.NDArray[np.int64]) -> HeadView:
        """A head's tokens as policies see them."""
        layer, head = self._heads[index]
        spec, pool = self._spec, self._pool
        rope = spec.layers[layer].rope
        return HeadView(
            read_keys=functools.partial(pool.keys.read, at),
            read_values=functools.partial(pool.values, at),
            positions=pool.positions[at],
            tokens=pool.tokens[at],
            mass=pool.mass[at],
            stats=self._log.stats(layer, head, self._length, self.position),
            rotate=functools.partial(self._rotations.turn, rope, scaled=True),
            mean_rotation=functools.partial(self._rotations.mean, rope),
            scale=spec.attn_scale,
            softcap=spec.attn_softcap,
        )

    # Positions

    def _renumber(self, tokens: int) -> None:
        """Make positions contiguous, so that the next ones stay within the trained length."""
        counts = self._held
        window = max((layer.window for layer in self._spec.layers), default=0)
        new = int(max([int(counts.max(initial=0)), min(window, self._limit - tokens)]))
        front = max(self.bounds.sinks, self.pinned_tokens)
        for index, (layer, _) in enumerate(self._heads):
            at = self._pool.held(index)
            at = at[np.argsort(self._pool.positions[at])]
            place = np.arange(new - len(at), new)
            first = min(int(np.count_nonzero(self._pool.tokens[at] < front)), len(at))
            place[:first] = np.arange(first)
            delta = place - self._pool.positions[at]
            moved = np.flatnonzero(delta)
            if self._spec.layers[layer].rope >= 0 and len(moved):
                keys = self._turn(layer, self._pool.keys.read(at[moved]), delta[moved])
                self._pool.keys.write(at[moved], keys)
            self._pool.positions[at] = place
        self._windows.shift(self.position - new, self._turn)
        self._shift = self._length - new

    def _turn(self, layer: int, keys: Floats, by: npt.NDArray[np.int64]) -> Floats:
        rope = self._spec.layers[layer].rope
        return self._rotations.turn(rope, keys, by, scaled=False)

    # Records

    def _place(self) -> None:
        """List free slots anew."""
        pool = self._pool
        lists = [pool.free(index) for index in range(len(self._heads))]
        self._held = pool.size - np.array([len(free) for free in lists], np.int64)
        # Not all that is free: lists stay short, and slots in use near each other.
        room = min((len(free) for free in lists), default=self.block_tokens)
        room = min(room, 2 * self.block_tokens)
        self._free = np.array([free[:room] for free in lists], np.int64).reshape(len(lists), room)
        self._used_free = 0
        self._tell()

    def _tell(self) -> None:
        """Tell kernels where everything is: write records."""
        pool = self._pool
        for index, (layer, head) in enumerate(self._heads):
            keys, values, key_scales, value_scales, positions, mass = pool.addresses(index)
            record = self.records[layer, head]
            record[REC_KEYS], record[REC_VALUES] = keys, values
            record[REC_KEY_SCALES] = key_scales
            record[REC_VALUE_SCALES] = value_scales
            record[REC_POSITIONS], record[REC_MASS] = positions, mass
            last = int(pool.held(index).max(initial=-1)) - int(pool.start[index])
            record[REC_USED] = max(last, int(self._free[index].max(initial=-1))) + 1
            record[REC_APPEND] = self._append[index].ctypes.data
