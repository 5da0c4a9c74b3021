"""Products against the NumPy truth in float64, on every instruction set, between guard pages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgetok.kernels_cpu import reference_linear
from edgetok.kernels_cpu.linear.launch import (
    allocate_scratch,
    matmul_instruction,
    quantise_instruction,
)
from edgetok.kernels_cpu.linear.operands import Activations, LinearWeight
from edgetok.kernels_cpu.program.memory import Floats, Span

MODULES = (
    "linear.quantise_activations",
    "linear.q2",
    "linear.q3",
    "linear.q4",
    "linear.q8",
    "linear.float_rows",
    "linear.exact",
)
SHAPES = [(1, 32), (5, 40), (7, 289), (33, 576), (50, 896), (19, 4130)]
TOKENS = [1, 2, 3, 8, 9, 33]


class Linear:
    """A random quantised layer: what the artefact stores, and its meaning in float64."""

    def __init__(self, rng, bits, group_size, zeros, N, K, extreme=False):
        G = -(-K // group_size)
        top = (1 << bits) - 1
        codes = rng.integers(0, top + 1, (N, G, group_size)).astype(np.uint8)
        if extreme:
            codes = np.where(rng.random(codes.shape) < 0.5, 0, top).astype(np.uint8)
        self.bits, self.N, self.K, self.group_size = bits, N, K, group_size
        self.high = None
        if bits == 3:
            self.qweight = _pack(codes & 3, 2)
            self.high = _pack(codes >> 2, 1)
        else:
            self.qweight = _pack(codes, bits)
        self.scales = (rng.standard_normal((N, G)) * 0.1).astype(np.float16)
        self.scales[0, 0] = 6e-8  # subnormal
        self.zeros = None
        if zeros:
            points = rng.integers(0, top + 1, (N, G)).astype(np.uint8)
            if bits != 3:
                points = np.pad(points, ((0, 0), (0, -G % (8 // bits))))
                points = _pack(points[:, None, :], bits)[:, 0]
            self.zeros = points
        self.bias = rng.standard_normal(N).astype(np.float32)

    def weight(self, guard, at_end=True, bias=False):
        """The layer in guarded memory; keep the second value."""
        kept = [guard(a, at_end) for a in (self.qweight, self.scales)]
        optional = [
            None if a is None else guard(a, at_end)
            for a in (self.high, self.zeros, self.bias if bias else None)
        ]
        spans = [None if a is None else Span.of(a) for a in optional]
        made = LinearWeight(
            name="test",
            bits=self.bits,
            N=self.N,
            K=self.K,
            group_size=self.group_size,
            weight=Span.of(kept[0]),
            scales=Span.of(kept[1]),
            high=spans[0],
            zeros=spans[1],
            bias=spans[2],
        )
        return made, (kept, optional)

    def truth(self, x, block):
        return reference_linear.matmul_nbits_int8(
            x, self.qweight, self.scales, bits=self.bits, zeros=self.zeros, high=self.high,
            block=block,
        )  # fmt: skip

    def float_truth(self, x):
        return _product(x.astype(np.float64), self.weights())

    def weights(self):
        return reference_linear.dequantise(
            self.qweight, self.scales, bits=self.bits, inputs=self.K, zeros=self.zeros,
            high=self.high, dtype=np.float64,
        )  # fmt: skip

    def magnitude(self, x):
        """Sum of the absolute values of all terms: what rounding errors are relative to."""
        scales = np.abs(self.scales.astype(np.float64))
        spread = np.repeat(scales, self.group_size, axis=1)[:, : self.K] * (1 << self.bits)
        return _product(np.abs(x.astype(np.float64)), np.maximum(np.abs(self.weights()), spread))


def _product(x, weights):
    """x W^T without threads, which would wait for each other on a busy machine."""
    return np.einsum("tk,nk->tn", x, weights)


def _pack(codes, bits):
    each = 8 // bits
    packed = np.zeros((*codes.shape[:-1], codes.shape[-1] // each), np.uint8)
    for i in range(each):
        packed |= codes[..., i::each] << np.uint8(i * bits)
    return packed


def _int8(run, kernels, weight, x, guard, threads=1, **options):
    tokens, K = x.shape
    qx = Activations.allocate(
        kernels.isa, tokens_max=tokens, K=K, bits=weight.bits, group_size=weight.group_size
    )
    qx = replace(qx, array=guard(qx.array))
    run(kernels, quantise_instruction(kernels, x=Floats.of(guard(x)), qx=qx), tokens, threads)
    y = guard(np.full((tokens, weight.N), np.nan, np.float32))
    scratch = allocate_scratch(threads)
    scratch[:] = 0xFF  # NaN
    run(
        kernels,
        matmul_instruction(
            kernels, weight=weight, x=qx, y=Floats.of(y), scratch=scratch, **options
        ),
        tokens,
        threads,
    )
    return y, qx.block


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("zeros", [False, True], ids=["middle", "zeros"])
def test_int8(each_kernels, guard, run, bits, group_size, zeros):
    rng = np.random.default_rng(bits * group_size)
    shapes = SHAPES[(bits + group_size // 32 + zeros) % 2 :: 2]
    for i, (N, K) in enumerate(shapes):
        layer = Linear(rng, bits, group_size, zeros, N, K)
        weight, _kept = layer.weight(guard, at_end=i % 3 != 2, bias=i % 2 == 1)
        for tokens in TOKENS:
            x = rng.standard_normal((tokens, K)).astype(np.float32)
            x[tokens // 2, : K // 2] = 0
            y, block = _int8(run, each_kernels, weight, x, guard)
            truth = layer.truth(x, block) + (layer.bias if weight.bias else 0)
            error = np.abs(y - truth) / (layer.magnitude(x) + np.abs(truth))
            assert error.max() < 1e-6, (N, K, tokens)
            two, _ = _int8(run, each_kernels, weight, x, guard, threads=2)
            np.testing.assert_array_equal(two, y)


@pytest.mark.parametrize("bits", [16, 32])
def test_float_weights(each_kernels, guard, run, bits):
    rng = np.random.default_rng(bits)
    for i, (N, K) in enumerate([(1, 1), (5, 40), (7, 289), (33, 576), (50, 900)]):
        stored = guard(rng.standard_normal((N, K)).astype(f"float{bits}"), i % 2 == 0)
        bias = guard(rng.standard_normal(N).astype(np.float32))
        weight = LinearWeight(
            name="test", bits=bits, N=N, K=K, weight=Span.of(stored), bias=Span.of(bias)
        )
        for tokens in TOKENS:
            x = guard(rng.standard_normal((tokens, K)).astype(np.float32))
            y = _float(run, each_kernels, weight, x, guard)
            truth = _product(x.astype(np.float64), stored.astype(np.float64)) + bias
            magnitude = _product(np.abs(x).astype(np.float64), np.abs(stored).astype(np.float64))
            assert (np.abs(y - truth) / (magnitude + np.abs(bias))).max() < 1e-6, (N, K, tokens)
            two = _float(run, each_kernels, weight, x, guard, threads=2)
            np.testing.assert_array_equal(two, y)


def _float(run, kernels, weight, x, guard, threads=1, **options):
    y = guard(np.full((len(x), weight.N), np.nan, np.float32))
    scratch = allocate_scratch(threads)
    scratch[:] = 0xFF
    instruction = matmul_instruction(
        kernels, weight=weight, x=Floats.of(x), y=Floats.of(y), scratch=scratch, **options
    )
    run(kernels, instruction, len(x), threads)
    return y


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("zeros", [False, True], ids=["middle", "zeros"])
def test_exact(each_kernels, guard, run, bits, group_size, zeros):
    rng = np.random.default_rng(bits * group_size)
    shapes = SHAPES[(bits + group_size // 32 + zeros + 1) % 2 :: 2]
    for i, (N, K) in enumerate(shapes):
        layer = Linear(rng, bits, group_size, zeros, N, K)
        weight, _kept = layer.weight(guard, at_end=i % 3 != 2, bias=i % 2 == 1)
        for tokens in (1, 8, 33):
            x = guard(rng.standard_normal((tokens, K)).astype(np.float32))
            y = _float(run, each_kernels, weight, x, guard)
            truth = layer.float_truth(x) + (layer.bias if weight.bias else 0)
            error = np.abs(y - truth) / (layer.magnitude(x) + np.abs(truth))
            assert error.max() < 1e-6, (N, K, tokens)
            two = _float(run, each_kernels, weight, x, guard, threads=2)
            np.testing.assert_array_equal(two, y)
