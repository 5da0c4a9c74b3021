"""Rotary embeddings against NumPy in float64, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.kernels_cpu import reference
from edgetok.kernels_cpu.elementwise import launch
from edgetok.kernels_cpu.program import tables as launch_program


@pytest.mark.parametrize(
    ("head_dim", "rotary_dim"),
    [(16, 16), (24, 24), (24, 18), (64, 64), (80, 32), (80, 80), (128, 128), (256, 256), (2, 2)],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_rope(each_kernels, guard, run, head_dim, rotary_dim, threads):
    rng = np.random.default_rng(head_dim)
    for tokens, heads in ((1, 1), (1, 4), (5, 3)):
        x0 = rng.standard_normal((tokens, heads, head_dim)).astype(np.float32)
        positions = rng.integers(0, 100_000, tokens)
        inv_freq = 10000.0 ** -(np.arange(rotary_dim // 2) / (rotary_dim // 2))
        angles = np.outer(positions, inv_freq)
        x = guard(x0)
        cos, sin = (
            guard(np.cos(angles).astype(np.float32)),
            guard(np.sin(angles).astype(np.float32)),
        )
        made = launch.rope(
            each_kernels,
            x=x.ctypes.data,
            cos=cos.ctypes.data,
            sin=sin.ctypes.data,
            heads=heads,
            head_dim=head_dim,
            rotary_dim=rotary_dim,
            wait=False,
        )
        run(each_kernels, launch_program.table([made])[0], tokens, threads)
        truth = reference.rope(x0.astype(np.float64), positions, inv_freq)
        np.testing.assert_allclose(x, truth, rtol=0, atol=1e-6)
