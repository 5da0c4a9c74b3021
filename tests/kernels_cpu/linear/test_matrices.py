"""Tile products by Arm's matrices of bytes (i8mm), emulated: the truth, and the bits of neon's.

The processor that neon's kernels are emulated on has no such instructions. See `test_aarch64.py`.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgetok.kernels_cpu.simd.isa import ISAS
from tests.kernels_cpu.linear.test_grouped import (
    KINDS,
    Grouped,
    test_a_token_has_the_same_bits_alone,
)
from tests.kernels_cpu.linear.test_grouped import test_int8 as test_grouped
from tests.kernels_cpu.linear.test_matmul import Linear, _int8, test_int8
from tests.kernels_cpu.simd.test_aarch64 import Arena, Emulated, guard, pytestmark, run
from tests.kernels_cpu.simd.test_same_bits import _x

__all__ = [
    "guard",
    "pytestmark",
    "run",
    "test_a_token_has_the_same_bits_alone",
    "test_grouped",
    "test_int8",
]
MODULES = (
    "linear.quantise_activations",
    "linear.q2",
    "linear.q3",
    "linear.q4",
    "linear.q8",
    "linear.q3_supers",
    "linear.q4_offsets",
    "linear.q4_table",
    "linear.q5",
    "linear.q6",
    "linear.q6_scales",
)
# Tiles of every width, an odd token, and more than meet weights piece by piece.
TOKENS = (5, 6, 8, 9, 67)


@pytest.fixture(scope="module")
def both_kernels(tmp_path_factory, kernel_cache):
    folder = tmp_path_factory.mktemp("i8mm")
    arena = Arena(folder / "memory")
    made = {}
    for name in ("i8mm", "neon"):
        place = folder / name
        place.mkdir()
        made[name] = Emulated(ISAS[name], MODULES, kernel_cache, place, arena)
    yield SimpleNamespace(**made)
    for kernels in made.values():
        kernels.close()
    arena.close()


@pytest.fixture(scope="module")
def each_kernels(both_kernels):
    return both_kernels.i8mm


def _check(both_kernels, guard, run, layer, x):
    for tokens in TOKENS:
        guard.clear()
        weight, _kept = layer.weight(guard, bias=True)
        one, two = (
            _int8(run, kernels, weight, x[:tokens], guard)[0]
            for kernels in (both_kernels.i8mm, both_kernels.neon)
        )
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 256])
@pytest.mark.parametrize("zeros", [False, True], ids=["middle", "zeros"])
def test_bits_of_neon(both_kernels, guard, run, bits, group_size, zeros):
    """Rows that fill no tile, inputs that fill no vector, the largest codes; more than a slab."""
    rng = np.random.default_rng(bits * group_size + zeros)
    for N, K in ((37, 352), (9, 4384)):
        layer = Linear(rng, bits, group_size, zeros, N, K, extreme=K > 4096)
        _check(both_kernels, guard, run, layer, _x(rng, K))


@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_neon_grouped(both_kernels, guard, run, kind):
    rng = np.random.default_rng(7)
    for N, K in ((37, 768), (9, 4352)):
        layer = Grouped(rng, kind, N, K, extreme=K > 4096)
        _check(both_kernels, guard, run, layer, _x(rng, K))
