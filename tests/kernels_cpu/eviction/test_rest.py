"""What evicted tokens leave: their mean key and value, by kernel against NumPy in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.attention.launch import (
    REST_KEY,
    REST_TOKENS,
    padded_head_dim,
    rest_floats,
)
from edgetok.runtime.cpu.stored_rows import HeadRest
from tests.kernels_cpu.eviction.test_eviction import KINDS, SHAPES, Cache, evictor


def with_rests(guard, cache):
    rests = guard(np.zeros((cache.heads.count, rest_floats(cache.dims, cache.bits)), np.float32))
    return replace(cache.heads, rests=rests)


def rest_of(cache, heads, head):
    constants = cache.rows[head, 0][0]._constants
    return HeadRest(heads.rests[head], cache.dims, cache.bits, constants)


@pytest.mark.parametrize(("kv_bits", "constants"), KINDS)
@pytest.mark.parametrize(("heads", "slots", "dims", "page_slots"), SHAPES)
def test_means_of_what_is_gone(
    each_kernels, guard, kv_bits, constants, heads, slots, dims, page_slots
):
    rng = np.random.default_rng(7)
    cache = Cache(guard, rng, kv_bits, heads, slots, dims, page_slots, constants=constants)
    table = with_rests(guard, cache)
    run, gone = evictor(each_kernels, cache), []
    lists = [rng.permutation(cache.held(head)) for head in range(heads)]
    first = [np.sort(at[: len(at) // 3]) for at in lists]
    second = [np.sort(at[len(at) // 3 :]) for at in lists]
    second[-1] = second[-1][:0]  # a head that gives up nothing keeps its rest
    for slots_ in (first, second):
        run.join(table, slots_)
        gone.append(slots_)
    padded = padded_head_dim(dims, kv_bits)
    for head in range(heads):
        every = np.concatenate([slots_[head] for slots_ in gone])
        count, key, value = rest_of(cache, table, head).read()
        assert count == len(every) > 0
        keys, values = (cache.read(head, every, which).astype(np.float64) for which in (0, 1))
        scale = np.abs(keys).max() if not constants else np.abs(keys).max() + 10
        np.testing.assert_allclose(key, keys.mean(axis=0), atol=1e-5 * scale)
        np.testing.assert_allclose(value, values.mean(axis=0), atol=1e-5 * np.abs(values).max())
        rest = table.rests[head].copy()
        rest[0] = 0.0
        rest[REST_KEY : REST_KEY + dims] = rest[REST_KEY + padded : REST_KEY + padded + dims] = 0.0
        assert not rest.any()  # padding is left alone


def test_past_its_most_it_forgets(each_kernels, guard):
    """A running mean: what joins counts 1 / (REST_TOKENS + n) each."""
    cache = Cache(guard, np.random.default_rng(8), 32, 1, 320, 16, 256, fill=1.0)
    table, run = with_rests(guard, cache), evictor(each_kernels, cache)
    old, new = [np.arange(300)], [np.arange(300, 320)]
    run.join(table, old)
    assert rest_of(cache, table, 0).read()[0] == 300
    run.join(table, old)
    count, key, _ = rest_of(cache, table, 0).read()
    assert count == REST_TOKENS == 512
    keys = cache.read(0, np.arange(320), 0).astype(np.float64)
    np.testing.assert_allclose(key, keys[:300].mean(axis=0), rtol=1e-5, atol=1e-6)
    run.join(table, new)
    expected = (512 * keys[:300].mean(axis=0) + keys[300:].sum(axis=0)) / 532
    count, key, _ = rest_of(cache, table, 0).read()
    assert count == 512
    np.testing.assert_allclose(key, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kv_bits", "constants"), KINDS)
def test_mean_keys_are_rotated(each_kernels, guard, kv_bits, constants):
    dims = 64
    cache = Cache(guard, np.random.default_rng(9), kv_bits, 3, 64, dims, 64, constants=constants)
    run, pairs = evictor(each_kernels, cache), dims // 2
    frequencies = 10_000.0 ** (-np.arange(pairs) / pairs)
    table = replace(with_rests(guard, cache), frequencies=[frequencies, None, frequencies])
    run.join(table, [cache.held(0), cache.held(1), cache.held(2)[:0]])
    before = [rest_of(cache, table, head).read() for head in range(3)]
    nobody = guard(np.zeros((3, 64), np.int32))
    run.rotate(table, nobody, -300)
    angle = -300 * frequencies
    for head, (count, key, value) in enumerate(before):
        after = rest_of(cache, table, head).read()
        assert after[0] == count == (len(cache.held(head)) if head < 2 else 0)
        np.testing.assert_array_equal(after[2], value)
        expected = key.astype(np.float64)
        if head != 1:
            a, b = expected[:pairs], expected[pairs:]
            expected = np.concatenate(
                [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
            )
        np.testing.assert_allclose(after[1], expected, atol=3e-5 * (1 + np.abs(key).max()))
    run.rotate(table, nobody, 300)
    for head, (_, key, _) in enumerate(before):
        again = rest_of(cache, table, head).read()[1]
        np.testing.assert_allclose(again, key, atol=5e-5 * (1 + np.abs(key).max()))


def test_wrong_rests_are_refused(kernels, guard):
    cache = Cache(guard, np.random.default_rng(1), 8, 2, 64, 16, 64)
    run, table = evictor(kernels, cache), with_rests(guard, cache)
    nothing = [np.zeros(0, np.int64)] * 2
    with pytest.raises(ShapeError, match="heads without rests"):
        run.join(cache.heads, nothing)
    for bad in (table.rests[:1], table.rests[:, :-1], table.rests.astype(np.float64)):
        wrong = replace(table, rests=bad)
        with pytest.raises(ShapeError, match=r"rests are .*, expected float32 \(2, "):
            run.join(wrong, nothing)
        with pytest.raises(ShapeError, match=r"rests are .*, expected float32 \(2, "):
            run.rotate(replace(wrong, frequencies=[None] * 2), np.zeros((2, 64), np.int32))
    with pytest.raises(ShapeError, match="slots of 1 heads, expected 2"):
        run.join(table, nothing[:1])
    for slot in (-1, 64):
        with pytest.raises(ShapeError, match="slots beyond the 64"):
            run.join(table, [np.array([slot]), nothing[0]])
