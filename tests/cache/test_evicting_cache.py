"""Random appends, cuts, branches and copies of bounded caches against a plain NumPy cache.

No kernel runs: keys and values are written as `kv_append` would, so that what every slot must hold
is known, at whatever position and place it ended up.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from edgetok.cache import bounds
from edgetok.cache import state as block
from edgetok.cache.bounds import Bounds
from edgetok.cache.eviction import Eviction
from edgetok.cache.limits import CacheLimits
from edgetok.cache.policies.policy import POLICIES
from edgetok.cache.saved import COUNTERS
from edgetok.cache.state import CacheState
from edgetok.errors import OptionError, SessionError
from edgetok.kernels_cpu import reference
from edgetok.kernels_cpu.attention.launch import REC_APPEND, REC_USED
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec, inv_freq
from edgetok.models.layers.short_conv import ShortConvolution
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
    layers=(LayerSpec(), LayerSpec(window=20), LayerSpec(rope=-1), LayerSpec(rope=1)),
    ropes=(
        RopeSpec(theta=1e4, rotary_dim=16),
        RopeSpec(
            theta=1e3,
            rotary_dim=12,
            scaling="longrope",
            original_context_tokens=32,
            short_factors=(1.0,) * 6,
            long_factors=tuple(1.0 + i for i in range(6)),
            attention_factor=1.2,
        ),
    ),
    context_tokens=200,
    norm_eps=1e-5,
    attn_scale=0.25,
)
FULL_LAYERS = (0, 2, 3)


def truth(kind, layer, head, token):
    """A token's key before its rotation, or its value."""
    return np.random.default_rng((kind, layer, head, token)).standard_normal(D).astype(np.float32)


def turned(layer, key, position):
    rope = SPEC.layers[layer].rope
    if rope < 0:
        return key
    spec = SPEC.ropes[rope]
    f = inv_freq(spec, SPEC.context_tokens)
    x = key[None, None].astype(np.float64)
    return reference.rope(x, np.array([position]), f, spec.attention_factor)[0, 0]


class Driver:
    """A cache, and the list of tokens that it was told."""

    def __init__(self, name, slots=64, scores=None):
        sizes = Bounds.of_slots(POLICIES[name], slots, 32, scores, 192)
        self.cache = new_cache(
            SPEC,
            CacheStore(1),
            capacity_tokens=SPEC.context_tokens,
            kv_bits=32,
            block_tokens=32,
            bounds=sizes,
        )
        self.tokens = []
        self.next = 0
        self.most_gone = 0
        self.gone = {}  # of each head: how many a rest stands for, mean key and value, latest token

    def append(self, count):
        cache = self.cache
        before, shift = self.held(), cache.length_tokens - cache.position
        first = cache.begin(count)
        self.note(before, cache.length_tokens - first - shift)
        heads = [(*pair, *row) for pair in cache.evicting for row in enumerate(pair[0].heads)]
        for group, memory, index, (layer, head) in heads:
            record = cache.memory.records[layer, head]
            slots = memory._append[index][:count].astype(np.int64)
            assert record[REC_APPEND] == memory._append[index].ctypes.data
            assert slots.max() < record[REC_USED] <= group.table.limit
            rows = range(self.next, self.next + count)
            keys = [turned(layer, truth(0, layer, head, t), first + i) for i, t in enumerate(rows)]
            memory.keys(layer, head).write(slots, np.array(keys, np.float32))
            values = np.array([truth(1, layer, head, t) for t in rows], np.float32)
            memory.values(layer, head).write(slots, values)
            memory.mass[index, slots] = np.random.default_rng(self.next).random(count)
        ring = cache.memory.queries.ring
        ring[:] = np.random.default_rng(self.next).standard_normal(ring.shape)
        cache.advance(count)
        self.tokens += range(self.next, self.next + count)
        self.next += count

    def held(self):
        """Of each head the tokens that it holds, and their positions."""
        made = {}
        for group, _ in self.cache.evicting:
            for row, head in enumerate(group.heads):
                at = group.table.slots(row)
                pairs = group.table.tokens[row, at], group.table.positions[row, at]
                made[head] = dict(zip(*(part.tolist() for part in pairs), strict=True))
        return made

    def note(self, before, lowered):
        """Join what is not held any more with what was gone already, in float64."""
        after = self.held()
        for (layer, head), positions in before.items():
            n, key, value, latest = self.gone.get((layer, head), (0, np.zeros(D), np.zeros(D), -1))
            tokens = sorted(positions.keys() - after[layer, head].keys())
            told = [self.tokens[t] for t in tokens]
            keys = [
                turned(layer, truth(0, layer, head, one), positions[t])
                for t, one in zip(tokens, told, strict=True)
            ]
            if tokens:
                key = (n * key + np.sum(keys, axis=0)) / (n + len(tokens))
                values = [truth(1, layer, head, one).astype(np.float64) for one in told]
                value = (n * value + np.sum(values, axis=0)) / (n + len(tokens))
            n, latest = min(n + len(tokens), 512), max([latest, *tokens])
            if lowered and SPEC.layers[layer].rope >= 0:
                f = inv_freq(SPEC.ropes[SPEC.layers[layer].rope], SPEC.context_tokens)
                key = reference.rope(key[None, None], np.array([-lowered]), f)[0, 0]
            self.gone[layer, head] = n, key, value, latest

    def truncate(self, length):
        if self.cache.truncate(length):
            del self.tokens[length:]
            for group, _ in self.cache.evicting:
                if max(self.gone.get(head, (-1,))[-1] for head in group.heads) >= length:
                    for head in group.heads:
                        self.gone.pop(head, None)
            return True
        return False

    def check(self):
        cache = self.cache
        assert cache.length_tokens == len(self.tokens)
        assert cache.position <= SPEC.context_tokens
        always = set(range(min(len(self.tokens), cache.sinks)))
        heads = [(*pair, *row) for pair in cache.evicting for row in enumerate(pair[0].heads)]
        assert len(heads) == len(FULL_LAYERS) * KH
        for group, memory, index, (layer, head) in heads:
            table = group.table
            at = table.slots(index)
            which, positions = table.tokens[index, at], table.positions[index, at]
            assert len(set(which.tolist())) == len(which) == table.held[index]
            assert always <= set(which.tolist())
            order = np.argsort(which)
            assert (np.diff(positions[order]) > 0).all()
            assert not len(at) or positions.max() < cache.position
            keys = memory.keys(layer, head).read(at)
            values = memory.values(layer, head).read(at)
            for key, value, t, p in zip(keys, values, which, positions, strict=True):
                told = self.tokens[t]
                np.testing.assert_allclose(
                    key, turned(layer, truth(0, layer, head, told), p), atol=2e-4
                )
                np.testing.assert_array_equal(value, truth(1, layer, head, told))
            self.check_rest(memory, layer, head)

    def check_rest(self, memory, layer, head):
        assert (memory.rests is not None) == self.cache.bounds.apart
        if memory.rests is None:
            return
        n, key, value = memory.rest(layer, head).read()
        expected = self.gone.get((layer, head), (0, np.zeros(D), np.zeros(D), -1))
        assert n == expected[0]
        self.most_gone = max(n, self.most_gone)
        if n:
            np.testing.assert_allclose(key, expected[1], atol=1e-4)
            np.testing.assert_allclose(value, expected[2], atol=1e-5)


# Of the heads of FULL_LAYERS, one in the middle looks for things.
SCORES = {(layer, head): float((layer, head) == (2, 1)) for layer in FULL_LAYERS for head in (0, 1)}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_any_order_of_operations(name):
    _operate(Driver(name), np.random.default_rng(len(name)))


def test_any_order_of_operations_where_heads_differ(monkeypatch):
    assert not Driver("recall", 128, SCORES).cache.bounds.tiers  # too few heads
    monkeypatch.setattr(bounds, "FEWEST_HEADS", 2)
    driver = Driver("recall", 128, SCORES)
    sizes = [(group.table.limit, group.heads) for group, _ in driver.cache.evicting]
    assert sizes == [(64, [(0, 0), (0, 1), (2, 0), (3, 0), (3, 1)]), (192, [(2, 1)])]
    _operate(driver, np.random.default_rng(5))
    assert driver.most_gone > 50
    other = Driver("recall", 128, {**SCORES, (2, 1): 0.0, (0, 1): 1.0})
    with pytest.raises(SessionError, match="more slots for other heads"):
        other.cache.load(driver.cache.save())


def test_of_few_heads_those_that_find_nothing_are_narrow():
    def made(scores):
        found = bounds.Bounds.of_slots(POLICIES["recall"], 512, 512, scores, 4096)
        return [(tier.slots, len(tier.heads)) for tier in found.tiers], found.recent, found.around

    scores = {(5, 0): 1.139, (11, 0): 0.419, (17, 0): 0.132}  # of gemma-3-270m
    assert bounds.wide_heads(scores) == ((5, 0), (11, 0))
    assert made(scores) == ([(256, 1), (640, 2)], 170, 2)
    for one in (0.13, 1.0):  # most find nothing, or none
        assert made({**scores, (11, 0): one, (17, 0): one}) == ([], 170, 2)
    assert made(dict.fromkeys(scores, -0.1)) == ([], 170, 2)
    many = {(layer, 0): float(layer < 2) for layer in range(10)}
    assert made(many) == ([(256, 8), (1536, 2)], 96, 0)


def _operate(driver, rng):
    saved = None
    nbytes = driver.cache.nbytes
    for step in range(80):
        if step % 10 == 9:
            driver.check()
        what = rng.random()
        if what < 0.7:
            driver.append(int(rng.integers(1, driver.cache.block_tokens + 1)))
        elif what < 0.8:
            driver.truncate(max(0, len(driver.tokens) - int(rng.integers(0, 12))))
        elif what < 0.88:
            saved = driver.cache.save(), list(driver.tokens), dict(driver.gone)
        elif what < 0.96 and saved is not None:
            driver.cache.load(saved[0])
            driver.tokens, driver.gone = list(saved[1]), dict(saved[2])
        elif what > 0.985:
            driver.cache.clear()
            driver.tokens.clear()
            driver.gone.clear()
        assert driver.cache.nbytes == nbytes
    driver.append(1)
    driver.check()


def test_a_long_conversation():
    driver = Driver("retain", slots=128)
    for i in range(60):
        driver.append(8)
        if i % 12 == 11:
            driver.check()


@pytest.mark.parametrize("pinned", [0, 40])
def test_few_tokens_from_far_back_stay_where_heads_differ(monkeypatch, pinned):
    """Narrow heads look back as far as there are slots on average, wide ones six times that."""
    monkeypatch.setattr(bounds, "FEWEST_HEADS", 2)
    found, evict = {False: [], True: []}, Eviction.evict

    def counted(self, group, memory, log, length, position):
        def far():
            front = max(4, pinned) if group.wide else 4
            back = min(position, 6 * 128 if group.wide else 128)
            tokens = (group.table.tokens[row, group.table.slots(row)] for row in range(rows))
            return [((at >= front) & (at < length - back)).sum() for at in tokens]

        rows = group.table.rows
        before = far()
        evict(self, group, memory, log, length, position)
        found[group.wide].append((max(before), max(far()), group.table.limit // 16))

    monkeypatch.setattr(Eviction, "evict", counted)
    driver = Driver("recall", 128, SCORES)
    driver.cache.pin(pinned)
    for _ in range(120):
        driver.append(8)
    driver.check()
    for evictions in found.values():
        assert all(after <= most for _, after, most in evictions)
        assert any(before > most for before, _, most in evictions)


def test_old_tokens_stay_where_heads_are_alike():
    driver = Driver("retain", 128)
    for _ in range(60):
        driver.append(15)
    table = driver.cache.chosen.table
    tokens = table.tokens[0, table.slots(0)]
    assert (tokens < len(driver.tokens) - SPEC.context_tokens).sum() > 20


def test_pinned_tokens_stay():
    driver = Driver("h2o")
    driver.cache.pin(20)
    for _ in range(40):
        driver.append(7)
    table = driver.cache.chosen.table
    for index in range(table.rows):
        assert set(range(20)) <= set(table.tokens[index, table.slots(index)])
    driver.check()


def test_narrow_heads_keep_sinks_whatever_is_pinned(monkeypatch):
    """A narrow head has no room for what is pinned beside what it chooses; a wide one keeps it."""
    monkeypatch.setattr(bounds, "FEWEST_HEADS", 2)
    driver = Driver("recall", 128, SCORES)
    driver.cache.pin(60)
    for _ in range(40):
        driver.append(7)
    driver.check()
    narrow, wide = (group for group, _ in driver.cache.evicting)
    assert set(range(60)) <= set(wide.table.tokens[0, wide.table.slots(0)])
    latest = range(len(driver.tokens) - driver.cache.recent_tokens, len(driver.tokens))
    for row in range(narrow.table.rows):
        kept = set(narrow.table.tokens[row, narrow.table.slots(row)].tolist())
        assert set(range(4)) | set(latest) <= kept
        assert len(kept & set(range(4, 60))) < 40


def forged(state, kind, dtype, change):
    """The state with a section's numbers changed; its bytes stay as many."""
    made = CacheState(state.block.copy())
    change(made.section(kind, dtype))
    return made


INFINITE = int(np.array(np.inf).view(np.int64))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("length", -1, "length -1"),
        ("length", 1 << 62, "length"),
        ("length", 15, "contradict"),
        ("shift", 10**9, "shift"),
        ("shift", 3, "out of range"),
        ("valid", 33, "contradict"),
        ("new", -1, "contradict"),
        ("queries", -1, "queries"),
        ("dropped", INFINITE, "contradict"),
        ("dropped", -1, "contradict"),  # not a number
        ("pinned_tokens", 40, "pinned_tokens"),
    ],
)
def test_states_that_cannot_be_are_refused(name, value, message):
    driver = Driver("tova")
    driver.append(8)
    driver.append(8)

    def change(numbers):
        numbers[COUNTERS.index(name)] = value

    bad = forged(driver.cache.save(), block.COUNTERS, np.int64, change)
    with pytest.raises(SessionError, match=message):
        driver.cache.load(bad)
    driver.check()


def table_with(at, value):
    def change(numbers):
        numbers[at] = value

    return change


@pytest.mark.parametrize(
    ("kind", "dtype", "at", "value"),
    [
        (block.TABLE, np.int32, 0, 9),  # another count
        (block.TABLE, np.int32, 0, -1),
        (block.TABLE, np.int32, 6, 64),  # a slot beyond the last one
        (block.TABLE, np.int32, 6, 1),  # one slot twice
        (block.TABLE, np.int32, -1, 10**6),  # a position that was never given
        (block.TABLE, np.int32, -1, -1),
        (block.TABLE, np.int32, -2, 7),  # one position twice
        (block.MASS, np.float32, 3, np.nan),
        (block.MASS, np.float32, 3, -1.0),
        (block.QUERIES, np.float32, 5, np.inf),
    ],
)
def test_wild_slots_are_refused(kind, dtype, at, value):
    driver = Driver("tova")
    driver.append(8)
    bad = forged(driver.cache.save(), kind, dtype, table_with(at, value))
    with pytest.raises(SessionError, match="damaged"):
        driver.cache.load(bad)
    driver.check()


@pytest.fixture
def unequal(monkeypatch):
    """A cache with narrow and wide heads that has evicted."""
    monkeypatch.setattr(bounds, "FEWEST_HEADS", 2)
    driver = Driver("recall", 128, SCORES)
    for _ in range(20):
        driver.append(8)
    driver.check()
    assert driver.most_gone > 50
    return driver


def test_a_branch_has_rests_of_its_own(unequal):
    branch, driver = Driver("recall", 128, SCORES), unequal
    branch.cache = driver.cache.fork()
    branch.tokens, branch.gone, branch.next = list(driver.tokens), dict(driver.gone), driver.next
    for _ in range(6):
        branch.append(8)
    driver.check()
    branch.check()
    assert branch.most_gone > driver.most_gone
    driver.cache.adopt(branch.cache)
    driver.tokens, driver.gone = branch.tokens, branch.gone
    driver.check()
    driver.cache.clear()
    assert not any(memory.rests.any() for _, memory in driver.cache.evicting)


def test_a_state_from_before_there_were_rests(unequal):
    state = unequal.cache.save()
    parts = [(kind, i, state.section(kind, np.uint8, i)) for kind, i in sorted(state.sections)]
    old = CacheState.of(state.shape, [part for part in parts if part[0] not in (1, block.REST)])
    assert len(old.sections) == len(state.sections) - 2
    unequal.cache.load(old)
    unequal.gone.clear()
    unequal.check()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 513.0])
@pytest.mark.parametrize("at", [0, 20])
def test_wild_rests_are_refused(unequal, at, value):
    bad = forged(unequal.cache.save(), block.REST, np.float32, table_with(at, value))
    if at and np.isfinite(value):
        unequal.cache.load(bad)  # a mean may be anything
        return
    with pytest.raises(SessionError, match=r"rests .*damaged"):
        unequal.cache.load(bad)
    unequal.check()


def test_blocks_that_are_cut_or_bent_are_refused():
    """Every cut and every changed byte of the head, whatever a hash would say."""
    driver = Driver("retain")
    driver.append(8)
    state = driver.cache.save()
    whole, head = state.block, 24 + 32 * len(state.sections)
    for size in (0, 7, 23, 24, head - 1, head, len(whole) // 2, len(whole) - 1):
        with pytest.raises(SessionError):
            CacheState(whole[:size])
    with pytest.raises(SessionError):
        CacheState(np.concatenate([whole, whole[:1]]))
    for at in range(head):
        bad = whole.copy()
        bad[at] ^= 1 << at % 8
        with pytest.raises(SessionError):
            driver.cache.load(CacheState(bad))
    old = whole.copy()
    old[8] = 1
    with pytest.raises(SessionError, match="version 1, this edgetok reads 3"):
        CacheState(old)
    driver.check()


def test_states_of_another_shape_are_refused():
    driver, other = Driver("retain"), Driver("h2o")
    driver.append(8)
    with pytest.raises(SessionError, match="the policy retain, this cache has the policy h2o"):
        other.cache.load(driver.cache.save())
    driver.check()


def test_the_mean_rotation_is_the_mean_of_rotations():
    rotations = Driver("retain").cache.eviction._rotations
    ahead = np.array([3, 40, 41, 170])
    eye = np.eye(D, dtype=np.float32)
    for rope in (-1, 0, 1):
        each = [rotations.rotate(rope, eye, np.full(D, p), scaled=True) for p in ahead]
        mean = rotations.mean(rope, ahead, head_dim=D)
        np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("mixers", "windows", "named"),
    [
        ((), (0,), "for this model: 64 tokens a head need 2,000;"),
        ((), (16, 0), "for this model: its windows and 64 tokens"),
        ((3,), (0,), "its recurrent states with their snapshots and 64 tokens"),
        ((3,), (16, 0), "its windows, recurrent states with their snapshots and 64 tokens"),
    ],
)
def test_a_budget_that_is_too_small_names_what_takes_it(mixers, windows, named):
    made = [LayerSpec(window=window) for window in windows]
    made += [LayerSpec(mixer=ShortConvolution(taps=taps)) for taps in mixers]
    spec = replace(SPEC, layers=tuple(made))
    limits = CacheLimits(budget_bytes=1000)
    with pytest.raises(OptionError, match=re.escape(named)):
        bounds.bounds_for(spec, limits, 256, block_tokens=16, bytes_of=lambda _: 2000)
