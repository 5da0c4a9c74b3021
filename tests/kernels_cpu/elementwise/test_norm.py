"""Norms, residual sums, activations and caps against NumPy in float64, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference
from edgetok.kernels_cpu.elementwise import launch
from edgetok.kernels_cpu.program import tables as launch_program

SIZES = [1, 3, 16, 24, 63, 64, 72, 80, 128, 200, 257, 2048]


def _run(run, kernels, made, tokens, threads):
    run(kernels, launch_program.table([made])[0], tokens, threads)


def _nan(shape):
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rms_norm(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens, units in ((1, 1), (1, 5), (3, 2), (7, 1)):
        x = guard(rng.standard_normal((tokens, units, size)).astype(np.float32) * 3)
        weight = guard(rng.standard_normal(size).astype(np.float32))
        out = guard(_nan(x.shape))
        made = launch.rms_norm(
            each_kernels,
            x=x.ctypes.data,
            out=out.ctypes.data,
            weight=weight.ctypes.data,
            size=size,
            units=units,
            eps=1e-5,
            wait=False,
        )
        _run(run, each_kernels, made, tokens, threads)
        truth = reference.rms_norm(x.astype(np.float64), weight.astype(np.float64), 1e-5)
        np.testing.assert_allclose(out, truth, rtol=2e-6, atol=1e-6)
        made = (*made[:3], x.ctypes.data, *made[4:])  # in place
        _run(run, each_kernels, made, tokens, threads)
        np.testing.assert_array_equal(x, out)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_add_scaled(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens in (1, 4):
        x0 = rng.standard_normal((tokens, size)).astype(np.float32)
        x, y = guard(x0), guard(rng.standard_normal((tokens, size)).astype(np.float32))
        made = launch.add_scaled(
            each_kernels, x=x.ctypes.data, y=y.ctypes.data, size=size, scale=0.25, wait=False
        )
        _run(run, each_kernels, made, tokens, threads)
        np.testing.assert_allclose(x, x0 + 0.25 * y, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("kind", list(launch.ACTIVATIONS))
@pytest.mark.parametrize("size", [1, 24, 100, 257])
@pytest.mark.parametrize("threads", [1, 2])
def test_activation_mul(each_kernels, guard, run, kind, size, threads):
    rng = np.random.default_rng(size)
    for tokens in (1, 3):
        gate = guard(rng.standard_normal((tokens, size)).astype(np.float32) * 4)
        up = guard(rng.standard_normal((tokens, size)).astype(np.float32))
        out = guard(_nan(gate.shape))
        made = launch.activation_mul(
            each_kernels,
            kind=kind,
            gate=gate.ctypes.data,
            up=up.ctypes.data,
            out=out.ctypes.data,
            size=size,
            wait=False,
        )
        _run(run, each_kernels, made, tokens, threads)
        truth = reference.gated(gate.astype(np.float64), up.astype(np.float64), kind)
        np.testing.assert_allclose(out, truth, rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("kind", list(launch.ACTIVATIONS))
def test_activation_over_the_whole_range(each_kernels, run, kind):
    gate = np.concatenate(
        [np.linspace(-20, 20, 40001), [-1e4, -200, -89, -87.5, 87.5, 89, 200, 1e4, 0.0]]
    ).astype(np.float32)
    up, out = np.ones_like(gate), np.full_like(gate, np.nan)
    made = launch.activation_mul(
        each_kernels,
        kind=kind,
        gate=gate.ctypes.data,
        up=up.ctypes.data,
        out=out.ctypes.data,
        size=gate.size,
        wait=False,
    )
    _run(run, each_kernels, made, 1, 1)
    truth = reference.gated(gate.astype(np.float64), up.astype(np.float64), kind)
    # Stated errors: exp 2e-7 relative, tanh 2e-7 and erf 5e-7 absolute; half of that times x.
    np.testing.assert_array_less(
        np.abs(out - truth), 5e-7 * np.abs(gate) + 3e-7 * np.abs(truth) + 1e-9
    )


@pytest.mark.parametrize("limit", [0.0, 3.0, 50.0])
@pytest.mark.parametrize("size", [1, 63, 307])
def test_softcap(each_kernels, guard, run, limit, size):
    rng = np.random.default_rng(size)
    x0 = (rng.standard_normal((2, size)) * 40).astype(np.float32)
    x = guard(x0)
    made = launch.softcap(
        each_kernels, x=x.ctypes.data, size=size, scale=0.5, limit=limit, wait=False
    )
    _run(run, each_kernels, made, 2, 2)
    truth = reference.softcap(x0.astype(np.float64) * 0.5, limit)
    np.testing.assert_allclose(x, truth, rtol=1e-6, atol=3e-7 * max(limit, 1))


def test_launchers_refuse(kernels):
    with pytest.raises(ShapeError, match="size is 0"):
        launch.add_scaled(kernels, x=0, y=0, size=0, scale=1.0, wait=False)
    with pytest.raises(ShapeError, match="relu"):
        launch.activation_mul(kernels, kind="relu", gate=0, up=0, out=0, size=1, wait=False)
    with pytest.raises(ShapeError, match="rotary_dim is 7"):
        launch.rope(kernels, x=0, cos=0, sin=0, heads=1, head_dim=8, rotary_dim=7, wait=False)
    with pytest.raises(ShapeError, match="15 arguments"):
        launch_program.instruction(1, *range(15))
