"""Products and rows of weights with offsets, super-scales and tables, and of 5 and 6 bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference_linear
from edgetok.kernels_cpu.linear.launch import embed_instruction
from edgetok.kernels_cpu.linear.operands import LinearWeight
from edgetok.kernels_cpu.program.memory import Floats, Span
from tests.kernels_cpu.linear.test_matmul import _float, _int8, _pack, _product

MODULES = (
    "linear.quantise_activations",
    "linear.q3_supers",
    "linear.q4_offsets",
    "linear.q4_table",
    "linear.q5",
    "linear.q6",
    "linear.q6_scales",
    "linear.exact_grouped",
    "linear.embed_grouped",
)
# Bits, offsets, super-scales of types of GGUF; those of TABLES have a table, too.
KINDS = {
    "Q4_1": (4, True, False), "Q4_K": (4, True, True), "Q5_0": (5, False, False),
    "Q5_1": (5, True, False), "Q5_K": (5, True, True), "Q6_K": (6, False, True),
    "Q3_K": (3, False, True),
    "6 bits": (6, False, False),  # of edgetok alone
    "IQ4_NL": (4, False, False), "IQ4_XS": (4, False, True), "any table": (4, False, False),
}  # fmt: skip
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# The last one is neither in order nor balanced, and has both ends.
_ANY = (127, -128, 0, 3, -128, 127, 90, -7, 127, 127, -128, -1, 1, 64, -64, 32)
TABLES = {"IQ4_NL": _IQ4, "IQ4_XS": _IQ4, "any table": _ANY}
TOKENS = [1, 2, 3, 4, 5, 9, 33]


class Grouped:
    """A random layer: what the artefact stores, and its meaning."""

    def __init__(self, rng, kind, N, K, extreme=False):
        self.bits, offsets, supers = KINDS[kind]
        self.N, self.K = N, K
        self.group_size = 16 if kind in ("Q3_K", "Q6_K") else 32
        low = 2 if self.bits == 3 else 4
        G = K // self.group_size
        codes = rng.integers(0, 1 << self.bits, (N, G, self.group_size)).astype(np.uint8)
        if extreme:
            codes = (
                codes & 1
                if kind in TABLES
                else np.where(codes & 1, np.uint8((1 << self.bits) - 1), np.uint8(0))
            )
        self.parts = {"weight": _pack(codes & ((1 << low) - 1), low)}
        if kind in TABLES:
            self.parts["table"] = np.array(TABLES[kind], np.int8)
        if self.bits != 4:
            self.parts["high"] = _pack(codes >> low, self.bits - low)
        if supers:
            low = 0 if offsets else -128
            self.parts["scales"] = rng.integers(low, 64, (N, G)).astype(np.int8)
            if offsets:
                self.parts["offsets"] = rng.integers(0, 64, (N, G)).astype(np.int8)
            shape = (N, K // 256, 2 if offsets else 1)
            self.parts["super_scales"] = (rng.standard_normal(shape) * 0.01).astype(np.float16)
        else:
            self.parts["scales"] = (rng.standard_normal((N, G)) * 0.1).astype(np.float16)
            if offsets:
                self.parts["offsets"] = rng.standard_normal((N, G)).astype(np.float16)
        self.parts["scales"][0, 0] = 0  # a constant group
        self.bias = rng.standard_normal(N).astype(np.float32)

    def weight(self, guard, at_end=True, bias=False):
        parts = {**self.parts, **({"bias": self.bias} if bias else {})}
        kept = {name: guard(array, at_end) for name, array in parts.items()}
        spans = {name: Span.of(array) for name, array in kept.items()}
        sizes = {"bits": self.bits, "N": self.N, "K": self.K, "group_size": self.group_size}
        return LinearWeight(name="test", **sizes, **spans), kept

    def numbers(self):
        """Scales and offsets as the reference takes them."""
        scales, offsets = self.parts["scales"], self.parts.get("offsets")
        supers = self.parts.get("super_scales")
        if supers is None:
            return scales, offsets
        joined = reference_linear.join_supers(scales, supers[:, :, 0])
        if offsets is None:
            return joined, None
        return joined, reference_linear.join_supers(offsets, supers[:, :, 1])

    def args(self):
        scales, offsets = self.numbers()
        return (self.parts["weight"], scales), {
            "bits": self.bits, "high": self.parts.get("high"), "offsets": offsets,
            "table": self.parts.get("table"),
        }  # fmt: skip

    def weights(self, dtype=np.float64):
        args, more = self.args()
        return reference_linear.dequantise(*args, inputs=self.K, dtype=dtype, **more)

    def magnitude(self, x):
        """Sum of the absolute values of all terms: what rounding errors are relative to."""
        scales, offsets = self.numbers()
        top = 128 if "table" in self.parts else 1 << self.bits
        spread = np.abs(scales.astype(np.float64)) * top
        if offsets is not None:
            spread += np.abs(offsets.astype(np.float64))
        return _product(np.abs(x.astype(np.float64)), np.repeat(spread, self.group_size, axis=1))


def shapes(kind):
    if KINDS[kind][2]:
        return [(1, 256), (7, 512), (33, 768), (19, 4352)]
    return [(1, 32), (5, 96), (7, 288), (33, 576), (50, 896), (19, 4160)]


@pytest.mark.parametrize("kind", KINDS)
def test_int8(each_kernels, guard, run, kind):
    rng = np.random.default_rng(1)
    for i, (N, K) in enumerate(shapes(kind)):
        layer = Grouped(rng, kind, N, K, extreme=i == 2)
        weight, _kept = layer.weight(guard, at_end=i % 3 != 2, bias=i % 2 == 1)
        args, more = layer.args()
        for tokens in TOKENS:
            x = rng.standard_normal((tokens, K)).astype(np.float32)
            x[tokens // 2, : K // 2] = 0
            y, block = _int8(run, each_kernels, weight, x, guard)
            assert block == layer.group_size
            truth = reference_linear.matmul_nbits_int8(x, *args, block=block, **more)
            truth = truth + (layer.bias if weight.bias else 0)
            error = np.abs(y - truth) / (layer.magnitude(x) + np.abs(truth) + 1e-30)
            assert error.max() < 1e-6, (N, K, tokens)
            two, _ = _int8(run, each_kernels, weight, x, guard, threads=2)
            np.testing.assert_array_equal(two, y)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_has_the_same_bits_alone(each_kernels, guard, run, kind):
    rng = np.random.default_rng(2)
    N, K = shapes(kind)[-1]
    weight, _kept = Grouped(rng, kind, N, K).weight(guard)
    x = rng.standard_normal((9, K)).astype(np.float32)
    many, _ = _int8(run, each_kernels, weight, x, guard)
    for t in (0, 8):
        alone, _ = _int8(run, each_kernels, weight, x[t : t + 1], guard)
        np.testing.assert_array_equal(alone[0], many[t])
    twice, _ = _int8(run, each_kernels, weight, x[8:], guard, scale=2.0)
    np.testing.assert_array_equal(twice[0], 2 * many[8])


@pytest.mark.parametrize("kind", KINDS)
def test_exact(each_kernels, guard, run, kind):
    rng = np.random.default_rng(3)
    for i, (N, K) in enumerate(shapes(kind)):
        layer = Grouped(rng, kind, N, K)
        weight, _kept = layer.weight(guard, at_end=i % 3 != 2, bias=i % 2 == 1)
        for tokens in (1, 8, 33):
            x = guard(rng.standard_normal((tokens, K)).astype(np.float32))
            y = _float(run, each_kernels, weight, x, guard)
            truth = _product(x.astype(np.float64), layer.weights())
            truth = truth + (layer.bias if weight.bias else 0)
            error = np.abs(y - truth) / (layer.magnitude(x) + np.abs(truth) + 1e-30)
            assert error.max() < 1e-6, (N, K, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_table(each_kernels, guard, run, kind):
    """Exactly what NumPy makes of codes, scales and offsets in float32."""
    rng = np.random.default_rng(4)
    N, K = shapes(kind)[1]
    layer = Grouped(rng, kind, N, K)
    table, _kept = layer.weight(guard)
    tokens = guard(rng.integers(0, N, 11).astype(np.int32))
    x = guard(np.full((11, K), np.nan, np.float32))
    instruction = embed_instruction(
        each_kernels, table=table, tokens=Span.of(tokens), x=Floats.of(x), scale=0.5
    )
    run(each_kernels, instruction, 11, 2)
    np.testing.assert_array_equal(x, layer.weights(np.float32)[tokens] * np.float32(0.5))


def test_sizes_that_are_refused(guard):
    weight, _kept = Grouped(np.random.default_rng(5), "Q4_K", 3, 512).weight(guard)
    for changes, says in (
        ({"K": 288}, "whole groups"),
        ({"group_size": 64}, "whole groups"),
        ({"N": 4}, "expected 1024 bytes"),
        ({"super_scales": None}, "scales is 48 bytes, expected 96"),
        ({"zeros": weight.scales}, "do not have zeros"),
        ({"bits": 5}, "high is nothing"),
    ):
        with pytest.raises(ShapeError, match=says):
            replace(weight, **changes)
