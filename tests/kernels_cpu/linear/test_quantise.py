"""Int8 activations against the NumPy truth, code by code."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference_linear
from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.launch import quantise_instruction
from edgetok.kernels_cpu.linear.operands import Activations
from edgetok.kernels_cpu.program.memory import Floats, Span

MODULES = ("linear.quantise_activations",)


def _read(qx, tokens, vector_bytes):
    """Return codes [T, K] and block scales of a buffer; check the sums of codes."""
    planes, block, g = layout.PLANES[qx.bits], qx.block, qx.group_size
    codes = layout.padded_codes(qx.K, g, planes, vector_bytes)
    blocks, nbytes = codes // block, layout.blocks_bytes(codes, block)
    out = []
    for t in range(tokens):
        token = qx.array[t * layout.token_bytes(codes, block) :]
        by_plane = token[:codes].view(np.int8).reshape(-1, planes, vector_bytes)
        q = by_plane.transpose(0, 2, 1).reshape(-1)
        scales, middles, starts = (
            token[at : at + 4 * blocks] for at in range(codes, codes + 3 * nbytes, nbytes)
        )
        sums = q.astype(np.int32).reshape(-1, block).sum(1)
        np.testing.assert_array_equal(middles.view(np.int32), -(1 << (qx.bits - 1)) * sums)
        offset = 128 if qx.bits == 8 else 1 << qx.bits
        np.testing.assert_array_equal(starts.view(np.int32), -offset * sums)
        out.append((q, scales.view(np.float32)))
    return [np.stack(parts) for parts in zip(*out, strict=True)]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize(("tokens", "K"), [(1, 576), (3, 40), (8, 896), (9, 1), (33, 289)])
def test_codes_and_scales(each_kernels, guard, run, bits, group_size, tokens, K):
    rng = np.random.default_rng(K)
    x = rng.standard_normal((tokens, K)).astype(np.float32) * 3
    x[0, : min(K, 40)] = 0  # a block of zeros
    x[-1, -1] = -1000
    qx = Activations.allocate(
        each_kernels.isa, tokens_max=tokens, K=K, bits=bits, group_size=group_size
    )
    first = None
    for threads in (1, 2, 3):
        qx.array[:] = 0xA5
        instruction = quantise_instruction(each_kernels, x=Floats.of(guard(x)), qx=qx)
        run(each_kernels, instruction, tokens, threads)
        q, scales = _read(qx, tokens, each_kernels.isa.vector_bytes)
        truth, truth_scales = reference_linear.quantise_activations(x, qx.block)
        used = truth.shape[1]
        np.testing.assert_array_equal(q[:, : used * qx.block], truth.reshape(tokens, -1))
        assert not q[:, used * qx.block :].any()
        np.testing.assert_array_equal(scales[:, :used], truth_scales)
        assert not scales[:, used:].any()
        first = q if first is None else first
        np.testing.assert_array_equal(q, first)


def test_rounds_half_to_even_and_keeps_extremes(each_kernels, run):
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -127, 126.5] + [0] * 24], np.float32)
    qx = Activations.allocate(each_kernels.isa, tokens_max=1, K=32, bits=8, group_size=32)
    run(each_kernels, quantise_instruction(each_kernels, x=Floats.of(x), qx=qx), 1)
    q, _ = _read(qx, 1, each_kernels.isa.vector_bytes)
    assert q[0, :8].tolist() == [127, 0, 2, 2, 0, -2, -127, 126]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(kernels, run, value):
    x = np.ones((1, 64), np.float32)
    x[0, 40] = value
    qx = Activations.allocate(kernels.isa, tokens_max=1, K=64, bits=4, group_size=32)
    run(kernels, quantise_instruction(kernels, x=Floats.of(x), qx=qx), 1)
    _, scales = _read(qx, 1, kernels.isa.vector_bytes)
    assert np.isfinite(scales[0, 0])
    assert not np.isfinite(scales[0, 1])


@pytest.mark.parametrize("tiny", [1e-45, 1e-38, 9.9e-37, 1.1e-36])
def test_tiny_blocks(each_kernels, run, tiny):
    x = np.full((1, 32), tiny, np.float32)
    qx = Activations.allocate(each_kernels.isa, tokens_max=1, K=32, bits=4, group_size=32)
    run(each_kernels, quantise_instruction(each_kernels, x=Floats.of(x), qx=qx), 1)
    q, scales = _read(qx, 1, each_kernels.isa.vector_bytes)
    truth, truth_scales = reference_linear.quantise_activations(x, 32)
    np.testing.assert_array_equal(q[:, :32], truth[0])
    np.testing.assert_array_equal(scales[:, :1], truth_scales)


def test_columns_of_a_wider_buffer(kernels, run):
    x = np.random.default_rng(0).standard_normal((3, 200)).astype(np.float32)
    qx = Activations.allocate(kernels.isa, tokens_max=3, K=70, bits=8, group_size=32)
    floats = Floats.of(x, first=65, width=70)
    run(kernels, quantise_instruction(kernels, x=floats, qx=qx), 3)
    q, _ = _read(qx, 3, kernels.isa.vector_bytes)
    truth, _ = reference_linear.quantise_activations(np.ascontiguousarray(x[:, 65:135]), qx.block)
    np.testing.assert_array_equal(q[:, :96], truth.reshape(3, -1))


def test_refusals(kernels):
    qx = Activations.allocate(kernels.isa, tokens_max=2, K=64, bits=4, group_size=32)
    with pytest.raises(ShapeError, match=r"x \[3, 64\]"):
        quantise_instruction(kernels, x=Floats.of(np.zeros((3, 64), np.float32)), qx=qx)
    with pytest.raises(ShapeError, match=r"x \[2, 65\]"):
        quantise_instruction(kernels, x=Floats.of(np.zeros((2, 65), np.float32)), qx=qx)
    with pytest.raises(ShapeError, match="float64"):
        Floats.of(np.zeros((2, 65)))
    with pytest.raises(ShapeError, match="columns"):
        Floats.of(np.zeros((2, 65), np.float32), first=60, width=6)
    with pytest.raises(ShapeError, match="not C-contiguous"):
        Span.of(np.zeros((4, 4))[:, :2])
    with pytest.raises(ShapeError, match="groups of 48"):
        Activations.allocate(kernels.isa, tokens_max=2, K=64, bits=4, group_size=48)
