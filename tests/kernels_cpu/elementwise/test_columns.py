"""Columns, factors in memory and a norm without weights against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference
from edgetok.kernels_cpu.elementwise.launch_columns import (
    columns,
    scale_by,
    scale_columns,
    sigmoid_scale,
)
from edgetok.kernels_cpu.elementwise.launch_unit_norm import unit_norm
from edgetok.kernels_cpu.program import tables

SIZES = [1, 3, 16, 24, 63, 72, 257]


def _nan(shape):
    return np.full(shape, np.nan, np.float32)


def _run(run, kernels, made, tokens, threads):
    run(kernels, tables.table([made])[0], tokens, threads)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_columns(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens, first, after in ((1, 0, 0), (1, 5, 2), (4, 0, 3), (7, 33, 0)):
        width = first + size + after
        x = guard(rng.standard_normal((tokens, width)).astype(np.float32))
        out = guard(_nan((tokens, size)))
        made = columns(
            each_kernels, x=x.ctypes.data, out=out.ctypes.data, first=first, size=size,
            width=width, wait=False,
        )  # fmt: skip
        _run(run, each_kernels, made, tokens, threads)
        np.testing.assert_array_equal(out, x[:, first : first + size])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_scale_by(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens in (1, 5):
        x0 = rng.standard_normal((tokens, size)).astype(np.float32)
        x, weight = guard(x0), guard(np.array([0.37], np.float32))
        made = scale_by(
            each_kernels, x=x.ctypes.data, weight=weight.ctypes.data, size=size, wait=False
        )
        _run(run, each_kernels, made, tokens, threads)
        np.testing.assert_array_equal(x, x0 * np.float32(0.37))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_scale_columns(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens, heads in ((1, 1), (5, 4)):
        x0 = rng.standard_normal((tokens, heads, size)).astype(np.float32)
        x, weight = guard(x0), guard(rng.standard_normal(size).astype(np.float32))
        made = scale_columns(
            each_kernels, x=x.ctypes.data, weight=weight.ctypes.data, size=size, heads=heads,
            wait=False,
        )  # fmt: skip
        _run(run, each_kernels, made, tokens, threads)
        np.testing.assert_array_equal(x, x0 * weight)
    with pytest.raises(ShapeError, match="at least 1"):
        scale_columns(each_kernels, x=0, weight=0, size=size, heads=0, wait=False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sigmoid_scale(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens, heads in ((1, 1), (5, 1), (1, 4), (3, 5)):
        x0 = rng.standard_normal((tokens, heads, size)).astype(np.float32)
        x, gate = guard(x0), guard(rng.standard_normal((tokens, heads)).astype(np.float32) * 4)
        made = sigmoid_scale(
            each_kernels, gate=gate.ctypes.data, value=x.ctypes.data, size=size, heads=heads,
            wait=False,
        )  # fmt: skip
        _run(run, each_kernels, made, tokens, threads)
        truth = x0 / (1 + np.exp(-gate.astype(np.float64)))[:, :, None]
        np.testing.assert_allclose(x, truth, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_unit_norm(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens, units in ((1, 1), (1, 5), (3, 2)):
        x = guard(rng.standard_normal((tokens, units, size)).astype(np.float32) * 3)
        out = guard(_nan(x.shape))
        made = unit_norm(
            each_kernels, x=x.ctypes.data, out=out.ctypes.data, size=size, units=units,
            eps=1e-5, wait=False,
        )  # fmt: skip
        _run(run, each_kernels, made, tokens, threads)
        truth = reference.rms_norm(x.astype(np.float64), np.ones(size), 1e-5)
        np.testing.assert_allclose(out, truth, rtol=2e-6, atol=1e-6)
        made = (*made[:3], x.ctypes.data, *made[4:])  # in place
        _run(run, each_kernels, made, tokens, threads)
        np.testing.assert_array_equal(x, out)


def test_what_is_refused(each_kernels):
    with pytest.raises(ShapeError, match="columns 3 to 8"):
        columns(each_kernels, x=0, out=0, first=3, size=5, width=7, wait=False)
    with pytest.raises(ShapeError, match="size is 0"):
        scale_by(each_kernels, x=0, weight=0, size=0, wait=False)
    with pytest.raises(ShapeError, match="0 gates of 4"):
        sigmoid_scale(each_kernels, gate=0, value=0, size=4, heads=0, wait=False)
    with pytest.raises(ShapeError, match="0 rows of 4"):
        unit_norm(each_kernels, x=0, out=0, size=4, units=0, eps=0.0, wait=False)
