"""Caches that evict by kernel against caches that evict with NumPy, on tiny models."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from edgetok.cache import bounds
from edgetok.cache.limits import CacheLimits
from edgetok.cache.policies.around import with_around
from edgetok.cache.policies.policy import POLICIES
from edgetok.cache.policies.shared import shared
from edgetok.cache.table import EMPTY
from edgetok.formats.layout import TensorFormat
from edgetok.kernels_cpu.program import loader
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.cpu.cache_memory import CacheStore, new_cache
from edgetok.runtime.cpu.head_eviction import HeadEviction
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact
from tests.tiny import VOCAB_SIZE

BITS = [4, 5, 8, 16, 32]
# Layers that see every token, alone and in a group beside one of windows.
FAMILIES = ["llama", "gemma3_text"]
SLOTS = 320  # a page and a shorter one
TRAINED = 512  # so that much is evicted before the first renumbering
CHUNK = 16
TOKENS = np.random.default_rng(8).integers(3, VOCAB_SIZE, 700).astype(np.int32)


@pytest.fixture
def load(tiny, tmp_path, kernel_cache):
    """A backend of a tiny model that was trained for TRAINED tokens."""
    opened = []

    def load(family, kv_bits):
        spec = replace(tiny(family, 16).spec, context_tokens=TRAINED)
        formats = uniform_formats(spec, TensorFormat(16, 32))
        folder = tmp_path / family
        write_artefact(folder, spec, random_tensors(spec), formats)
        backend = CpuBackend(
            folder, threads=2, kv_bits=kv_bits, cache_dir=kernel_cache, block_tokens=CHUNK
        )
        opened.append(backend)
        return backend

    yield load
    for backend in opened:
        backend.close()


def pair(backend, policy):
    """One cache that evicts by kernel, and one with NumPy."""
    kernel = backend.new_bounded_cache(SLOTS, CacheLimits(policy=policy))
    plain = new_cache(
        backend.spec,
        CacheStore(2),
        capacity_tokens=TRAINED,
        kv_bits=kernel.kv_bits,
        block_tokens=CHUNK,
        bounds=kernel.bounds,
    )
    assert kernel.memory.groups[0].eviction is not None
    assert plain.memory.groups[0].eviction is None

    def refuse(*_):
        raise AssertionError("scored or rotated with NumPy")

    kernel.eviction.view = kernel.eviction.rotate = refuse
    return kernel, plain


def keys_of(cache):
    """Keys of all heads, those that evict and those with a window: [tokens, D] as slots are."""
    made = []
    for group, memory in zip(cache.groups, cache.memory.groups, strict=True):
        kv_heads = range(cache.spec.kv_sizes(group.layers[0])[0])
        every = [(layer, head) for layer in group.layers for head in kv_heads]
        for row, head in enumerate(every):
            slots = group.table.slots(row if group is cache.chosen else 0)
            made.append(memory.keys(*head).read(slots))
    return made


def check_same_tables(one, other):
    for mine, theirs in zip(one.groups, other.groups, strict=True):
        np.testing.assert_array_equal(mine.table.positions, theirs.table.positions)
        held = mine.table.positions != EMPTY
        np.testing.assert_array_equal(mine.table.tokens[held], theirs.table.tokens[held])
        np.testing.assert_array_equal(mine.table.held, theirs.table.held)
        np.testing.assert_array_equal(mine.table.used, theirs.table.used)
    assert one.chosen.forgotten_to == other.chosen.forgotten_to
    assert one.position == other.position


def without_room(before, after, shift):
    """Check the positions of heads that evict; returns how many tokens could not be lowered."""
    old, table, pressed = before.chosen.table, after.chosen.table, 0
    for row in range(table.rows):
        slots = table.slots(row)
        slots = slots[table.tokens[row, slots] < before.length_tokens]
        slots = slots[old.positions[row, slots].argsort()]
        for rank, slot in enumerate(slots.tolist()):
            lowered = old.positions[row, slot] - shift
            if table.positions[row, slot] != lowered:
                assert table.positions[row, slot] == rank > lowered
                pressed += 1
    return pressed


@pytest.mark.parametrize("kv_bits", BITS)
@pytest.mark.parametrize("policy", ["retain", "window"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_slots_are_evicted(load, family, policy, kv_bits):
    backend = load(family, kv_bits)
    kernel, plain = pair(backend, policy)
    for cache in (kernel, plain):
        cache.pin(9)
    evicted, end = 0, 0
    while end + CHUNK <= TRAINED:
        tokens = TOKENS[end : end + (CHUNK if end % 3 else 1)]
        got, expected = (backend.forward(cache, tokens).copy() for cache in (kernel, plain))
        end += len(tokens)
        evicted += kernel.retained < end
        check_same_tables(kernel, plain)
        np.testing.assert_array_equal(got, expected)
        assert kernel.loss == plain.loss
    assert evicted > 5
    assert kernel.loss > 0.0
    different = {tuple(np.sort(row[row != EMPTY])) for row in kernel.chosen.table.positions}
    assert len(different) == (1 if policy == "window" else kernel.chosen.table.rows)

    # Renumbering, of a fork whose pages are the original's until then.
    before = keys_of(kernel)
    caches = [kernel.fork(), plain.fork()]
    for cache in caches:
        cache.reserve(CHUNK)
        cache.begin(CHUNK)
    check_same_tables(*caches)
    shift = kernel.position - TRAINED * 3 // 4
    assert caches[0].position == kernel.position - shift
    assert shift > 0
    assert without_room(kernel, caches[0], shift) > 0
    for mine, theirs in zip(*map(keys_of, caches), strict=True):
        held = np.abs(theirs).max(axis=1, keepdims=True)
        # The same but for codes that lay between two.
        assert (np.abs(mine - theirs) > 1e-5 * held).mean() < 0.01
    for mine, old in zip(keys_of(kernel), before, strict=True):
        np.testing.assert_array_equal(mine, old)


@pytest.mark.parametrize("held", [False, True])
def test_windows_are_rotated_in_a_step_and_outside(load, held):
    """Who truncates a cache has not the team's turn, which a step has."""
    backend = load("gemma3_text", 8)
    kernel, plain = pair(backend, "retain")
    for cache in (kernel, plain):
        for begin in range(0, 200, CHUNK):
            backend.forward(cache, TOKENS[begin : begin + CHUNK])
    group, before = kernel.groups[1], keys_of(kernel)
    assert group.window
    with backend._team.turn if held else nullcontext():
        for cache in (kernel, plain):
            cache.eviction.lower(cache.groups[1], cache.memory.groups[1], 100)
    check_same_tables(kernel, plain)
    windows = slice(len(kernel.chosen.heads), None)
    for mine, theirs in zip(*map(keys_of, (kernel, plain)), strict=True):
        largest = np.abs(theirs).max(axis=1, keepdims=True)
        assert (np.abs(mine - theirs) > 1e-5 * largest).mean() < 0.02
        assert mine.shape == theirs.shape
    for mine, old in zip(keys_of(kernel)[windows], before[windows], strict=True):
        assert (np.abs(mine - old) > 0.1).mean() > 0.3


@pytest.mark.parametrize("kv_bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_content_evicts_the_lowest(load, monkeypatch, family, kv_bits):
    """Scores, not slots: equal tokens have equal contents in the first layer, but for rounding."""
    backend = load(family, kv_bits)
    check_lowest(
        backend, backend.new_bounded_cache(SLOTS, CacheLimits(policy="content")), monkeypatch
    )


@pytest.mark.parametrize("kv_bits", [8, 32])
def test_recall_evicts_the_lowest_of_each_head(load, monkeypatch, kv_bits):
    monkeypatch.setattr(bounds, "FEWEST_HEADS", 2)
    backend = load("llama", kv_bits)
    spec = backend.spec
    every = [(layer, head) for layer in spec.attention_layers for head in range(spec.num_kv_heads)]
    backend._head_scores = {head: float(head == every[-2]) for head in every}
    cache = backend.new_bounded_cache(128, CacheLimits(policy="recall"))
    assert [group.heads for group, _ in cache.evicting] == [
        [*every[:-2], every[-1]],
        [every[-2]],
    ]
    check_lowest(backend, cache, monkeypatch)


def check_lowest(backend, cache, monkeypatch):
    rounding, evictions = 1e-4, []
    view, by_kernel = cache.eviction.view, HeadEviction.lowest

    def compared(self, policy, frequencies, *, room, front, recent, around, far, most_far, share):
        gone = by_kernel(
            self, policy, frequencies, room=room, front=front, recent=recent, around=around,
            far=far, most_far=most_far, share=share,
        )  # fmt: skip
        assert around == (2 if policy == "content" and not cache.bounds.tiers else 0)
        table = self._table
        group, memory = next(pair for pair in cache.evicting if pair[0].table is table)
        assert room == table.limit - CHUNK
        assert share == (group.wide and cache.bounds.apart)
        back = min(cache.position, (6 if group.wide else 1) * cache.slots)
        assert far == (cache.length_tokens - back if len(cache.evicting) == 2 else 0)
        assert most_far == table.limit // 16
        assert group.wide == (len(cache.evicting) == 2 and group is cache.evicting[1][0])
        scores, log, length = [], cache.memory.queries, cache.length_tokens
        every = [table.slots(row) for row in range(table.rows)]
        for row, at in enumerate(every):
            head = view(group, memory, log, row, at, length, cache.position)
            scores.append(np.asarray(POLICIES[policy].score(head), np.float32))
        if share:
            held = [table.tokens[row, at] for row, at in enumerate(every)]
            scores = shared(scores, held)
        for row, (slots, score) in enumerate(zip(gone, scores, strict=True)):
            at = every[row]
            seen = table.tokens[row, at]
            order = np.argsort(seen)
            score[order] = with_around(score[order], around)
            evicted, always = np.isin(at, slots), (seen < front) | (seen >= recent)
            beyond = (seen < far) & ~always
            assert len(slots) == max(0, len(at) - room, beyond.sum() - most_far)
            if not len(slots):
                continue
            assert not (evicted & always).any()
            assert (beyond & ~evicted).sum() <= most_far
            for some in (beyond, ~beyond & ~always):
                if (some & evicted).any() and (some & ~evicted).any():
                    lowest_kept = score[some & ~evicted].min()
                    assert score[some & evicted].max() <= lowest_kept * (1 + rounding)
        evictions.append(cache.position)
        return gone

    monkeypatch.setattr(HeadEviction, "lowest", compared)
    for begin in range(0, len(TOKENS), CHUNK):
        backend.forward(cache, TOKENS[begin : begin + CHUNK])
    assert len(evictions) > 5
    assert max(evictions) > evictions[-1]  # renumbered in between


def test_kernels_come_with_the_first_bounded_cache(load, monkeypatch):
    loaded, real = [], loader.load

    def noting(*args, modules, **options):
        loaded.append([name for name in modules if name.startswith("eviction.")])
        return real(*args, modules=modules, **options)

    monkeypatch.setattr(loader, "load", noting)
    backend = load("llama", 8)
    backend.forward(backend.new_cache(64), TOKENS[:20])
    assert loaded == [[]]
    for _ in range(2):
        backend.new_bounded_cache(SLOTS, CacheLimits(policy="h2o"))
        assert loaded == [[], ["eviction.choose", "eviction.renumber", "eviction.int8"]]
