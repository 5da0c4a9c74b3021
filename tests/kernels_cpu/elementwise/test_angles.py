"""Angles against NumPy's float64 and exact fractions, on every instruction set."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.elementwise import launch
from edgetok.kernels_cpu.elementwise.launch_angles import Angles

MODULES = ("elementwise.angles",)
LARGEST = 2**31 - 1


def compute(kernels, positions, frequencies, factor=1.0):
    shape = len(positions), len(frequencies)
    cos, sin = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    angles = Angles(kernels, np.asarray(positions, np.int32), cos, sin, factor)
    angles.fill(0, len(positions), frequencies)
    return cos, sin


def truth(positions, frequencies, factor=1.0):
    angles = np.asarray(positions, np.float64)[:, None] * frequencies
    return tuple((f(angles) * factor).astype(np.float32) for f in (np.cos, np.sin))


def frequencies(theta, dims):
    return theta ** (-np.arange(0, dims, 2) / dims)


@pytest.mark.parametrize(("rows", "dims"), [(1, 64), (3, 2), (7, 130), (64, 128), (257, 96)])
@pytest.mark.parametrize("factor", [1.0, 1.1902380714238083, 0.5])
def test_as_numpy(each_kernels, rows, dims, factor):
    rng = np.random.default_rng(0)
    for most in (200, 131_072, LARGEST):
        positions = rng.integers(0, most, rows)
        for found, expected in zip(
            compute(each_kernels, positions, frequencies(500_000.0, dims), factor),
            truth(positions, frequencies(500_000.0, dims), factor),
            strict=True,
        ):
            # One rounding to float32, from values that agree to a few float64 units.
            np.testing.assert_allclose(found, expected, rtol=6e-8, atol=1e-15)


def test_last_bits_differ_rarely(each_kernels):
    rng = np.random.default_rng(1)
    positions = np.concatenate([np.arange(8192), rng.integers(0, LARGEST, 8192)])
    all_found = compute(each_kernels, positions, frequencies(10_000.0, 128))
    all_expected = truth(positions, frequencies(10_000.0, 128))
    differ = [
        int((found != expected).sum())
        for found, expected in zip(all_found, all_expected, strict=True)
    ]
    assert sum(differ) <= 2, differ  # of two million


def pi_quarter(bits=400):
    """pi / 4 by Machin's formula, 4 atan(1/5) - atan(1/239), cut after so many bits."""

    def atan_of_inverse(x):
        total, term, n = 0, (1 << bits) // x, 1
        while term:
            total += term // n if n % 4 == 1 else -(term // n)
            term //= x * x
            n += 2
        return total

    return Fraction(4 * atan_of_inverse(5) - atan_of_inverse(239), 1 << bits)


def test_near_multiples_of_a_half_turn(each_kernels):
    """Where a sloppy reduction loses everything: the float64 nearest to n pi / 2.

    Sine or cosine of n pi / 2 + d is d there, or -d, but for d^3 / 6, d being below 2e-7.
    """
    half = 2 * pi_quarter()
    counts = np.concatenate([np.arange(1, 300), np.random.default_rng(2).integers(1, 2**30, 300)])
    near = np.array([float(half * int(n)) for n in counts])
    found = compute(each_kernels, [1, -1], near)
    for i, n in enumerate(counts):
        away = float(Fraction(near[i]) - half * int(n))
        sign = -1.0 if n % 4 in (1, 2) else 1.0
        small, large = (found[0], found[1]) if n % 2 else (found[1], found[0])
        expected = sign * away
        rows = (expected, expected if n % 2 else -expected)
        np.testing.assert_allclose(small[:, i], rows, rtol=6e-8)
        assert (np.abs(large[:, i]) == 1.0).all()


def test_instruction_sets_agree_to_the_bit(each_kernels):
    """With the portable kernels' bits, which use nothing that others lack."""
    positions = np.random.default_rng(3).integers(0, LARGEST, 500)
    found = compute(each_kernels, positions, frequencies(1e6, 128), 1.25)
    _SEEN.setdefault("first", found)
    for one, other in zip(found, _SEEN["first"], strict=True):
        np.testing.assert_array_equal(one, other)


_SEEN: dict[str, tuple[np.ndarray, ...]] = {}


def test_threads_share_rows(each_kernels, run):
    positions, freq = np.arange(11, dtype=np.int32), frequencies(1e4, 20)
    cos, sin = (np.full((11, 10), np.nan, np.float32) for _ in range(2))
    one = launch.angles(
        each_kernels, positions=positions.ctypes.data, frequencies=freq.ctypes.data, factor=1.0,
        pairs=10, cos=cos.ctypes.data, sin=sin.ctypes.data, wait=True,
    )  # fmt: skip
    run(each_kernels, np.array(one, np.int64), 11, 4)
    for found, expected in zip((cos, sin), truth(positions, freq), strict=True):
        np.testing.assert_allclose(found, expected, rtol=6e-8, atol=1e-15)


def test_only_the_rows_asked_for(kernels):
    cos, sin = (np.full((5, 4), np.nan, np.float32) for _ in range(2))
    angles = Angles(kernels, np.arange(5, dtype=np.int32), cos, sin, 1.0)
    expected = np.full((5, 4), np.nan, np.float32)
    for first, end, freq in (
        (0, 0, np.ones(4)),
        (0, 2, np.ones(4)),
        (4, 5, np.full(4, 0.5)),
        (1, 3, np.full(4, 0.25)),
    ):
        angles.fill(first, end, freq)
        expected[first:end] = truth(np.arange(first, end), freq)[1]
        np.testing.assert_allclose(sin, expected, rtol=6e-8)
        np.testing.assert_array_equal(np.isnan(cos), np.isnan(expected))


def test_wrong_arrays_are_refused(kernels):
    positions, freq, out = np.arange(3, dtype=np.int32), np.ones(4), np.zeros((3, 4), np.float32)
    angles = Angles(kernels, positions, out, out.copy(), 1.0)
    for bad in (
        (positions.astype(np.int64), out, out),
        (positions, out[:2], out),
        (positions, out, out.T),
        (np.arange(6, dtype=np.int32)[::2], out, out),
    ):
        with pytest.raises(ShapeError, match=r"is (int|float).*, expected contiguous"):
            Angles(kernels, *bad, 1.0)
    for wrong in (freq.astype(np.float32), freq[:3], np.ones(8)[::2]):
        with pytest.raises(ShapeError, match=r"frequencies is float.*, expected contiguous"):
            angles.fill(0, 1, wrong)
    for first, end in ((0, 4), (-1, 1), (2, 1)):
        with pytest.raises(ShapeError, match=r"of angles, expected 0\.\.3"):
            angles.fill(first, end, freq)
