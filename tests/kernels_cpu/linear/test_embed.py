"""Rows of embedding tables against dequantised tables, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference_linear
from edgetok.kernels_cpu.linear.launch import embed_instruction
from edgetok.kernels_cpu.linear.operands import LinearWeight
from edgetok.kernels_cpu.program.memory import Floats, Span

MODULES = ("linear.embed",)


def _embed(run, kernels, guard, table, ids, scale, threads=1):
    x = guard(np.full((len(ids), table.K), np.nan, np.float32))
    instruction = embed_instruction(
        kernels, table=table, tokens=Span.of(ids), x=Floats.of(x), scale=scale
    )
    run(kernels, instruction, len(ids), threads)
    return x


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("with_zeros", [False, True])
@pytest.mark.parametrize(("group_size", "K"), [(32, 33), (64, 288), (128, 576)])
def test_quantised(each_kernels, guard, run, bits, with_zeros, group_size, K):
    rng = np.random.default_rng(bits)
    N, G = 11, -(-K // group_size)
    stored = 2 if bits == 3 else bits
    weight = guard(rng.integers(0, 256, (N, G, group_size * stored // 8)).astype(np.uint8))
    high = guard(rng.integers(0, 256, (N, G, group_size // 8)).astype(np.uint8))
    high = high if bits == 3 else None
    scales = guard(rng.standard_normal((N, G)).astype(np.float16))
    zero_bytes = G if bits == 3 else -(-G * bits // 8)
    zeros = guard(rng.integers(0, 8, (N, zero_bytes)).astype(np.uint8)) if with_zeros else None
    table = LinearWeight(
        name="table",
        bits=bits,
        N=N,
        K=K,
        group_size=group_size,
        weight=Span.of(weight),
        high=None if high is None else Span.of(high),
        scales=Span.of(scales),
        zeros=None if zeros is None else Span.of(zeros),
    )
    truth = reference_linear.dequantise(weight, scales, bits=bits, inputs=K, zeros=zeros, high=high)
    ids = guard(np.array([0, 10, 3, 3, 9], np.int32))
    for threads in (1, 2):
        x = _embed(run, each_kernels, guard, table, ids, 1.5, threads)
        np.testing.assert_array_equal(x, truth[ids] * np.float32(1.5))


@pytest.mark.parametrize("bits", [16, 32])
def test_floats(each_kernels, guard, run, bits):
    values = np.random.default_rng(0).standard_normal((7, 37)).astype(f"float{bits}")
    if bits == 16:
        values[0, :4] = [6e-8, -6e-8, 65504, -0.0]
    values = guard(values)
    table = LinearWeight(name="table", bits=bits, N=7, K=37, weight=Span.of(values))
    ids = guard(np.array([6, 0, 2], np.int32))
    x = _embed(run, each_kernels, guard, table, ids, 1.0)
    np.testing.assert_array_equal(x, values[ids].astype(np.float32))


def test_refusals(kernels):
    values = np.zeros((7, 37), np.float32)
    table = LinearWeight(name="table", bits=32, N=7, K=37, weight=Span.of(values))
    x = Floats.of(np.zeros((3, 37), np.float32))
    with pytest.raises(ShapeError, match="2 tokens into"):
        embed_instruction(kernels, table=table, tokens=Span.of(np.zeros(2, np.int32)), x=x)
    with pytest.raises(ShapeError, match="weight is 1036 bytes, expected 1184"):
        LinearWeight(name="table", bits=32, N=8, K=37, weight=Span.of(values))
