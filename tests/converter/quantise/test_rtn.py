import numpy as np
import pytest

from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantised import fits_float16_scales


def brute_force(weight, bits, group_size, symmetric):
    """One group at a time, float64, the nearest code found by trying every code."""
    rows, inputs = weight.shape
    top = 2**bits - 1
    codes = np.full(weight.shape, 255, np.uint8)
    for row in range(rows):
        for first in range(0, inputs, group_size):
            group = weight[row, first : first + group_size].astype(np.float64)
            low, high = min(group.min(), 0.0), max(group.max(), 0.0)
            if symmetric:
                scale, zero = np.float16(2 * max(-low, high) / top), 2 ** (bits - 1)
            else:
                scale = np.float16((high - low) / top)
                zero = min(max(round(-low / float(scale)), 0), top) if scale else 0
            if scale == 0:
                scale = np.float16(1)
            levels = (np.arange(top + 1) - zero) * float(scale)
            codes[row, first : first + group_size] = np.abs(
                group[:, None] - levels[None, :]
            ).argmin(1)
    return codes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("inputs", [64, 67, 7])
@pytest.mark.parametrize("symmetric", [False, True])
def test_agrees_with_brute_force(bits, group_size, inputs, symmetric):
    rng = np.random.default_rng(bits * 100 + inputs)
    weight = rng.normal(0, 0.02, (5, inputs)).astype(np.float32)
    weight[2] = 0
    weight[3] = np.abs(weight[3])
    result = rtn.quantise(weight, bits, group_size, symmetric=symmetric)
    expected = brute_force(weight, bits, group_size, symmetric)
    # Float32 may break a tie otherwise than float64: the two levels are then equally near.
    differ = result.codes != expected
    scales = np.repeat(result.scales.astype(np.float64), group_size, axis=1)[:, :inputs]
    assert differ.mean() < 0.002
    assert np.all(np.abs(result.codes.astype(int) - expected)[differ] <= 1)
    assert result.scales.shape == (5, -(-inputs // group_size))
    assert (result.zeros is None) == symmetric
    # Half a step, what rounding the zero point may clip at the ends, and the scale's own rounding.
    error = np.abs(result.dequantise().astype(np.float64) - weight)
    assert np.all(error <= scales * ((0.501 if symmetric else 1.001) + 2**bits * 2**-11))
    np.testing.assert_array_equal(result.dequantise()[2], 0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("constant", [0.0, 1.0, -3.25, 1e-5, -1e-7, 6e-8, 1e-9, 30000.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_constant_groups(bits, constant, symmetric):
    weight = np.full((3, 70), constant, np.float32)
    result = rtn.quantise(weight, bits, 32, symmetric=symmetric)
    error = np.abs(result.dequantise() - weight).max()
    assert np.isfinite(result.scales.astype(np.float32)).all()
    # Half a step of a symmetric grid, the scale's rounding, and float16's smallest step.
    half = abs(constant) / (2**bits - 1) if symmetric else 0
    assert error <= half * 1.001 + abs(constant) * 2**-11 + 2**bits * 6e-8


def test_rounded_scale_is_the_one_used():
    """Codes computed with the unrounded scale would be further away."""
    rng = np.random.default_rng(3)
    weight = rng.normal(0, 1, (64, 128)).astype(np.float32)
    result = rtn.quantise(weight, 8, 128)
    unrounded = (np.maximum(weight.max(1), 0) - np.minimum(weight.min(1), 0)) / 255
    naive = np.clip(np.rint(weight / unrounded[:, None]) + result.zeros, 0, 255)
    naive_error = (naive - result.zeros) * result.scales.astype(np.float32) - weight
    assert np.square(result.dequantise() - weight).sum() <= np.square(naive_error).sum()


def test_chunks_and_threads_change_nothing(monkeypatch):
    rng = np.random.default_rng(4)
    weight = rng.normal(0, 1, (67, 100)).astype(np.float32)
    whole = rtn.quantise(weight, 4, 32)
    monkeypatch.setattr(rtn, "_CHUNK_WEIGHTS", 1000)
    for threads in (1, 3):
        pieces = rtn.quantise(weight, 4, 32, threads=threads)
        np.testing.assert_array_equal(pieces.codes, whole.codes)
        np.testing.assert_array_equal(pieces.scales, whole.scales)
        np.testing.assert_array_equal(pieces.zeros, whole.zeros)


def test_scales_that_float16_cannot_hold_are_told():
    assert fits_float16_scales(65504 * 0.4, 2) is True
    assert fits_float16_scales(65504 * 2, 2) is False
    assert fits_float16_scales(65504 * 100, 8) is True
