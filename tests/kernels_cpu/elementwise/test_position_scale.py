"""Queries that grow with their position, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.elementwise.launch_position_scale import position_scale
from edgetok.kernels_cpu.program import tables


@pytest.mark.parametrize("head_dim", [1, 16, 24, 63])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_equals_numpy(each_kernels, guard, run, head_dim, threads):
    rng = np.random.default_rng(head_dim)
    for positions, every, growth in (
        ([0], 16, 0.1),
        ([15, 16, 31, 32, 33], 16, 0.5),
        (rng.integers(0, 1 << 28, 40), 1, 0.1),
        ([16383, 16384, 262143, (1 << 28) - 1], 16384, 0.1),
        ([40, 90], 16, 0.0),
    ):
        where = guard(np.asarray(positions, np.int32))
        x0 = rng.standard_normal((len(where), 5, head_dim)).astype(np.float32)
        x = guard(x0)
        made = position_scale(
            each_kernels, x=x.ctypes.data, positions=where.ctypes.data, heads=5,
            head_dim=head_dim, growth=growth, every=every, wait=False,
        )  # fmt: skip
        run(each_kernels, tables.table([made])[0], len(where), threads)
        factor = (1 + growth * np.log1p(where // every)).astype(np.float32)
        np.testing.assert_allclose(x, x0 * factor[:, None, None], rtol=1.3e-7, atol=0)


def test_what_is_refused(each_kernels):
    good = {"heads": 1, "head_dim": 1, "every": 1}
    for change in good:
        with pytest.raises(ShapeError, match="at least 1"):
            position_scale(
                each_kernels, x=0, positions=0, growth=0.1, wait=False, **{**good, change: 0}
            )
