"""Several residual streams and sparse gates against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference_streams as reference
from edgetok.kernels_cpu.elementwise.launch_streams import (
    add_each,
    correct_streams,
    match_size,
    mix_streams,
    sparsify,
)
from edgetok.kernels_cpu.program import tables

SIZES = [1, 3, 16, 24, 63, 72, 257]
CASES = [(1, 2), (1, 4), (5, 3), (7, 8)]  # tokens, streams


def _nan(*shape):
    return np.full(shape, np.nan, np.float32)


def _run(run, kernels, made, tokens, threads):
    run(kernels, tables.table([made])[0], tokens, threads)


def _random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_sparsify(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens, spread in ((1, 1.2815516), (4, 0.0), (5, -0.7)):
        x0 = _random(rng, tokens, size) + 3
        x = guard(x0)
        made = sparsify(each_kernels, x=x.ctypes.data, size=size, spread=spread, wait=False)
        _run(run, each_kernels, made, tokens, threads)
        truth = reference.sparsify(x0.astype(np.float64), spread)
        np.testing.assert_allclose(x, truth, rtol=0, atol=4e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_mix_streams(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens, n in CASES:
        s = _random(rng, tokens, n, size)
        coefs = guard(_random(rng, tokens, n, n))
        x, others = guard(s[:, 0].copy()), guard(s[:, 1:].copy())
        out = guard(_nan(tokens, n, size))
        made = mix_streams(
            each_kernels, x=x.ctypes.data, others=others.ctypes.data, coefs=coefs.ctypes.data,
            out=out.ctypes.data, streams=n, size=size, wait=False,
        )  # fmt: skip
        _run(run, each_kernels, made, tokens, threads)
        truth = reference.mix_streams(s.astype(np.float64), coefs)
        np.testing.assert_allclose(out, truth, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_correct_streams(each_kernels, guard, run, size, threads, scaled):
    rng = np.random.default_rng(size)
    for tokens, n in CASES:
        p, coefs = guard(_random(rng, tokens, n, size)), guard(_random(rng, tokens, n))
        a = _random(rng, tokens, size)
        scale = guard(_random(rng, size))
        x, others, out = guard(a), guard(_nan(tokens, n - 1, size)), guard(_nan(tokens, size))
        made = correct_streams(
            each_kernels, x=x.ctypes.data, source=p.ctypes.data, coefs=coefs.ctypes.data,
            others=others.ctypes.data, out=out.ctypes.data,
            scale=scale.ctypes.data if scaled else 0, streams=n, size=size, wait=False,
        )  # fmt: skip
        _run(run, each_kernels, made, tokens, threads)
        truth = reference.correct_streams(p.astype(np.float64), a, coefs)
        np.testing.assert_allclose(x, truth[:, 0], rtol=1e-6, atol=5e-6)
        np.testing.assert_allclose(others, truth[:, 1:], rtol=1e-6, atol=5e-6)
        np.testing.assert_array_equal(out, x * scale if scaled else x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_match_size(each_kernels, guard, run, size, threads):
    """Values near 0 are divided by `eps` in the place of their mean."""
    rng = np.random.default_rng(size)
    for tokens, n in CASES:
        x0 = _random(rng, tokens, n, size)
        x0[:, 0] *= 1e-4
        x, like = guard(x0), guard(3 * _random(rng, tokens, size))
        made = match_size(
            each_kernels, x=x.ctypes.data, like=like.ctypes.data, count=n, size=size, eps=1e-5,
            wait=False,
        )  # fmt: skip
        _run(run, each_kernels, made, tokens, threads)
        truth = reference.match_size(x0.astype(np.float64), like, 1e-5)
        np.testing.assert_allclose(x, truth, rtol=4e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_add_each(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens, n in CASES:
        x0, y = _random(rng, tokens, n, size), guard(_random(rng, tokens, size))
        x = guard(x0)
        made = add_each(
            each_kernels, x=x.ctypes.data, y=y.ctypes.data, count=n, size=size, wait=False
        )
        _run(run, each_kernels, made, tokens, threads)
        np.testing.assert_array_equal(x, x0 + y[:, None])


def test_sizes_that_are_none(each_kernels):
    with pytest.raises(ShapeError, match="0 times 8 columns"):
        add_each(each_kernels, x=0, y=0, count=0, size=8, wait=False)
    with pytest.raises(ShapeError, match="1 times 0 columns"):
        sparsify(each_kernels, x=0, size=0, spread=1.0, wait=False)
