"""Attention mass of slots against NumPy, and rows of several caches in one run."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.kernels_cpu.attention import launch
from edgetok.kernels_cpu.program import abi
from tests.kernels_cpu.attention import caches
from tests.kernels_cpu.attention.caches import (
    Cache,
    Mass,
    attend_instructions,
    filled,
    mass_truth,
    one_token,
    run_parts,
)

MODULES = caches.MODULES  # what the fixtures load


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (70, 2.0)])
def test_parts_do_not_know_each_other(each_kernels, guard, bits, window, cap):
    """Rows of several caches in one run, of any number, with and without mass, stored and read."""
    H, KH, D = 40, 2, 24
    rng = np.random.default_rng(bits)
    rows, depths = (1, 5, 0, 1, 33, 1), (700, 40, 100, 64, 300, 1)
    keep = (True, False, False, False, True, False)  # mass
    how = {"window": window, "cap": cap}
    k, v = one_token(rng, KH, D, sum(rows), 3)
    q = rng.standard_normal((sum(rows), H, D)).astype(np.float32)
    firsts = np.cumsum((0, *rows))[:-1]
    at = np.concatenate([np.arange(d - r, d) for d, r in zip(depths, rows, strict=True)])

    def several():
        made = []
        for i, (depth, count) in enumerate(zip(depths, rows, strict=True)):
            before = np.random.default_rng(i)
            cache = Cache(each_kernels, guard, bits, KH, D, 64 * (i + 12))
            if depth > count:
                held = np.arange(depth - count)
                cache.store(*one_token(before, KH, D, len(held), 9), held, held)
            cache.append[:count] = np.arange(depth - count, depth)
            cache.positions[depth - count : depth] = np.arange(depth - count, depth)
            cache.records[:, launch.REC_USED] = depth
            made.append(cache)
        return made

    alone, alone_mass = [], []
    for cache, first, count, kept in zip(several(), firsts, rows, keep, strict=True):
        mass = Mass(guard, cache, H, 2) if kept else None
        mine = slice(first, first + count)
        if count:
            cache.store(k[mine], v[mine], cache.append[:count].copy(), at[mine])
            state = mass.state(keep=1.0) if kept else None
            alone.append(cache.attend(q[mine], at[mine], threads=2, state=state, **how))
        alone_mass.append(mass)
    for threads in (1, 2, 3):
        together, masses, parts = several(), [], []
        for cache, first, count, kept in zip(together, firsts, rows, keep, strict=True):
            chunks = launch.chunk_count(int(cache.records[0, launch.REC_USED]))
            partials = guard(np.full(launch.partials_bytes(H, D, chunks), 0xFF, np.uint8))
            masses.append(Mass(guard, cache, H, threads) if kept else None)
            if kept and count == 1:  # one row needs less
                size = launch.mass_row_bytes(cache.slots, H)
                masses[-1].workspace = guard(np.full(size, 0xFF, np.uint8))
            parts.append(
                {
                    abi.PART_RECORDS: cache.records.ctypes.data,
                    abi.PART_FIRST: first,
                    abi.PART_ROWS: count,
                    abi.PART_PARTIALS: partials.ctypes.data,
                    abi.PART_CHUNKS: chunks,
                }
                | (masses[-1].state(keep=1.0) if kept else {})
            )
        out = guard(np.full(q.shape, np.nan, np.float32))
        append = launch.kv_append(
            each_kernels,
            kv_bits=bits,
            k=guard(k).ctypes.data,
            v=guard(v).ctypes.data,
            layer=0,
            kv_heads=KH,
            head_dim=D,
            wait=True,
        )
        made = attend_instructions(together[0], q, out, at, threads, **how)
        run_parts(guard, [append, *made], parts, len(q), threads)
        assert out.tobytes() == np.concatenate(alone).tobytes()
        for mass, before in zip(masses, alone_mass, strict=True):
            if mass is not None:
                assert mass.found.tobytes() == before.found.tobytes()


@pytest.mark.parametrize(
    ("bits", "H", "KH", "D", "S", "T", "first", "how"),
    [
        (8, 8, 2, 64, 70, 1, 0, {}),
        (32, 6, 2, 24, 700, 1, 0, {"window": 300}),
        (8, 4, 2, 64, 700, 67, 0, {}),
        (16, 4, 1, 64, 300, 90, 80, {"window": 50}),
        (4, 8, 2, 64, 700, 67, 30, {}),
        (5, 8, 2, 64, 700, 67, 30, {}),
        (32, 40, 1, 16, 600, 1, 0, {}),  # more query heads than a task takes
        (8, 40, 1, 16, 300, 21, 5, {"cap": 3.0}),
    ],
)
def test_mass(each_kernels, guard, bits, H, KH, D, S, T, first, how):
    cache, _, _, order, rng = filled(each_kernels, guard, bits, H, KH, D, S)
    q = rng.standard_normal((T, H, D)).astype(np.float32)
    positions = np.arange(S - T, S)
    plain = cache.attend(q, positions, **how)
    expected = mass_truth(cache, q, order, first, **how)
    assert expected.sum() == pytest.approx(H * (T - first))
    for threads in (1, 2, 3):
        mass = Mass(guard, cache, H, threads)
        mass.found[:, order] = 0.5
        for keep, before in ((0.5, 0.25), (1.0, None)):
            state = mass.state(first, keep)
            out = cache.attend(q, positions, threads=threads, state=state, **how)
            np.testing.assert_array_equal(out, plain)  # asking changes no bit of the result
            if before is not None:
                once = mass.found.copy()
                np.testing.assert_allclose(once[:, order], expected[:, order] + 0.25, atol=3e-5)
        np.testing.assert_allclose(mass.found, once + expected, atol=6e-5)
        if threads == 1:
            repeated = mass.found.copy()
        np.testing.assert_array_equal(mass.found, repeated)  # bit for bit


def test_mass_only_where_it_is_asked_for(kernels, guard):
    cache, _, _, order, rng = filled(kernels, guard, 8, 4, 2, 16, 100)
    mass = Mass(guard, cache, 4, 2)
    mass.found[:] = 7
    q = rng.standard_normal((3, 4, 16)).astype(np.float32)
    for T in (1, 3):
        cache.attend(q[:T], np.arange(100 - T, 100), threads=2)
    assert (mass.found == 7).all()  # no workspace: nothing is touched
    cache.records[1, launch.REC_MASS] = 0
    cache.attend(q[:1], [99], state=mass.state())
    assert (mass.found[1] == 7).all()
    np.testing.assert_allclose(mass.found[0], mass_truth(cache, q[:1], order, 0)[0], atol=1e-5)
    cache.attend(q[:1], [99], state=mass.state(first=1, keep=1.0))
    np.testing.assert_allclose(mass.found[0].sum(), 2, rtol=1e-5)  # its only token did not count


def test_a_stored_token_begins_without_mass(each_kernels, guard):
    for bits in launch.KV_BITS:
        cache, k, v, _, _ = filled(each_kernels, guard, bits, 2, 2, 16, 20)
        mass = Mass(guard, cache, 2, 1)
        mass.found[:] = 3
        cache.store(k[:2], v[:2], np.array([5, 40]), [20, 21])
        assert (mass.found[:, [5, 40]] == 0).all()
        assert (mass.found[:, 6:40] == 3).all()
