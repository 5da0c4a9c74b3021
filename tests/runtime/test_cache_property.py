"""Random appends, cuts, branches and copies of bounded caches against a plain NumPy cache.

No kernel runs: keys and values are written as `kv_append` would, so that what every slot must hold
is known, at whatever position and place it ended up.
"""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.cache.policies.policy import POLICIES
from edgetok.cache.state import CacheState
from edgetok.errors import SessionError
from edgetok.kernels_cpu import reference
from edgetok.kernels_cpu.attention.launch import REC_APPEND, REC_USED
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec, inv_freq
from edgetok.runtime.cpu.compact_cache import CompactKVCache
from edgetok.runtime.cpu.sizes import Bounds

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

    def __init__(self, name, slots=64):
        bounds = Bounds.of_slots(POLICIES[name], slots, 32)
        self.cache = CompactKVCache(SPEC, bounds, kv_bits=32, threads=1)
        self.tokens = []
        self.next = 0

    def append(self, count):
        cache = self.cache
        first = cache.begin(count)
        for index, (layer, head) in enumerate(cache._heads):
            record = cache.records[layer, head]
            slots = cache._append[index][:count]
            assert record[REC_APPEND] == cache._append[index].ctypes.data
            assert slots.max() < record[REC_USED] <= cache._pool.size[index]
            at = cache._pool.start[index] + slots
            rows = range(self.next, self.next + count)
            keys = [turned(layer, truth(0, layer, head, t), first + i) for i, t in enumerate(rows)]
            cache._pool.keys.write(at, np.array(keys, np.float32))
            values = np.array([truth(1, layer, head, t) for t in rows], np.float32)
            cache._pool._values.view(np.float32).reshape(cache._pool.slots, -1)[at, :D] = values
            cache._pool.mass[at] = np.random.default_rng(self.next).random(count)
        cache._log.ring[:] = np.random.default_rng(self.next).standard_normal(cache._log.ring.shape)
        cache.advance(count)
        self.tokens += range(self.next, self.next + count)
        self.next += count

    def truncate(self, length):
        if self.cache.truncate(length):
            del self.tokens[length:]
            return True
        return False

    def check(self):
        cache = self.cache
        assert cache.length_tokens == len(self.tokens)
        assert cache.position <= SPEC.context_tokens
        always = set(range(min(len(self.tokens), cache.sinks)))
        assert int(cache._pool.size.sum()) == cache._pool.slots
        for index, (layer, head) in enumerate(cache._heads):
            at = cache._pool.held(index)
            which, positions = cache._pool.tokens[at], cache._pool.positions[at]
            assert len(set(which.tolist())) == len(which) == cache._held[index]
            assert always <= set(which.tolist())
            order = np.argsort(which)
            assert (np.diff(positions[order]) > 0).all()
            assert not len(at) or positions.max() < cache.position
            keys, values = cache._pool.keys.read(at), cache._pool.values(at)
            for key, value, t, p in zip(keys, values, which, positions, strict=True):
                told = self.tokens[t]
                np.testing.assert_allclose(
                    key, turned(layer, truth(0, layer, head, told), p), atol=2e-4
                )
                np.testing.assert_array_equal(value, truth(1, layer, head, told))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_any_order_of_operations(name):
    rng = np.random.default_rng(len(name))
    driver, saved = Driver(name), None
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
            saved = driver.cache.save(), list(driver.tokens)
        elif what < 0.96 and saved is not None:
            driver.cache.load(saved[0])
            driver.tokens = list(saved[1])
        elif what > 0.985:
            driver.cache.clear()
            driver.tokens.clear()
        assert driver.cache.nbytes == nbytes
    driver.append(1)
    driver.check()


def test_a_long_conversation():
    driver = Driver("retain", slots=128)
    for i in range(60):
        driver.append(8)
        if i % 12 == 11:
            driver.check()


def test_pinned_tokens_stay():
    driver = Driver("h2o")
    driver.cache.pin(20)
    for _ in range(40):
        driver.append(7)
    for index in range(len(driver.cache._heads)):
        assert set(range(20)) <= set(driver.cache._pool.tokens[driver.cache._pool.held(index)])
    driver.check()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("length", -1, "length -1"),
        ("length", "9", "length '9'"),
        ("shift", 10**9, "shift"),
        ("queries", [1, 33, 0], "contradict"),
        ("dropped", float("inf"), "contradict"),
        ("pinned_tokens", 40, "pinned_tokens"),
    ],
)
def test_states_that_cannot_be_are_refused(name, value, message):
    driver = Driver("retain")
    driver.append(8)
    driver.append(8)
    state = driver.cache.save()
    bad = CacheState(shape=state.shape, numbers=state.numbers | {name: value}, memory=state.memory)
    with pytest.raises(SessionError, match=message):
        driver.cache.load(bad)
    driver.check()


def test_states_of_another_shape_or_with_wild_slots_are_refused():
    driver, other = Driver("retain"), Driver("h2o")
    driver.append(8)
    state = driver.cache.save()
    with pytest.raises(SessionError, match="policy 'retain', this one 'h2o'"):
        other.cache.load(state)
    wild = state.memory[0].copy()
    at = driver.cache._pool.positions.ctypes.data - driver.cache._memory.ctypes.data
    wild[at : at + 4].view(np.int32)[:] = 10**6
    bad = CacheState(shape=state.shape, numbers=state.numbers, memory=(wild, state.memory[1]))
    with pytest.raises(SessionError, match="cannot be"):
        driver.cache.load(bad)
    driver.check()


def test_the_mean_rotation_is_the_mean_of_rotations():
    turns = Driver("retain").cache._rotations
    ahead = np.array([3, 40, 41, 170])
    eye = np.eye(D, dtype=np.float32)
    for rope in (-1, 0, 1):
        each = [turns.turn(rope, eye, np.full(D, p), scaled=True) for p in ahead]
        np.testing.assert_allclose(turns.mean(rope, ahead), np.mean(each, axis=0), atol=1e-6)
