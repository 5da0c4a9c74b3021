"""Products at the edges of their arithmetic, their epilogues, and beside onnxruntime's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.linear.launch import allocate_scratch, matmul_instruction
from edgetok.kernels_cpu.linear.operands import Activations, LinearWeight
from edgetok.kernels_cpu.program.memory import Floats, Span
from tests.kernels_cpu.linear.test_matmul import Linear, _float, _int8

MODULES = (
    "linear.quantise_activations",
    "linear.q2",
    "linear.q3",
    "linear.q4",
    "linear.q8",
    "linear.float_rows",
    "linear.exact",
)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zeros", [False, True], ids=["middle", "zeros"])
def test_extremes(each_kernels, guard, run, bits, zeros):
    """Codes 0 and max, activations +-127: what integer sums must hold without saturating."""
    rng = np.random.default_rng(bits)
    K = 512
    layer = Linear(rng, bits, 128, zeros, 20, K, extreme=True)
    weight, _kept = layer.weight(guard)
    for tokens in (1, 4, 33):
        x = np.where(rng.random((tokens, K)) < 0.5, -127, 127).astype(np.float32)
        x[0] = 127
        y, block = _int8(run, each_kernels, weight, x, guard)
        truth = layer.truth(x, block)
        assert (np.abs(y - truth) / layer.magnitude(x)).max() < 1e-6
        # Products of a group add up to 128 * 127 * 255 at most.
        exact = _float(run, each_kernels, weight, guard(x), guard)
        assert (np.abs(exact - truth) / layer.magnitude(x)).max() < 1e-6


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_activations_give_zero(kernels, guard, run, bits):
    layer = Linear(np.random.default_rng(0), bits, 32, True, 9, 100)
    weight, _kept = layer.weight(guard)
    for tokens in (1, 2, 20):
        y, _ = _int8(run, kernels, weight, np.zeros((tokens, 100), np.float32), guard)
        assert not y.any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16, 32])
@pytest.mark.parametrize("tokens", [1, 3, 21])
def test_epilogues(each_kernels, guard, run, bits, tokens):
    """Residual, factor, bias, columns of a wider buffer; other columns stay as they are."""
    rng = np.random.default_rng(tokens)
    N, K = 37, 96
    x = guard(rng.standard_normal((tokens, K)).astype(np.float32))
    bias = guard(rng.standard_normal(N).astype(np.float32))
    if bits < 16:
        layer = Linear(rng, bits, 32, True, N, K)
        weight, _kept = layer.weight(guard)
        weight = replace(weight, bias=Span.of(bias))
        plain = layer.float_truth(x) + bias
    else:
        stored = guard(rng.standard_normal((N, K)).astype(f"float{bits}"))
        weight = LinearWeight(
            name="test", bits=bits, N=N, K=K, weight=Span.of(stored), bias=Span.of(bias)
        )
        plain = x.astype(np.float64) @ stored.astype(np.float64).T + bias
    scratch = allocate_scratch(2)
    for add in (False, True):
        for scale in (1.0, -0.25):
            before = rng.standard_normal((tokens, N + 5)).astype(np.float32)
            y = guard(before)
            out = Floats.of(y, first=2, width=N)
            instruction = matmul_instruction(
                each_kernels, weight=weight, x=Floats.of(x), y=out, scratch=scratch, add=add,
                scale=scale,
            )  # fmt: skip
            run(each_kernels, instruction, tokens, 2)
            truth = plain * scale + (before[:, 2:-3] if add else 0)
            np.testing.assert_allclose(y[:, 2:-3], truth, atol=2e-6 * np.abs(truth).max())
            np.testing.assert_array_equal(y[:, :2], before[:, :2])
            np.testing.assert_array_equal(y[:, -3:], before[:, -3:])


def _onnxruntime(layer, x, accuracy_level):
    G = layer.scales.shape[1]
    stored = [
        ("w", layer.qweight.reshape(layer.N, G, -1), TensorProto.UINT8),
        ("s", layer.scales.astype(np.float32), TensorProto.FLOAT),
    ]
    if layer.zeros is not None:
        stored.append(("z", layer.zeros, TensorProto.UINT8))
    node = helper.make_node(
        "MatMulNBits", ["x", *(name for name, _, _ in stored)], ["y"], domain="com.microsoft",
        K=layer.K, N=layer.N, bits=layer.bits, block_size=layer.group_size,
        accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), layer.N])],
        [helper.make_tensor(n, kind, a.shape, a.tobytes(), raw=True) for n, a, kind in stored],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx.ModelProto.SerializeToString(model), options, ["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("zeros", [False, True], ids=["middle", "zeros"])
def test_beside_onnxruntime(kernels, guard, run, bits, group_size, zeros):
    rng = np.random.default_rng(bits)
    layer = Linear(rng, bits, group_size, zeros, 48, 416)
    weight, _kept = layer.weight(guard)
    for tokens in (1, 12):
        x = guard(rng.standard_normal((tokens, 416)).astype(np.float32))
        exact = _onnxruntime(layer, x, 0)
        norm = np.linalg.norm(exact)
        ours = _float(run, kernels, weight, x, guard)
        assert np.linalg.norm(ours - exact) < 2e-6 * norm
        ours, _ = _int8(run, kernels, weight, x, guard)
        assert np.linalg.norm(ours - exact) < 0.012 * norm
        assert np.linalg.norm(ours - _onnxruntime(layer, x, 4)) < 0.017 * norm


def test_refusals(kernels):
    g = 32
    memory = Span.of(np.zeros(1 << 16, np.uint8))
    good = {"name": "w", "bits": 4, "N": 8, "K": 64, "group_size": g, "weight": memory}
    weight = LinearWeight(**good, scales=memory)
    for change, complaint in (
        ({"scales": None}, "scales is nothing, expected 32 bytes"),
        ({"scales": Span(memory.address, 31)}, "scales is 31 bytes, expected 32"),
        ({"weight": Span(memory.address, 255)}, "weight is 255 bytes, expected 256"),
        ({"zeros": Span(memory.address, 7)}, "zeros is 7 bytes, expected 8"),
        ({"bias": Span(memory.address, 31)}, "bias is 31 bytes, expected 32"),
        ({"high": memory}, "4 bits do not have a high plane"),
        ({"bits": 3}, "high is nothing, expected 64 bytes"),
        ({"bits": 7}, "7 bits in groups of 32"),
        ({"group_size": 48}, "4 bits in groups of 48"),
        ({"bits": 16}, "16 bits do not have scales"),
        ({"N": 0}, r"\[0, 64\]"),
    ):
        with pytest.raises(ShapeError, match=complaint):
            LinearWeight(**{**good, "scales": memory, **change})
    qx = Activations.allocate(kernels.isa, tokens_max=2, K=64, bits=4, group_size=g)
    y = Floats.of(np.zeros((2, 8), np.float32))
    scratch = allocate_scratch(1)

    def build(**change):
        arguments = {"weight": weight, "x": qx, "y": y, "scratch": scratch, **change}
        return matmul_instruction(kernels, **arguments)

    assert build()[0] == kernels.address("matmul_q4")
    for change, complaint in (
        ({"y": Floats.of(np.zeros((1, 8), np.float32))}, r"y is \[1, 8\], expected \[2, 8\]"),
        ({"y": Floats.of(np.zeros((2, 9), np.float32))}, r"y is \[2, 9\]"),
        ({"scratch": scratch[:100]}, "allocate_scratch"),
        ({"x": Floats.of(np.zeros((2, 65), np.float32))}, "stride 65, expected 64"),
        ({"weight": replace(weight, K=60)}, "K 60; activations are for"),
        ({"weight": replace(weight, bits=2)}, "2 bits"),
    ):
        with pytest.raises(ShapeError, match=complaint):
            build(**change)


def test_activations_serve_one_format(kernels):
    memory = Span.of(np.zeros(1 << 16, np.uint8))
    for bits in (2, 3, 4, 8):
        qx = Activations.allocate(kernels.isa, tokens_max=1, K=64, bits=bits, group_size=32)
        for other in (2, 3, 4, 8):
            weight = LinearWeight(
                name="w", bits=other, N=8, K=64, group_size=32, weight=memory, scales=memory,
                high=memory if other == 3 else None,
            )  # fmt: skip
            assert qx.serves(weight) == (bits == other)
            assert not qx.serves(replace(weight, K=60))
            assert not qx.serves(replace(weight, group_size=64))
