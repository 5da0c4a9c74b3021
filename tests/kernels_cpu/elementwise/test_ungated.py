"""Activations without a gate against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference
from edgetok.kernels_cpu.elementwise import launch_ungated as launch
from edgetok.kernels_cpu.program import tables


@pytest.mark.parametrize("kind", launch.UNGATED)
@pytest.mark.parametrize("size", [1, 24, 100, 257])
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_numpy(each_kernels, guard, run, kind, size, threads):
    rng = np.random.default_rng(size)
    for tokens in (1, 3):
        x0 = rng.standard_normal((tokens, size)).astype(np.float32) * 4
        x0.flat[0] = 0.0
        x = guard(x0)
        made = launch.ungated(each_kernels, kind=kind, x=x.ctypes.data, size=size, wait=False)
        run(each_kernels, tables.table([made])[0], tokens, threads)
        wide = x0.astype(np.float64)
        truth = reference.activation(wide, kind)
        np.testing.assert_allclose(x, truth, rtol=2e-6, atol=4e-6)


def test_what_is_refused(each_kernels):
    with pytest.raises(ShapeError, match="expected one of silu"):
        launch.ungated(each_kernels, kind="xielu", x=0, size=1, wait=False)
    with pytest.raises(ShapeError, match="expected one of"):
        launch.ungated(each_kernels, kind="relu2", x=0, size=0, wait=False)
