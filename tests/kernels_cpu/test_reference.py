"""The NumPy truths against torch, onnxruntime, exact arithmetic and hand-written bytes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference, reference_linear

RNG = np.random.default_rng


def random_layer(bits: int, N: int, K: int, group_size: int, *, zeros: bool) -> dict[str, object]:
    """Random packed arrays of a layer; any bytes are valid codes."""
    rng = RNG(bits * 1000 + K)
    G = -(-K // group_size)
    width = 2 if bits == 3 else bits
    layer: dict[str, object] = {
        "bits": bits,
        "qweight": rng.integers(0, 256, (N, G, group_size * width // 8), dtype=np.uint8),
        "scales": rng.uniform(0.01, 0.1, (N, G)).astype(np.float16),
    }
    if bits == 3:
        layer["high"] = rng.integers(0, 256, (N, G, group_size // 8), dtype=np.uint8)
    if zeros and bits == 3:
        layer["zeros"] = rng.integers(0, 8, (N, G), dtype=np.uint8)
    elif zeros:
        layer["zeros"] = rng.integers(0, 256, (N, -(-G * bits // 8)), dtype=np.uint8)
    return layer


def test_rms_norm_equals_torch() -> None:
    x = RNG(1).standard_normal((3, 5, 72)) * 4
    weight = RNG(2).standard_normal(72)
    expected = torch.nn.functional.rms_norm(
        torch.from_numpy(x), (72,), torch.from_numpy(weight), 1e-5
    )
    np.testing.assert_allclose(reference.rms_norm(x, weight, 1e-5), expected, rtol=1e-12)
    assert reference.rms_norm(x.astype(np.float32), weight, 1e-5).dtype == np.float32
    np.testing.assert_array_equal(reference.rms_norm(np.zeros((1, 72)), weight, 1e-5), 0)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu2"])
def test_activation_equals_torch(kind: str) -> None:
    x = np.concatenate([RNG(3).standard_normal(100) * 3, [0.0, -800.0, 800.0]]).reshape(1, -1)
    function = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
        "relu2": lambda t: torch.nn.functional.relu(t) ** 2,
    }[kind]
    expected = function(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(reference.activation(x, kind), expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(reference.gated(x, x + 1, kind), expected * (x + 1), atol=1e-10)
    assert reference.activation(x.astype(np.float32), kind).dtype == np.float32


def test_clamped_swiglu_equals_torch() -> None:
    gate, up = RNG(3).standard_normal((2, 4, 100)) * 8
    g, u = (torch.from_numpy(x) for x in (gate, up))
    g, u = torch.clamp(g, max=7.0), torch.clamp(u, -7.0, 7.0)
    expected = (g * torch.sigmoid(1.702 * g) * (u + 1)).numpy()
    np.testing.assert_allclose(reference.gated(gate, up, "clamped_swiglu"), expected, rtol=1e-12)


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ShapeError, match="relu"):
        reference.activation(np.zeros(1), "relu")


def test_rope_turns_complex_numbers() -> None:
    x = RNG(4).standard_normal((5, 3, 24))
    frequencies = RNG(5).uniform(0, 1, 9)
    positions = np.array([0, 1, 7, 100, 4000])
    turned = (x[..., :9] + 1j * x[..., 9:18]) * np.exp(1j * np.outer(positions, frequencies))[
        :, None
    ]
    found = reference.rope(x, positions, frequencies, 1.25)
    np.testing.assert_allclose(found[..., :9], 1.25 * turned.real, atol=1e-12)
    np.testing.assert_allclose(found[..., 9:18], 1.25 * turned.imag, atol=1e-12)
    np.testing.assert_array_equal(found[..., 18:], x[..., 18:])
    np.testing.assert_allclose(reference.rope(x, positions, frequencies)[0], x[0])


@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 23), (23, 23), (5, 23)])
@pytest.mark.parametrize("window", [0, 1, 7, 40])
@pytest.mark.parametrize("cap", [0.0, 2.5])
def test_attention_equals_loops(T: int, S: int, window: int, cap: float) -> None:
    H, KH, D = 4, 2, 6
    rng = RNG(T * 100 + S)
    q, k, v = (rng.standard_normal(s) for s in ((T, H, D), (S, KH, D), (S, KH, D)))
    found = reference.attention(q, k, v, scale=0.7, window=window, cap=cap)
    for t in range(T):
        position = S - T + t
        first = max(0, position - window + 1) if window else 0
        for h in range(H):
            scores = [0.7 * float(q[t, h] @ k[s, h // 2]) for s in range(first, position + 1)]
            if cap:
                scores = [cap * np.tanh(score / cap) for score in scores]
            shares = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0).numpy()
            expected = shares @ v[first : position + 1, h // 2]
            np.testing.assert_allclose(found[t, h], expected, rtol=1e-10, atol=1e-12)


def test_attention_equals_torch() -> None:
    rng = RNG(6)
    q, k, v = (rng.standard_normal(s) for s in ((9, 6, 8), (9, 2, 8), (9, 2, 8)))
    tensors = (torch.from_numpy(x).permute(1, 0, 2)[None] for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *tensors, is_causal=True, scale=0.3, enable_gqa=True
    )[0].permute(1, 0, 2)
    np.testing.assert_allclose(reference.attention(q, k, v, scale=0.3), expected, rtol=1e-10)


def test_attention_refuses_shapes() -> None:
    q, k = np.zeros((2, 4, 8)), np.zeros((1, 2, 8))
    with pytest.raises(ShapeError, match="attention"):
        reference.attention(q, k, k, scale=1.0)


def test_quantised_activations_by_hand() -> None:
    x = np.zeros((1, 40), np.float32)
    x[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -3.5]
    x[0, 32:35] = [-2, 1, 0.999]
    q, scales = reference_linear.quantise_activations(x)
    assert q.shape == (1, 2, 32)
    assert q.dtype == np.int8
    np.testing.assert_array_equal(q[0, 0, :7], [127, 0, 2, 2, 0, -4, 0])
    # 63.5 is a tie and goes to 64, which is even.
    np.testing.assert_array_equal(q[0, 1, :4], [-127, 64, 63, 0])
    np.testing.assert_array_equal(scales, np.float32([[1, np.float32(2) / np.float32(127)]]))
    np.testing.assert_array_equal(q[0, 1, 8:], 0)


@pytest.mark.parametrize("K", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_quantised_activations_are_near(K: int, scale: float) -> None:
    x = (RNG(K).standard_normal((4, K)) * scale).astype(np.float32)
    q, scales = reference_linear.quantise_activations(x)
    assert np.abs(q.astype(int)).max() == 127
    for t in range(4):
        for i in range(K):
            step = Fraction(float(scales[t, i // 32]))
            value = Fraction(float(x[t, i]))
            # Half a step, and the rounding of the two quotients: 127 steps of 2^-23 each.
            error = abs(int(q[t, i // 32, i % 32]) * step - value)
            assert error <= step * (Fraction(1, 2) + Fraction(2 * 127, 1 << 23))


def test_activations_too_small_to_divide_by_are_zero() -> None:
    x = np.full((2, 32), 1e-39, np.float32)
    x[1] = 0
    q, scales = reference_linear.quantise_activations(x)
    np.testing.assert_array_equal(q, 0)
    np.testing.assert_array_equal(scales, 0)


def test_codes_by_hand() -> None:
    packed = np.array([[0b11_10_01_00, 0b00_00_11_11]], np.uint8)
    np.testing.assert_array_equal(
        reference_linear.unpack_nbits(packed, 2), [[0, 1, 2, 3, 3, 3, 0, 0]]
    )
    np.testing.assert_array_equal(
        reference_linear.unpack_nbits(np.array([0xA3], np.uint8), 4), [0x3, 0xA]
    )
    np.testing.assert_array_equal(
        reference_linear.unpack_nbits(np.array([0b1000_0101], np.uint8), 1),
        [1, 0, 1, 0, 0, 0, 0, 1],
    )
    low = np.array([[[0b11_10_01_00, 0b11_10_01_00]]], np.uint8)
    high = np.array([[[0b1111_0000]]], np.uint8)
    np.testing.assert_array_equal(
        reference_linear.unpack_codes(low, 3, high), [[[0, 1, 2, 3, 4, 5, 6, 7]]]
    )


def test_weights_by_hand() -> None:
    qweight = np.array([[[0x10, 0x32], [0x54, 0x76]]], np.uint8)
    scales = np.array([[0.5, 2.0]], np.float16)
    zeros = np.array([[0x71]], np.uint8)
    found = reference_linear.dequantise(qweight, scales, bits=4, inputs=7, zeros=zeros)
    np.testing.assert_array_equal(found, [[-0.5, 0.0, 0.5, 1.0, -6.0, -4.0, -2.0]])
    found = reference_linear.dequantise(qweight, scales, bits=4, inputs=8)
    np.testing.assert_array_equal(found, [[-4.0, -3.5, -3.0, -2.5, -8.0, -6.0, -4.0, -2.0]])


def onnxruntime_matmul(x: np.ndarray, layer: dict[str, object], N: int) -> np.ndarray:
    group_bytes = layer["qweight"].shape[2]
    bits = layer["bits"]
    inputs = {"B": layer["qweight"], "scales": layer["scales"].astype(np.float32)}
    if "zeros" in layer:
        inputs["zeros"] = layer["zeros"]
    node = helper.make_node(
        "MatMulNBits",
        ["x", *inputs],
        ["y"],
        domain="com.microsoft",
        K=x.shape[1],
        N=N,
        bits=bits,
        block_size=group_bytes * 8 // bits,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (x.shape[0], N))],
        [onnx.numpy_helper.from_array(array, name) for name, array in inputs.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("K", "group_size"), [(64, 32), (72, 32), (200, 64), (130, 128)])
@pytest.mark.parametrize("zeros", [False, True])
def test_matmul_nbits_equals_onnxruntime(bits: int, K: int, group_size: int, zeros: bool) -> None:
    layer = random_layer(bits, 7, K, group_size, zeros=zeros)
    x = RNG(K).standard_normal((3, K)).astype(np.float32)
    found = reference_linear.matmul_nbits(x, **layer)
    expected = onnxruntime_matmul(x, layer, 7)
    weights = reference_linear.dequantise(
        layer["qweight"], layer["scales"], bits=bits, inputs=K, zeros=layer.get("zeros")
    )
    # Float32 sums of K products.
    bound = K * 2**-23 * (np.abs(x) @ np.abs(weights).T)
    assert np.all(np.abs(found - expected) <= bound)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("K", "group_size"), [(1, 32), (64, 32), (72, 32), (200, 64), (130, 128)])
@pytest.mark.parametrize("zeros", [False, True])
def test_int8_matmul_equals_the_product_of_what_was_rounded(
    bits: int, K: int, group_size: int, zeros: bool
) -> None:
    layer = random_layer(bits, 5, K, group_size, zeros=zeros)
    x = RNG(K).standard_normal((3, K)).astype(np.float32)
    q, scales = reference_linear.quantise_activations(x)
    rounded = (q * scales[:, :, None].astype(np.float64)).reshape(3, -1)[:, :K]
    expected = reference_linear.matmul_nbits(rounded, **layer)
    np.testing.assert_allclose(reference_linear.matmul_nbits_int8(x, **layer), expected, atol=1e-12)


def test_layouts_that_do_not_match_are_refused() -> None:
    layer = random_layer(4, 5, 72, 32, zeros=True)
    with pytest.raises(ShapeError, match="97 inputs"):
        reference_linear.matmul_nbits(np.zeros((1, 97)), **layer)
    with pytest.raises(ShapeError, match="high plane"):
        reference_linear.matmul_nbits(np.zeros((1, 72)), **layer | {"bits": 3})
    with pytest.raises(ShapeError, match="zeros"):
        reference_linear.matmul_nbits(np.zeros((1, 72)), **layer | {"zeros": layer["zeros"][:, :1]})
    with pytest.raises(ShapeError, match="float32"):
        reference_linear.quantise_activations(np.zeros((1, 32)))
    with pytest.raises(ShapeError, match="block of 64"):
        reference_linear.matmul_nbits_int8(np.zeros((1, 72), np.float32), **layer, block=64)
