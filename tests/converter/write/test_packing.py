"""Packing against bytes written by hand and against onnxruntime's own operators."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgetok.converter.write.pack_codes import (
    pack_codes,
    pack_linear,
    pack_planes,
    pack_zeros,
    unpack_linear,
)
from edgetok.errors import ShapeError
from edgetok.formats.layout import TensorFormat


def codes_of(bits: int, N: int, K: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, (N, K)).astype(np.uint8)


def test_4_bits_by_hand() -> None:
    codes = np.arange(16, dtype=np.uint8)[None]
    assert pack_codes(codes, 4, 16).tobytes().hex() == "1032547698badcfe"


def test_2_bits_by_hand() -> None:
    codes = np.array([[0, 1, 2, 3] * 2 + [3, 3, 0, 0] + [1, 0, 0, 2]], np.uint8)
    # 3*64 + 2*16 + 1*4 + 0 = 0xe4; 3 + 3*4 = 0x0f; 1 + 2*64 = 0x81
    assert pack_codes(codes, 2, 16).tobytes().hex() == "e4e40f81"


def test_8_bits_by_hand() -> None:
    codes = np.arange(16, dtype=np.uint8)[None] * 16 + 5
    assert pack_codes(codes, 8, 16).tobytes() == codes.tobytes()


def test_3_bits_by_hand() -> None:
    codes = np.array([[0, 1, 2, 3, 4, 5, 6, 7] + [7] * 4 + [4] * 4], np.uint8)
    low, high = pack_planes(codes, 16)
    assert low.tobytes().hex() == "e4e4ff00"
    assert high.tobytes().hex() == "f0ff"


def test_padding_is_the_zero_point() -> None:
    codes = np.full((2, 18), 1, np.uint8)
    zeros = np.array([[1, 9], [2, 10]], np.uint8)
    assert pack_codes(codes, 4, 16, zeros)[0, 1].tobytes().hex() == "11" + "99" * 7
    assert pack_codes(codes, 4, 16, zeros)[1, 1].tobytes().hex() == "11" + "aa" * 7
    assert pack_codes(codes, 4, 16)[1, 1].tobytes().hex() == "11" + "88" * 7
    low, high = pack_planes(codes, 16)
    assert low[0, 1].tobytes().hex() == "05000000"
    assert high[0, 1].tobytes().hex() == "fcff"


def test_zeros_by_hand() -> None:
    zeros = np.array([[1, 2, 3], [3, 0, 1]], np.uint8)
    assert pack_zeros(zeros, 4).tobytes().hex() == "21030301"
    assert pack_zeros(zeros, 2).tobytes().hex() == "3913"
    assert pack_zeros(zeros, 3).tobytes() == zeros.tobytes()
    assert pack_zeros(zeros, 8).tobytes() == zeros.tobytes()


@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(("group_size", "K"), [(16, 1), (32, 77), (128, 300), (256, 256)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_unpacks_to_the_same(bits: int, group_size: int, K: int, zeros: bool) -> None:
    form = TensorFormat(bits, group_size, zeros)
    codes, G = codes_of(bits, 19, K), -(-K // group_size)
    scales = np.random.default_rng(1).random((19, G)).astype(np.float16)
    zero_points = codes_of(bits, 19, G, 2) if zeros else None
    packed = pack_linear(codes, scales, zero_points, form)
    result = unpack_linear(packed, form, K)
    np.testing.assert_array_equal(result.codes, codes)
    np.testing.assert_array_equal(result.scales, scales)
    if zeros:
        np.testing.assert_array_equal(result.zeros, zero_points)
    else:
        assert result.zeros is None


@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(("group_size", "K"), [(16, 45), (32, 96), (64, 200)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_onnxruntime_multiplies_the_same(bits: int, group_size: int, K: int, zeros: bool) -> None:
    N, G = 21, -(-K // group_size)
    rng = np.random.default_rng(3)
    codes, scales = codes_of(bits, N, K), rng.random((N, G)).astype(np.float16)
    zero_points = codes_of(bits, N, G, 4) if zeros else None
    packed = pack_linear(codes, scales, zero_points, TensorFormat(bits, group_size, zeros))
    feed = {
        "x": rng.standard_normal((5, K), dtype=np.float32),
        "q": packed[".qweight"],
        "s": packed[".scales"].astype(np.float32),
    }
    if zeros:
        feed["z"] = packed[".zeros"]
    node = helper.make_node(
        "MatMulNBits",
        list(feed),
        ["y"],
        domain="com.microsoft",
        K=K,
        N=N,
        bits=bits,
        block_size=group_size,
    )
    types = {"x": TensorProto.FLOAT, "s": TensorProto.FLOAT}
    values = [
        helper.make_tensor_value_info(n, types.get(n, TensorProto.UINT8), a.shape)
        for n, a in feed.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (5, N))
    model = helper.make_model(
        helper.make_graph([node], "g", values, [output]),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    result = ort.InferenceSession(model.SerializeToString()).run(None, feed)[0]
    wide_scales = np.repeat(scales.astype(np.float64), group_size, 1)[:, :K]
    wide_zeros: np.ndarray | float = 2.0 ** (bits - 1)
    if zero_points is not None:
        wide_zeros = np.repeat(zero_points.astype(np.float64), group_size, 1)[:, :K]
    expected = feed["x"] @ ((codes.astype(np.float64) - wide_zeros) * wide_scales).T
    # Sums of K products in float32.
    np.testing.assert_allclose(result, expected, rtol=0, atol=K * 2**-23 * np.abs(expected).max())


def test_memory_stays_near_the_result() -> None:
    codes = codes_of(4, 4096, 4096)
    tracemalloc.start()
    pack_codes(codes, 4, 32)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < codes.nbytes / 2 + (6 << 20)


@pytest.mark.parametrize(
    ("codes", "scales", "zeros", "form", "message"),
    [
        (np.full((2, 32), 16), np.ones((2, 1)), None, TensorFormat(4), "below 16"),
        (np.zeros((2, 33)), np.ones((2, 1)), None, TensorFormat(4), "scales"),
        (np.zeros((2, 32)), np.ones((2, 1)), np.zeros((2, 1)), TensorFormat(4), "zeros"),
        (np.zeros((2, 32)), np.ones((2, 1)), None, TensorFormat(4, zeros=True), "zeros"),
        (np.zeros((2, 32)), np.ones((2, 1)), np.zeros((2, 2)), TensorFormat(4, 32, True), "zeros"),
        (np.zeros((2, 32)), np.full((2, 1), 1e6), None, TensorFormat(4), "float16"),
        (np.zeros((2, 32)), np.full((2, 1), np.nan), None, TensorFormat(4), "float16"),
        (np.zeros((0, 32)), np.ones((0, 1)), None, TensorFormat(4), "codes"),
        (np.zeros(32), np.ones((1, 1)), None, TensorFormat(4), "codes"),
        (np.zeros((2, 32)), np.ones((2, 1)), None, TensorFormat(16), "16 bits"),
    ],
)
def test_refuses(
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    form: TensorFormat,
    message: str,
) -> None:
    zero_points = None if zeros is None else zeros.astype(np.uint8)
    with pytest.raises(ShapeError, match=message):
        pack_linear(codes.astype(np.uint8), scales, zero_points, form)
