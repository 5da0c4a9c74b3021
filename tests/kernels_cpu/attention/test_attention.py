"""Cache and attention against NumPy in float64: every instruction set, slots in any order."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference
from edgetok.kernels_cpu.attention import launch
from edgetok.kernels_cpu.program.tables import table
from edgetok.runtime.cpu.stored_rows import Keys, Values
from tests.kernels_cpu.attention import caches
from tests.kernels_cpu.attention.caches import (
    RTOL,
    Cache,
    Mass,
    close,
    filled,
    mass_truth,
    one_token,
    round_int8,
    rounded_evenly,
    truth,
)

MODULES = caches.MODULES  # what the fixtures load

SHAPES = [(1, 1, 16), (4, 2, 24), (4, 1, 64), (7, 1, 64), (14, 2, 80), (4, 4, 128), (8, 2, 256)]


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("H", "KH", "D"), SHAPES)
def test_append_rounds_as_said(each_kernels, guard, bits, H, KH, D):
    cache, k, v, order, _ = filled(each_kernels, guard, bits, H, KH, D, 70)
    keys, values = cache.read()
    for stored, given in ((keys, k), (values, v)):
        if bits == 8 or (bits == 5 and given is k):
            codes, scales = round_int8(given, 127 if bits == 8 else 31)
            expected = codes * scales.astype(np.float64)
        elif bits in (4, 5):
            codes, scales, bases = reference.quantise_slots(given)
            expected = codes * scales.astype(np.float64) + bases.astype(np.float64)
            # Sums in another order round some scales and bases to the bfloat16 beside.
            allowed = 2.0**-7 * (15 * scales + np.abs(bases))
            assert (np.abs(stored[order] - expected) <= allowed).all()
            assert (stored[order] == expected).mean() > 0.9
            error = np.square(stored[order] - given).sum(-1)
            assert (error <= np.square(rounded_evenly(given) - given).sum(-1) * 1.01).all()
            continue
        else:
            expected = given.astype(np.float16 if bits == 16 else np.float32)
        np.testing.assert_allclose(stored[order], expected, rtol=1e-6, atol=0)
    assert np.count_nonzero(cache.positions != launch.EMPTY) == 70


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("H", "KH", "D"), SHAPES)
def test_attention(each_kernels, guard, bits, H, KH, D):
    for S, T in ((1, 1), (70, 1), (70, 5), (130, 67)):
        cache, _, _, order, rng = filled(each_kernels, guard, bits, H, KH, D, S)
        q = rng.standard_normal((T, H, D)).astype(np.float32)
        expected = truth(cache, q, order)
        for threads in (1, 2, 3):
            out = cache.attend(q, np.arange(S - T, S), threads=threads)
            close(out, expected)
            if threads == 1:
                first = out
            np.testing.assert_array_equal(out, first)  # bit for bit, however many threads


@pytest.mark.parametrize("bits", [4, 5, 8, 32])
@pytest.mark.parametrize(("window", "cap"), [(1, 0.0), (8, 0.0), (50, 3.0), (0, 2.0), (500, 0.0)])
def test_windows_and_caps(each_kernels, guard, bits, window, cap):
    H, KH, D, S = 4, 2, 64, 300
    cache, _, _, order, rng = filled(each_kernels, guard, bits, H, KH, D, S)
    for T in (1, 40):
        q = rng.standard_normal((T, H, D)).astype(np.float32)
        out = cache.attend(q, np.arange(S - T, S), threads=2, window=window, cap=cap)
        close(out, truth(cache, q, order, window=window, cap=cap))


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (8, 0.0), (0, 2.0)])
def test_sinks(each_kernels, guard, bits, window, cap):
    """Far below all scores, among them, and so far above that hardly anything is left."""
    H, KH, D, S = 4, 2, 64, 600
    cache, _, _, order, rng = filled(each_kernels, guard, bits, H, KH, D, S)
    how = {"window": window, "cap": cap, "sinks": np.array([-200.0, 0.5, 4.0, 60.0])}
    for T in (1, 40):
        q = rng.standard_normal((T, H, D)).astype(np.float32)
        expected = truth(cache, q, order, **how)
        for threads in (1, 3):
            mass = Mass(guard, cache, H, threads)
            out = cache.attend(
                q, np.arange(S - T, S), threads=threads, state=mass.state(keep=0.0), **how
            )
            close(out, expected)
            of_mass = mass_truth(cache, q, order, 0, **how)
            np.testing.assert_allclose(mass.found, of_mass, atol=6e-5)
            without = cache.attend(q, np.arange(S - T, S), threads=threads, **how)
            np.testing.assert_array_equal(out, without)  # bit for bit, counted or not


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("D", "window", "cap"), [(64, 0, 0.0), (40, 8, 0.0), (64, 0, 2.0)])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_rest(each_kernels, guard, bits, D, window, cap, with_sinks):
    """One head's rest outweighs all slots, the other's does not; every query sees it."""
    H, KH, S = 4, 2, 600
    cache, _, _, order, rng = filled(each_kernels, guard, bits, H, KH, D, S)
    sinks = np.array([-200.0, 0.5, 4.0, 6.0]) if with_sinks else None
    counts = np.array([5000.0, 3.0], np.float32)
    keys, values = (rng.standard_normal((KH, D)).astype(np.float32) for _ in range(2))
    padded = launch.padded_head_dim(D, bits)
    stored = guard(np.zeros((KH, launch.rest_floats(D, bits)), np.float32))
    stored[:, 0] = counts
    stored[:, launch.REST_KEY : launch.REST_KEY + D] = keys
    stored[:, launch.REST_KEY + padded : launch.REST_KEY + padded + D] = values
    for h in range(KH):
        cache.records[h, launch.REC_REST] = stored[h].ctypes.data
    how = {"window": window, "cap": cap, "sinks": sinks}
    rest = tuple(part.astype(np.float64) for part in (np.log(counts), keys, values))
    for T in (1, 40):
        codes = rng.integers(-127, 128, (T, H, D))
        codes[..., 0] = 127  # so that queries are what their 8-bit codes say
        q = (codes / np.float32(64)).astype(np.float32)
        expected = truth(cache, q, order, rest=rest, **how)
        for threads in (1, 3):
            mass = Mass(guard, cache, H, threads)
            state = mass.state(keep=0.0)
            out = cache.attend(q, np.arange(S - T, S), threads=threads, state=state, **how)
            close(out, expected)
            without = cache.attend(q, np.arange(S - T, S), threads=threads, **how)
            np.testing.assert_array_equal(out, without)  # bit for bit, counted or not


def stored(kernels, guard, bits, k, v, slots):
    cache = Cache(kernels, guard, bits, k.shape[1], k.shape[2], slots)
    cache.store(k, v, np.arange(len(k)), np.arange(len(k)))
    return cache


COMPANY = [
    (0, 0.0, 620),
    (0, 0.0, 255),
    (0, 2.0, 70),
    (300, 0.0, 620),
    (20, 3.0, 517),
    (1, 0.0, 64),
]


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("window", "cap", "p"), COMPANY)
def test_a_row_does_not_depend_on_its_company(each_kernels, guard, bits, window, cap, p):
    """Position p alone or among others, whatever lies behind it, in caches of any capacity."""
    H, KH, D, S = 6, 2, 24, 700
    rng = np.random.default_rng(p)
    k, v = one_token(rng, KH, D, S, p + 1)
    q = rng.standard_normal((S, H, D)).astype(np.float32)
    how = {"window": window, "cap": cap}
    short = stored(each_kernels, guard, bits, k[: p + 1], v[: p + 1], 704)
    expected = short.attend(q[p : p + 1], [p], **how)[0].tobytes()

    def check(cache, first, last, **more):
        out = cache.attend(q[first:last], np.arange(first, last), **how, **more)
        assert out[p - first].tobytes() == expected, (first, last, more)

    full = stored(each_kernels, guard, bits, k, v, 704)
    large = stored(each_kernels, guard, bits, k, v, 20_480)
    for cache in (short, full, large):
        ahead = 0 if cache is short else 20
        for first, last in ((p, p + 1), (p - 1, p + 1), (p - 39 + ahead, p + 1 + ahead)):
            for threads in (1, 3):
                check(cache, first, last, threads=threads)
        state = Mass(guard, cache, H, 2).state(keep=1.0)
        for first, last in ((p, p + 1), (p - 30, p + 1)):
            check(cache, first, last, threads=2, state=state)
    full.positions[p + 1 :] = launch.EMPTY  # truncated: what was stored stays where it was
    for used in (S, p + 1):
        full.records[:, launch.REC_USED] = used
        for first in (p, p - 1, p - 39):
            check(full, first, p + 1)


@pytest.mark.parametrize("bits", launch.KV_BITS)
def test_chunks_do_not_depend_on_what_comes_later(kernels, guard, bits):
    """One row in a deep cache, where chunks are longer than a block, alone and among others."""
    H, KH, D, S = 2, 1, 16, 34_000
    rng = np.random.default_rng(bits)
    k, v = one_token(rng, KH, D, S, S)
    q = rng.standard_normal((S, H, D)).astype(np.float32)
    full = stored(kernels, guard, bits, k, v, -(-S // 64) * 64)
    for p in (16_500, 33_500):
        short = stored(kernels, guard, bits, k[: p + 1], v[: p + 1], -(-(p + 1) // 64) * 64)
        expected = short.attend(q[p : p + 1], [p]).tobytes()
        for threads in (1, 2, 5):
            assert full.attend(q[p : p + 1], [p], threads=threads).tobytes() == expected
        rows = np.arange(p - 4, p + 5)
        assert full.attend(q[rows], rows)[4].tobytes() == expected


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize("D", [24, 64])
def test_a_stored_row_does_not_depend_on_its_company(each_kernels, guard, bits, D):
    """A token is stored alike alone, beside others and with any number of threads."""
    KH, S = 3, 40
    rng = np.random.default_rng(D)
    k, v = one_token(rng, KH, D, S, 17)
    alone = Cache(each_kernels, guard, bits, KH, D, 64)
    for t in range(S):
        alone.store(k[t : t + 1], v[t : t + 1], np.array([t]), [t])
    for threads in (1, 3):
        many = Cache(each_kernels, guard, bits, KH, D, 64)
        many.store(k, v, np.arange(S), np.arange(S), threads=threads)
        for name in ("keys", "values", "scales"):
            assert getattr(many, name).tobytes() == getattr(alone, name).tobytes(), name


def test_a_ring_of_slots(kernels, guard):
    """Older tokens overwritten: the window still sees all that it should."""
    H, KH, D, window, slots, S = 4, 2, 32, 40, 64, 200
    rng = np.random.default_rng(1)
    cache = Cache(kernels, guard, 32, KH, D, slots)
    k = rng.standard_normal((S, KH, D)).astype(np.float32)
    v = rng.standard_normal((S, KH, D)).astype(np.float32)
    q = rng.standard_normal((S, H, D)).astype(np.float32)
    for a in range(0, S, 20):
        positions = np.arange(a, min(a + 20, S))
        cache.store(k[positions], v[positions], positions % slots, positions)
        out = cache.attend(q[positions], positions, window=window)
        expected = reference.attention(
            q[positions].astype(np.float64),
            k[: positions[-1] + 1].astype(np.float64),
            v[: positions[-1] + 1].astype(np.float64),
            scale=0.3,
            window=window,
        )
        close(out, (expected, RTOL * max(1.0, np.abs(expected).max())))


def test_deep_caches_are_split(kernels, guard):
    """More chunks than one, and chunks longer than the shortest."""
    for slots in (2048, launch.FIRST_CHUNKS * 256 + 64):
        S = slots - 5
        cache, _, _, order, rng = filled(kernels, guard, 8, 4, 2, 16, S, slots=slots)
        q = rng.standard_normal((1, 4, 16)).astype(np.float32)
        expected = truth(cache, q, order)
        outs = [cache.attend(q, [S - 1], threads=n) for n in (1, 2, 4)]
        close(outs[0], expected)
        np.testing.assert_array_equal(outs[0], outs[1])
        np.testing.assert_array_equal(outs[0], outs[2])


def test_chunks_by_hand():
    expected = {1: 1, 256: 1, 257: 2, 16_384: 64, 16_385: 65, 32_768: 96, 32_769: 97, 2**20: 256}
    assert {slots: launch.chunk_count(slots) for slots in expected} == expected


def test_large_scores_do_not_overflow(each_kernels, guard):
    cache, _, _, order, rng = filled(each_kernels, guard, 32, 2, 1, 64, 100)
    q = rng.standard_normal((3, 2, 64)).astype(np.float32) * 1e4
    out = cache.attend(q, np.arange(97, 100))
    close(out, truth(cache, q, order))


def test_nothing_to_see_is_zero(kernels, guard):
    cache, *_ = filled(kernels, guard, 8, 2, 1, 16, 30)
    cache.positions[:] = launch.EMPTY
    for T in (1, 3):
        out = cache.attend(np.ones((T, 2, 16), np.float32), np.arange(T))
        np.testing.assert_array_equal(out, 0)


def test_float16_clamps_instead_of_overflowing(each_kernels, guard):
    cache = Cache(each_kernels, guard, 16, 1, 16, 64)
    k = np.full((1, 1, 16), 1e6, np.float32)
    cache.store(k, -k, np.array([3]), [0])
    keys, values = cache.read()
    assert (keys[3] == 65504).all()
    assert (values[3] == -65504).all()


def test_launchers_refuse(kernels):
    with pytest.raises(ShapeError, match="kv_bits is 2"):
        launch.kv_append(kernels, kv_bits=2, k=0, v=0, layer=0, kv_heads=1, head_dim=8, wait=False)
    with pytest.raises(ShapeError, match="3 heads"):
        launch.attention(
            kernels,
            kv_bits=8,
            q=0,
            out=0,
            layer=0,
            heads=3,
            kv_heads=2,
            head_dim=8,
            window=0,
            scale=1.0,
            softcap=0.0,
            positions=0,
            scratch=0,
        )


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize("D", [24, 64])
def test_numpy_reads_and_writes_the_same_slots(kernels, guard, bits, D):
    """NumPy, which chooses and moves slots, reads and stores as the kernels do."""
    cache, k, v, order, _ = filled(kernels, guard, bits, 2, 1, D, 70)
    scales = cache.scales[:, 0] if bits <= 8 else (None, None)
    stored_keys = Keys(cache.keys.view(np.uint8).reshape(-1), scales[0], D, bits)
    stored_values = Values(cache.values.view(np.uint8).reshape(-1), scales[1], D, bits)
    keys, values = cache.read()
    plain = reference.hadamard(keys[:, 0]) if bits <= 8 else keys[:, 0]
    np.testing.assert_allclose(stored_keys.read(order), plain[order], atol=2e-6)
    np.testing.assert_allclose(stored_values.read(order), values[order, 0], atol=2e-6)
    before = [a.copy() for a in (cache.keys, cache.values, cache.scales)]
    given = reference.hadamard(k[:, 0]) if bits <= 8 else k[:, 0]  # rotated back inside
    for array in (cache.keys, cache.values, cache.scales):
        array[...] = 0
    stored_keys.write(order, given)
    stored_values.write(order, v[:, 0])
    again, also = cache.read()
    cache.keys[...], cache.values[...], cache.scales[...] = before
    # Rotated twice, a code may round the other way.
    step = {4: np.abs(keys).max() / 7, 5: np.abs(keys).max() / 30, 8: np.abs(keys).max() / 126}.get(
        bits, 1e-6
    )
    np.testing.assert_allclose(again[order], keys[order], atol=step)
    np.testing.assert_allclose(also[order], values[order], atol=1e-6)


@pytest.mark.parametrize("D", [16, 24, 64, 80, 128, 256])
def test_hadamard(each_kernels, guard, run, D):
    x = np.random.default_rng(0).standard_normal((5, 3, D)).astype(np.float32)
    expected = reference.hadamard(x.astype(np.float64))
    for threads in (1, 2):
        turned = guard(x)
        made = launch.hadamard(each_kernels, x=turned.ctypes.data, heads=3, head_dim=D, wait=False)
        run(each_kernels, table([made])[0], 5, threads)
        np.testing.assert_allclose(turned, expected, atol=2e-6)
    run(each_kernels, table([made])[0], 5)
    np.testing.assert_allclose(turned, x, atol=4e-6)  # its own inverse


@pytest.mark.parametrize("D", [24, 64, 80])
@pytest.mark.parametrize("group", [1, 3])
def test_hadamard_after_centre_and_factor(each_kernels, guard, run, D, group):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 6, D)).astype(np.float32)
    centre, factor = (rng.standard_normal((6 // group, D)).astype(np.float32) for _ in range(2))
    for with_centre in (False, True):
        moved = x - np.repeat(centre, group, axis=0) if with_centre else x
        expected = reference.hadamard(moved.astype(np.float64) * np.repeat(factor, group, axis=0))
        given, held = guard(x), (guard(centre), guard(factor))
        made = launch.hadamard(
            each_kernels, x=given.ctypes.data, heads=6, head_dim=D, group=group, wait=False,
            centre=held[0].ctypes.data if with_centre else 0, factor=held[1].ctypes.data,
        )  # fmt: skip
        run(each_kernels, table([made])[0], 5, 2)
        np.testing.assert_allclose(given, expected, atol=8e-6)


@pytest.mark.parametrize("bits", launch.KV_BITS)
def test_pages_may_be_anywhere(kernels, guard, bits):
    """Pages copied to places of their own, in any order: the same bits, one token and many."""
    rng = np.random.default_rng(7)
    KH, D, slots = 2, 40, 704  # the last page is shorter
    cache = Cache(kernels, guard, bits, KH, D, slots)
    k, v = rng.standard_normal((2, slots, KH, D)).astype(np.float32)
    for first in range(0, slots, 64):
        at = np.arange(first, first + 64)
        cache.store(k[at], v[at], at, at)
    q = rng.standard_normal((3, 2 * KH, D)).astype(np.float32)

    def results():
        many = cache.attend(q, np.array([300, 650, 703]), threads=2)
        return many, cache.attend(q[:1], np.array([690]), threads=2)

    before = results()
    moved = {}
    for h, page in rng.permutation([(h, p) for h in range(KH) for p in range(3)]).tolist():
        first, end = page * launch.PAGE_SLOTS, min((page + 1) * launch.PAGE_SLOTS, slots)
        moved[h, page] = [
            guard(np.ascontiguousarray(part[first * len(part) // slots : end * len(part) // slots]))
            for part in cache.arrays(h)
        ]
    cache.place(moved)
    for part in (cache.keys, cache.values, cache.scales):
        part.view(np.uint8)[:] = 255  # codes far out, scales not a number
    for found, expected in zip(results(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    # And what is appended goes to the page, not to where it was.
    new = rng.standard_normal((1, KH, D)).astype(np.float32)
    kept = [part.copy() for part in moved[0, 1]]
    cache.store(new, new, np.array([300]), np.array([300]))
    assert any((a != b).any() for a, b in zip(kept, moved[0, 1], strict=True))
    assert (cache.keys.view(np.uint8) == 255).all()
