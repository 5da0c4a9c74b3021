"""LayerNorm against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference
from edgetok.kernels_cpu.elementwise.launch_layer_norm import layer_norm
from edgetok.kernels_cpu.program import tables


@pytest.mark.parametrize("size", [1, 3, 16, 24, 63, 72, 257])
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_numpy(each_kernels, guard, run, size, threads):
    rng = np.random.default_rng(size)
    for tokens, mean in ((1, 0.0), (5, 2.0)):
        x = guard(rng.standard_normal((tokens, size)).astype(np.float32) + np.float32(mean))
        weight = guard(rng.standard_normal(size).astype(np.float32))
        out = guard(np.full(x.shape, np.nan, np.float32))
        made = layer_norm(
            each_kernels, x=x.ctypes.data, out=out.ctypes.data, weight=weight.ctypes.data,
            size=size, eps=1e-5, wait=False,
        )  # fmt: skip
        run(each_kernels, tables.table([made])[0], tokens, threads)
        truth = reference.layer_norm(x.astype(np.float64), weight.astype(np.float64), 1e-5)
        np.testing.assert_allclose(out, truth, rtol=2e-6, atol=4e-6)


def test_what_is_refused(each_kernels):
    with pytest.raises(ShapeError, match="at least 1"):
        layer_norm(each_kernels, x=0, out=0, weight=0, size=0, eps=0.0, wait=False)
