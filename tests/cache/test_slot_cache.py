"""The CPU cache's bookkeeping against a plain list of which position each slot holds."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

from edgetok.errors import OptionError
from edgetok.kernels_cpu.attention.launch import (
    EMPTY,
    REC_APPEND,
    REC_PAGES,
    REC_POSITIONS,
    REC_USED,
    SLOT_TILE,
)
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec
from edgetok.runtime.cpu.cache_memory import CacheStore, new_cache


def spec(*windows):
    return DecoderSpec(
        family="test",
        vocab_size=11,
        hidden_size=8,
        intermediate_size=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=24,
        layers=tuple(LayerSpec(window=w) for w in windows),
        ropes=(RopeSpec(theta=1e4, rotary_dim=8),),
        context_tokens=64,
        norm_eps=1e-5,
        attn_scale=0.4,
    )


def make(*windows, capacity=1000, kv_bits=8, block=16):
    return new_cache(
        spec(*windows), CacheStore(1), capacity_tokens=capacity, kv_bits=kv_bits, block_tokens=block
    )


def ints(address, count):
    return np.ctypeslib.as_array((ctypes.c_int32 * count).from_address(int(address)))


def longs(address, count):
    return list((ctypes.c_int64 * count).from_address(int(address)))


def held(cache, layer):
    """Positions that a layer's slots hold, read through the record as kernels read it."""
    record = cache.memory.records[layer, 0]
    positions = ints(record[REC_POSITIONS], record[REC_USED])
    return sorted(int(p) for p in positions if p != EMPTY)


def append(cache, tokens, block=16):
    while tokens:
        count = min(tokens, block)
        cache.begin(count)
        cache.advance(count)
        tokens -= count


@pytest.mark.parametrize(
    ("kv_bits", "slot_bytes"), [(4, 2 * (16 + 4)), (8, 2 * (32 + 4)), (16, 128), (32, 256)]
)
def test_bytes_are_those_of_the_slots(kv_bits, slot_bytes):
    """24 dims are rounded up to 32; two heads; positions, tokens and slot numbers come on top."""
    cache = make(0, 0, 0, capacity=1024, kv_bits=kv_bits)
    slots = 3 * 2 * 1024 * slot_bytes
    assert slots <= cache.nbytes <= slots + 1024 * 8 + 16 * 4 + 3 * 2 * 64 + 1024


def test_a_step_over_two_devices_reads_the_slots_of_both():
    """Two heads of 24 dims, rounded up to 32, as float16: keys and values take 256 bytes."""
    first, cache = make(0, kv_bits=16), make(0, 0, kv_bits=16)
    cache.before = first
    for half in (first, cache):
        append(half, 500)
    slots = 3 * 500 * 256
    assert slots <= cache.read_bytes <= 1.1 * slots  # positions and numbers of slots come on top
    assert slots // 3 <= first.read_bytes <= 1.1 * slots / 3


def test_windows_have_exactly_their_ring():
    cache = make(0, 100, 0, 40, capacity=1000, block=16)
    ring = lambda wanted: -(-wanted // SLOT_TILE) * SLOT_TILE  # noqa: E731
    append(cache, 1000)
    assert [int(r[0, REC_USED]) for r in cache.memory.records] == [1000, ring(115), 1000, ring(55)]
    assert held(cache, 0) == list(range(1000))
    assert held(cache, 1) == list(range(1000 - ring(115), 1000))
    assert held(cache, 3) == list(range(1000 - ring(55), 1000))
    # No layer's record points at another's: one chunk size, one list of slots for each ring.
    assert cache.memory.records[0, 0, REC_APPEND] == cache.memory.records[2, 1, REC_APPEND]
    assert cache.memory.records[1, 0, REC_APPEND] != cache.memory.records[3, 0, REC_APPEND]


def test_no_two_slots_overlap():
    cache = make(0, 7, capacity=70)
    append(cache, 70)
    places = []
    for layer, slots in ((0, 128), (1, 64)):
        for head in range(2):
            record = cache.memory.records[layer, head]
            keys, values, key_scales, value_scales = longs(record[REC_PAGES], 4)
            places += [(keys, slots * 32), (values, slots * 32)]
            places += [(key_scales, 4 * slots), (value_scales, 4 * slots)]
        places.append((int(cache.memory.records[layer, 0, REC_POSITIONS]), 4 * slots))
    places.sort()
    for (a, size), (b, _) in itertools.pairwise(places):
        assert a + size <= b
    assert sum(size for _, size in places) <= cache.held_bytes <= cache.nbytes


def test_truncate_where_nothing_was_overwritten():
    cache = make(0, 30, capacity=200, block=8)
    append(cache, 60, block=8)
    assert cache.truncate(50)
    assert cache.length_tokens == 50
    assert held(cache, 0) == list(range(50))
    assert held(cache, 1) == list(range(50))
    assert cache.truncate(50)
    append(cache, 3)
    assert held(cache, 1) == list(range(53))


def test_truncate_within_a_ring():
    cache = make(20, capacity=1000, block=8)  # 27 slots, so 64
    append(cache, 500, block=8)
    assert held(cache, 0) == list(range(436, 500))
    # The token at 455 would see 436..454 and itself: all there. The one at 454 would see 435.
    assert not cache.truncate(454)
    assert cache.length_tokens == 500
    assert held(cache, 0) == list(range(436, 500))
    assert cache.truncate(455)
    assert held(cache, 0) == list(range(436, 455))
    append(cache, 3)
    assert held(cache, 0) == list(range(436, 458))
    assert not cache.truncate(20)
    assert cache.truncate(0)
    assert held(cache, 0) == []


def test_truncating_twice_within_a_ring_knows_what_the_first_dropped():
    cache = make(20, capacity=1000, block=8)
    append(cache, 500, block=8)
    assert cache.truncate(460)
    assert not cache.truncate(450)
    assert cache.truncate(457)
    assert held(cache, 0) == list(range(436, 457))


def test_clear():
    cache = make(0, 5)
    append(cache, 100)
    cache.clear()
    assert cache.length_tokens == 0
    assert held(cache, 0) == held(cache, 1) == []


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_append_and_truncate(seed):
    """What a window needs is there, whatever happened before; checked against a list."""
    rng = np.random.default_rng(seed)
    windows = (0, 9, 70)
    cache, tokens = make(*windows, capacity=2000, block=8), 0
    for _ in range(200):
        if rng.random() < 0.7 and tokens < 1900:
            count = int(rng.integers(1, 9))
            append(cache, count)
            tokens += count
        else:
            length = int(rng.integers(max(0, tokens - 30), tokens + 1))
            if cache.truncate(length):
                tokens = length
        assert cache.length_tokens == tokens
        for layer, window in enumerate(windows):
            present = held(cache, layer)
            assert not present or present[-1] < tokens
            needed = range(max(0, tokens - window + 1) if window else 0, tokens)
            assert set(needed) <= set(present)
            assert len(present) == len(set(present))


def test_sizes_out_of_range():
    for capacity in (0, -5, 2.5, True):
        with pytest.raises(OptionError, match="expected a whole number from 1"):
            make(0, capacity=capacity)
    for capacity in (1 << 40, 1 << 62, 10**30):
        with pytest.raises(OptionError, match="more than can be addressed"):
            make(0, capacity=capacity)
    with pytest.raises(OptionError, match="kv_bits is 6"):
        make(0, kv_bits=6)
    cache = make(0)
    for length in (-1, 1):
        with pytest.raises(OptionError, match="cannot keep"):
            cache.truncate(length)
