"""The gated short convolution against NumPy, in parts and cut anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference, reference_delta
from edgetok.kernels_cpu.recurrent.launch import history_rows, short_conv
from tests.kernels_cpu.recurrent.running import State, in_pieces, run

MODULES = ("recurrent.short_conv",)
SIZES = [1, 7, 16, 72, 129]


def step(kernels, guard, weight, parts, threads, gated, bias):
    """The values of each part (its state, b, c and x) after one run."""
    size, taps = weight.shape
    slack = np.zeros(weight.size + 64, np.float32)
    slack[: weight.size] = weight.reshape(-1)
    b, c, x = (guard(np.concatenate([part[i] for part in parts])) for i in (1, 2, 3))
    made = short_conv(
        kernels,
        gate_in=b.ctypes.data if gated else 0,
        gate_out=c.ctypes.data if gated else 0,
        value=x.ctypes.data,
        weight=slack.ctypes.data,
        size=size,
        taps=taps,
        state=1,
        wait=False,
        bias=0 if bias is None else bias.ctypes.data,
    )
    run(made, len(x), threads, [(part[0], len(part[1])) for part in parts])
    return np.split(x, np.cumsum([len(part[1]) for part in parts])[:-1])


@pytest.mark.parametrize("taps", [2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("around", ["gates", "silu", "silu and bias"])
def test_equals_numpy_however_it_is_cut(each_kernels, guard, size, taps, around):
    rng = np.random.default_rng(size)
    gated = around == "gates"
    weight = rng.standard_normal((size, taps)).astype(np.float32)
    bias = None
    if around == "silu and bias":
        bias = guard(rng.standard_normal(size).astype(np.float32))
    texts = [rng.standard_normal((3, length, size)).astype(np.float32) for length in (97, 60, 2)]
    exact = [text.astype(np.float64) for text in texts]
    if gated:
        truths = [reference.short_conv(*text, weight) for text in exact]
    else:
        plain = 0.0 if bias is None else bias
        truths = [reference_delta.causal_conv(text[2], weight, plain) for text in exact]
    results = []
    for threads, most in ((1, 97), (2, 5), (3, 1)):
        states = [State(guard, size, history_rows(taps), states=2) for _ in texts]

        def one(parts, threads=threads):
            return step(each_kernels, guard, weight, parts, threads, gated, bias)

        results.append(in_pieces(texts, states, rng, most, one))
        for values, truth in zip(results[-1], truths, strict=True):
            np.testing.assert_allclose(values, truth, rtol=1e-5, atol=1e-5)
    for one in results[1:]:
        for values, others in zip(one, results[0], strict=True):
            np.testing.assert_array_equal(values, others)


def test_sizes_are_checked(kernels):
    good = {"size": 8, "taps": 3, "state": 0}
    for change in ({"size": 0}, {"taps": 1}, {"taps": 9}, {"state": -1}):
        with pytest.raises(ShapeError, match="out of range"):
            short_conv(
                kernels, gate_in=0, gate_out=0, value=0, weight=0, wait=False, **{**good, **change}
            )
    addresses = {"gate_in": 64, "value": 0, "weight": 0, "wait": False}
    with pytest.raises(ShapeError, match="both or none"):
        short_conv(kernels, gate_out=0, **addresses, **good)
    with pytest.raises(ShapeError, match="expected gates alone"):
        short_conv(kernels, gate_out=64, bias=64, **addresses, **good)
