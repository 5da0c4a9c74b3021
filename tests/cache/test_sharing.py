"""Forks, states and adoptions of caches: what each holds, what they share, what is given back."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from edgetok.cache.bounds import Bounds
from edgetok.cache.policies.policy import POLICIES
from edgetok.cache.table import EMPTY
from edgetok.errors import ContextError, SessionError
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec
from edgetok.runtime.cpu.cache_memory import CacheStore, new_cache

D, KH = 16, 2
SPEC = DecoderSpec(
    family="test",
    vocab_size=11,
    hidden_size=8,
    intermediate_size=8,
    num_heads=4,
    num_kv_heads=KH,
    head_dim=D,
    layers=(LayerSpec(), LayerSpec(window=20)),
    ropes=(RopeSpec(theta=1e4, rotary_dim=16),),
    context_tokens=2000,
    norm_eps=1e-5,
    attn_scale=0.25,
)
PAGE_BYTES = KH * 256 * 2 * D * 4  # of the first layer, float32
RING_BYTES = KH * 64 * 2 * D * 4  # of the second: a window of 20 and chunks of 16 in 64 slots


def make(store, *, bounds=None, capacity=1500):
    return new_cache(
        SPEC, store, capacity_tokens=capacity, kv_bits=32, block_tokens=16, bounds=bounds
    )


def append(cache, numbers):
    """Write each token's number as its keys and values, in chunks; no kernel runs."""
    for first in range(0, len(numbers), cache.block_tokens):
        part = np.asarray(numbers[first : first + cache.block_tokens])
        cache.begin(len(part))
        for group, memory in zip(cache.groups, cache.memory.groups, strict=True):
            slots = memory._append[:, : len(part)].astype(np.int64)
            for i, layer in enumerate(group.layers):
                for head in range(KH):
                    at = slots[i * KH + head if len(slots) > 1 else 0]
                    rows = np.repeat(part[:, None], D, axis=1).astype(np.float32)
                    memory.keys(layer, head).write(at, rows)
                    memory.values(layer, head).write(at, rows + 0.5)
        cache.advance(len(part))


def held(cache, layer):
    """{token: number} that a layer's first head holds, from its values: keys may be rotated."""
    group = next(g for g in cache.groups if layer in g.layers)
    memory = cache.memory.groups[cache.groups.index(group)]
    at = group.table.slots(0)
    numbers = memory.values(layer, 0).read(at)
    assert (numbers == numbers[:, :1]).all()
    tokens = group.table.tokens[0, at]
    return dict(zip(tokens.tolist(), (numbers[:, 0] - 0.5).tolist(), strict=True))


class Caches(RuleBasedStateMachine):
    """Caches of one store, each with the list of numbers that it was told; a limit on all bytes."""

    caches = Bundle("caches")
    limit = 14 * PAGE_BYTES
    bounds = None

    @initialize()
    def start(self):
        self.store = CacheStore(1, self.limit)
        self.told = []  # (cache, numbers)
        self.number = 0

    def numbers(self, count):
        self.number += count
        return list(range(self.number - count, self.number))

    def index(self, cache):
        return next(i for i, (known, _) in enumerate(self.told) if known is cache)

    def set(self, cache, numbers):
        self.told[self.index(cache)] = cache, numbers

    @rule(target=caches, capacity=st.sampled_from([100, 700, 1300, 1500]))
    def begin(self, capacity):
        """Where nothing is evicted, last pages of several sizes."""
        made = make(self.store, bounds=self.bounds, capacity=capacity if not self.bounds else 1500)
        self.told.append((made, []))
        return made

    @rule(cache=caches, count=st.integers(1, 300))
    def append(self, cache, count):
        known = self.told[self.index(cache)][1]
        if len(known) + count > min(1500, cache.capacity_tokens):
            return
        numbers, before = self.numbers(count), cache.length_tokens
        try:
            append(cache, numbers)
        except ContextError:
            assert self.store.pool.used_bytes + PAGE_BYTES > self.limit
        self.set(cache, known + numbers[: cache.length_tokens - before])

    @rule(cache=caches, count=st.integers(2, 16), back=st.integers(1, 15))
    def draft(self, cache, count, back):
        """The last of what a step appended are taken back, into the same slots."""
        known, used = self.told[self.index(cache)][1], self.store.pool.used_bytes
        count = min(count, cache.draft_tokens)
        if count > 1:
            back, numbers = min(back, count - 1), self.numbers(count)
            append(cache, numbers)
            cache.retract(back)
            self.set(cache, known + numbers[: count - back])
            for group, memory in zip(cache.groups, cache.memory.groups, strict=True):
                table, found = (
                    group.table,
                    [len(group.table.slots(row)) for row in range(group.table.rows)],
                )
                assert table.held.tolist() == found
                ends = [max(table.slots(row), default=-1) + 1 for row in range(table.rows)]
                assert table.used.tolist() == ends
                assert memory.mass is None or not memory.mass[table.positions == EMPTY].any()
        assert self.store.pool.used_bytes == used

    @rule(cache=caches, back=st.integers(0, 400))
    def truncate(self, cache, back):
        known = self.told[self.index(cache)][1]
        length = max(0, len(known) - back)
        assert cache.reachable(length) in (0, length)
        if cache.truncate(length):
            self.set(cache, known[:length])
        else:
            assert cache.length_tokens == len(known)

    @rule(cache=caches)
    def clear(self, cache):
        cache.clear()
        self.set(cache, [])

    @rule(target=caches, cache=caches)
    def fork(self, cache):
        used = self.store.pool.used_bytes
        made = cache.fork()
        assert self.store.pool.used_bytes == used
        self.told.append((made, list(self.told[self.index(cache)][1])))
        return made

    @rule(cache=caches, other=caches)
    def adopt(self, cache, other):
        if other.length_tokens <= cache.capacity_tokens:
            cache.adopt(other)
            self.set(cache, list(self.told[self.index(other)][1]))

    @rule(cache=caches, other=caches)
    def restore(self, cache, other):
        if cache.length_tokens > other.capacity_tokens:
            return
        state = cache.save()
        before = held(other, 0), held(other, 1)
        try:
            other.load(state)
        except ContextError:
            assert (held(other, 0), held(other, 1)) == before
            return
        self.set(other, list(self.told[self.index(cache)][1]))
        np.testing.assert_array_equal(other.save().block, state.block)

    @invariant()
    def same(self):
        pool = self.store.pool
        assert pool.used_bytes <= self.limit
        pages = {}
        for cache, numbers in self.told:
            assert cache.length_tokens == len(numbers)
            assert cache.held_bytes <= cache.nbytes + PAGE_BYTES  # a larger last page is shared
            self.check(held(cache, 0), numbers)
            recent = held(cache, 1)
            assert {t: numbers[t] for t in recent} == recent
            assert set(range(max(0, len(numbers) - 19), len(numbers))) <= set(recent)
            for memory in cache.memory.groups:
                for page in memory._pages.pages:
                    pages.setdefault(id(page), [page, 0])[1] += 1
        assert all(page.references == count for page, count in pages.values())
        assert pool.used_bytes == sum(page.memory.nbytes for page, _ in pages.values())

    def check(self, found, numbers):
        assert found == dict(enumerate(numbers))

    def teardown(self):
        for cache, _ in getattr(self, "told", []):
            cache.clear()
        if hasattr(self, "store"):
            assert self.store.pool.used_bytes == 0


class Evicting(Caches):
    """The same with 320 slots a head, of which 24 sinks and latest tokens are always held."""

    limit = 6 * PAGE_BYTES
    bounds = Bounds.of_slots(POLICIES["window"], 320, 16)

    def check(self, found, numbers):
        assert {t: numbers[t] for t in found} == found
        assert set(range(min(4, len(numbers)))) <= set(found)
        assert len(found) <= 320


for machine in (Caches, Evicting):
    machine.TestCase.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
TestCaches = Caches.TestCase
TestEvicting = Evicting.TestCase


def test_pages_are_allocated_when_first_used_and_given_back():
    store = CacheStore(1)
    cache = make(store)
    assert store.pool.used_bytes == 0
    append(cache, range(256))
    assert store.pool.used_bytes == PAGE_BYTES + RING_BYTES
    append(cache, range(1))
    assert store.pool.used_bytes == 2 * PAGE_BYTES + RING_BYTES
    assert cache.truncate(250)
    assert store.pool.used_bytes == PAGE_BYTES + RING_BYTES
    del cache
    gc.collect()
    assert store.pool.used_bytes == 0


@pytest.mark.parametrize("slots", [None, 1024])
def test_a_shared_beginning_is_stored_once(slots):
    """A hundred conversations after one prompt of 1,000 tokens: each has its last page alone."""
    store = CacheStore(1)
    bounds = None if slots is None else Bounds.of_slots(POLICIES["retain"], slots, 16)
    origin = make(store, bounds=bounds, capacity=SPEC.context_tokens)
    append(origin, range(1000))
    forks = [origin.fork() for _ in range(100)]
    assert store.pool.used_bytes == 4 * PAGE_BYTES + RING_BYTES
    for i, fork in enumerate(forks):
        append(fork, [5000 + i] * 20)
    assert store.pool.used_bytes == 4 * PAGE_BYTES + RING_BYTES + 100 * (PAGE_BYTES + RING_BYTES)
    for i, fork in enumerate(forks):
        expected = dict(enumerate([*range(1000), *[5000 + i] * 20]))
        assert held(fork, 0) == expected
    assert held(origin, 0) == dict(enumerate(range(1000)))


def test_a_prompt_that_does_not_fit_leaves_the_cache_as_it_was():
    store = CacheStore(1, 3 * PAGE_BYTES)
    cache = make(store)
    append(cache, range(300))
    with pytest.raises(ContextError, match="end a conversation"):
        cache.reserve(800)
    assert cache.length_tokens == 300
    append(cache, range(10))
    assert cache.length_tokens == 310


def test_caches_of_another_shape_are_not_taken_over():
    store = CacheStore(1)
    small, large = make(store, capacity=100), make(store)
    append(large, range(300))
    with pytest.raises(SessionError, match="300 tokens does not fit into one of 100"):
        small.adopt(large)
    assert large.truncate(300)
    bounded = make(store, bounds=Bounds.of_slots(POLICIES["h2o"], 64, 16), capacity=2000)
    with pytest.raises(SessionError, match="another shape"):
        large.adopt(bounded)
    large.clear()
    append(large, range(60))
    small.adopt(large)
    assert held(small, 0) == dict(enumerate(range(60)))


@pytest.mark.parametrize("kv_bits", [4, 8, 16, 32])
@pytest.mark.parametrize(("small", "large"), [(300, 1000), (700, 1500), (512, 700)])
def test_caches_of_two_capacities_share_all_but_a_last_page_of_another_size(kv_bits, small, large):
    """Which is copied when it is written to; what is in it is the same, whichever way."""
    store = CacheStore(1)
    for first, second in ((small, large), (large, small)):
        one, two = (
            new_cache(SPEC, store, capacity_tokens=size, kv_bits=kv_bits, block_tokens=16)
            for size in (first, second)
        )
        count = min(first, second) - 3
        append(one, range(count))
        used = store.pool.used_bytes
        two.adopt(one)
        assert store.pool.used_bytes == used
        alone = one.save()
        append(two, [7, 8])
        np.testing.assert_array_equal(one.save().block, alone.block)
        assert two.held_bytes <= two.nbytes
        append(one, [7, 8])
        np.testing.assert_array_equal(one.save().block, two.save().block)
        for cache in (one, two):
            cache.clear()
    assert store.pool.used_bytes == 0


def test_a_cache_has_no_slots_beyond_its_capacity():
    """But for whole tiles of 64: not a whole page."""
    sizes = [
        new_cache(SPEC, CacheStore(1), capacity_tokens=n, kv_bits=8, block_tokens=16).nbytes
        for n in (256, 257, 320, 321, 512)
    ]
    each = (sizes[4] - sizes[0]) / 256
    assert sizes[1] == sizes[2]
    assert abs(sizes[2] - sizes[0] - 64 * each) < 300
    assert abs(sizes[3] - sizes[2] - 64 * each) < 300
