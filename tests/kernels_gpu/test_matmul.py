"""Products on the device against the NumPy truth in float64: every format, ragged sizes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the extra edgetok[gpu]")

import torch

from edgetok.errors import ShapeError, UnsupportedError
from edgetok.kernels_cpu import reference, reference_linear
from edgetok.kernels_gpu.embed import embed
from edgetok.kernels_gpu.jit import from_planes, plane_stride, to_planes
from edgetok.kernels_gpu.linear import Stored, upload
from edgetok.kernels_gpu.matmul_nbits import Epilogue, matmul_nbits
from edgetok.kernels_gpu.norm import rms_norm, to_half
from edgetok.kernels_gpu.tuning import RowConfig, TileConfig

# The tile sizes of a real GPU, so that ragged edges fall where they do there.
ROW = RowConfig(4, 128, 1)
TILE = TileConfig(16, 32, 32, 4)
SHAPES = [(1, 32), (19, 1100)]
TABLE = "table"
# Bits (or 4 bits with a table), group size, zero points.
FORMATS = [
    (2, 64, True),
    (2, 32, False),
    (3, 32, True),
    (4, 32, True),
    (4, 16, False),
    (4, 256, True),
    (8, 128, False),
    (8, 32, True),
    (5, 32, False),
    (6, 32, False),
    (TABLE, 32, False),
    (16, 0, False),
    (32, 0, False),
]


def pack(codes, bits):
    """Low bits first, [..., n] -> [..., n * bits / 8]."""
    grouped = codes.reshape(*codes.shape[:-1], -1, 8 // bits).astype(np.uint16)
    shifts = np.arange(0, 8, bits, dtype=np.uint16)
    return (grouped << shifts).sum(-1).astype(np.uint8)


def random_layer(rng, bits, g, N, K, zeros=False, bias=False, name="layer"):
    """A layer as the artefact stores it, and its weights in float64."""
    biases = rng.standard_normal(N).astype(np.float32) if bias else None
    if bits in (16, 32):
        weight = rng.standard_normal((N, K)).astype(np.float16 if bits == 16 else np.float32)
        return Stored(name=name, bits=bits, inputs=K, weight=weight, bias=biases), weight.astype(
            np.float64
        )
    levels = None
    if bits == TABLE:
        bits, levels = 4, np.sort(rng.choice(256, 16, replace=False)).astype(np.float32) - 128
    G, top = -(-K // g), 1 << bits
    codes = rng.integers(0, top, (N, G, g)).astype(np.uint8)
    stored, high = {3: 2, 5: 4, 6: 4}.get(bits, bits), None
    low = pack(codes & ((1 << stored) - 1), stored)
    if stored < bits:
        high = pack(codes >> stored, bits - stored)
    scales = (rng.standard_normal((N, G)) * 0.1).astype(np.float16)
    points = None
    if zeros:
        points = rng.integers(0, top, (N, G)).astype(np.uint8)
        if bits != 3:
            per_byte = 8 // bits
            points = pack(np.pad(points, ((0, 0), (0, -G % per_byte))), bits)
    if levels is not None or bits in (5, 6):
        values = codes.astype(np.float64) - top // 2 if levels is None else levels[codes]
        truth = (values * scales[..., None].astype(np.float64)).reshape(N, -1)[:, :K]
    else:
        truth = reference_linear.dequantise(
            low, scales, bits=bits, inputs=K, zeros=points, high=high, dtype=np.float64
        )
    stored = Stored(
        name=name, bits=bits, inputs=K, group_size=g, weight=low, high=high, levels=levels,
        scales=scales,
        zeros=points, bias=biases,
    )  # fmt: skip
    return stored, truth


def product(x, weights):
    return x.astype(np.float64) @ weights.T


def planes(x, device):
    return to_planes(torch.from_numpy(x)).to(device)


def nans(device, *shape):
    return torch.full(shape, float("nan"), device=device)


def close(out, expected, rtol):
    error = np.abs(out.cpu().numpy() - expected).max()
    assert error <= rtol * np.abs(expected).max(), error / np.abs(expected).max()


@pytest.mark.parametrize(("bits", "g", "zeros"), FORMATS)
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_one_token(device, bits, g, N, K, zeros):
    rng = np.random.default_rng(N + g)
    stored, weights = random_layer(rng, bits, g, N, K, zeros=zeros, bias=True)
    x = rng.standard_normal((1, K)).astype(np.float32)
    y = nans(device, 1, N)
    matmul_nbits(planes(x, device), upload([stored], device), y, config=ROW)
    close(y, product(x, weights) + stored.bias, 1e-5)


@pytest.mark.parametrize(("bits", "g", "zeros"), FORMATS)
def test_many_tokens(device, bits, g, zeros):
    N, K, T = 40, 300, 19
    rng = np.random.default_rng(g)
    stored, weights = random_layer(rng, bits, g, N, K, zeros=zeros, bias=True)
    linear = upload([stored], device)
    x = rng.standard_normal((T, K)).astype(np.float32) * 3e4  # beyond float16 once weighted
    expected = product(x, weights) + stored.bias
    for kind, rtol in ((torch.float16, 2e-3), (torch.float32, 2e-6)):
        half = torch.full((T, 8, plane_stride(K)), float("nan"), dtype=kind, device=device)
        scale, y = nans(device, T), nans(device, T, N)
        to_half(planes(x, device), half, scale, size=K)
        matmul_nbits(half, linear, y, x_scale=scale, config=TILE)
        close(y, expected, rtol)


@pytest.mark.parametrize("T", [1, 5])
def test_norm_inside(device, T):
    """The norm that one token's product takes is that of `to_half` and of the truth."""
    N, K = 24, 300
    rng = np.random.default_rng(5)
    stored, weights = random_layer(rng, 4, 32, N, K)
    x = rng.standard_normal((T, K)).astype(np.float32) * 7
    factor = rng.standard_normal(K).astype(np.float32)
    normed = reference.rms_norm(x.astype(np.float64), factor.astype(np.float64), 1e-5)
    linear, y = upload([stored], device), nans(device, T, N)
    norm = planes(factor[None], device)[0]
    if T == 1:
        matmul_nbits(planes(x, device), linear, y, norm=norm, eps=1e-5, config=ROW)
    else:
        half = torch.empty((T, 8, plane_stride(K)), device=device)
        scale = nans(device, T)
        to_half(planes(x, device), half, scale, size=K, weight=norm, eps=1e-5)
        matmul_nbits(half, linear, y, x_scale=scale, config=TILE)
    close(y, product(normed, weights), 1e-5)


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu2"])
def test_gate(device, T, kind):
    """Two layers below each other are one product; its result is in plane order."""
    N, K = 50, 96
    rng = np.random.default_rng(6)
    pair = [random_layer(rng, 4, 32, N, K, zeros=True, bias=True) for _ in range(2)]
    linear = upload([stored for stored, _ in pair], device)
    x = rng.standard_normal((T, K)).astype(np.float32)
    gate, up = (product(x, weights) + stored.bias for stored, weights in pair)
    y = torch.zeros((T, 8, plane_stride(N)), device=device)
    ones = None if T == 1 else torch.ones(T, device=device)
    config = ROW if T == 1 else TILE
    epilogue = Epilogue(gate=kind, planes=True)
    matmul_nbits(planes(x, device), linear, y, epilogue, x_scale=ones, config=config)
    close(from_planes(y, N), reference.gated(gate, up, kind), 1e-5)


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("in_planes", [True, False])
def test_added_scaled_capped(device, T, in_planes):
    N, K = 21, 64
    rng = np.random.default_rng(7)
    stored, weights = random_layer(rng, 2, 32, N, K)
    x, old = (rng.standard_normal((T, n)).astype(np.float32) for n in (K, N))
    y = planes(old, device) if in_planes else torch.from_numpy(old.copy()).to(device)
    epilogue = Epilogue(factor=0.5, cap=0.7, add=True, planes=in_planes)
    ones = None if T == 1 else torch.ones(T, device=device)
    matmul_nbits(planes(x, device), upload([stored], device), y, epilogue, x_scale=ones)
    expected = old + reference.softcap(0.5 * product(x, weights), 0.7)
    close(from_planes(y, N) if in_planes else y, expected, 1e-5)


@pytest.mark.parametrize(
    ("bits", "g"), [(2, 32), (3, 64), (4, 32), (5, 32), (6, 32), (TABLE, 32), (8, 16), (16, 0)]
)
def test_embed(device, bits, g):
    N, K = 40, 100
    rng = np.random.default_rng(8)
    stored, weights = random_layer(rng, bits, g, N, K, zeros=bits not in (5, 6, TABLE))
    x = nans(device, 4, 8, plane_stride(K))
    tokens = torch.tensor([0, 39, 7, -1], dtype=torch.int32, device=device)
    embed(tokens, upload([stored], device), x, scale=2.0)
    expected = np.stack([*(2 * weights[[0, 39, 7]]), np.zeros(K)])
    close(from_planes(x, K), expected, 1e-6)
    assert not x[:, K % 8 :, K // 8].any()  # zeros behind the end: what products rely on


def test_rows_of_norms(device):
    rng = np.random.default_rng(9)
    x, out = (rng.standard_normal((5, 72)).astype(np.float32) for _ in range(2))
    weight = rng.standard_normal(72).astype(np.float32)
    expected = reference.rms_norm(x.astype(np.float64), weight.astype(np.float64), 1e-6)
    for add, truth in ((None, expected), (0.5, out + 0.5 * expected)):
        y = torch.from_numpy(out.copy()).to(device)
        given = torch.from_numpy(x).to(device)
        rms_norm(given, torch.from_numpy(weight).to(device), y, size=72, eps=1e-6, add=add)
        close(y, truth, 1e-6)


def test_a_row_of_zeros(device):
    half = nans(device, 1, 8, plane_stride(40)).half()
    scale = nans(device, 1)
    to_half(torch.zeros((1, 8, plane_stride(40)), device=device), half, scale, size=40)
    assert not half.any()
    assert scale.item() == 1.0


def test_refused_before_a_launch(device):
    rng = np.random.default_rng(10)
    stored, _ = random_layer(rng, 4, 32, 8, 64)
    linear = upload([stored], device)
    x = torch.zeros((1, 8, plane_stride(64)), device=device)
    y = torch.zeros((1, 8), device=device)
    with pytest.raises(ShapeError, match="y is"):
        matmul_nbits(x, linear, torch.zeros((1, 9), device=device))
    with pytest.raises(ShapeError, match="x is"):
        matmul_nbits(x[:, :, :-1], linear, y)
    with pytest.raises(ShapeError, match=r"x is torch\.float16"):
        matmul_nbits(x.half(), linear, y)
    with pytest.raises(ShapeError, match="gate 'relu'"):
        matmul_nbits(x, linear, y, Epilogue(gate="relu"))
    with pytest.raises(ShapeError, match="scales is missing"):
        upload([Stored(name="a", bits=4, inputs=64, group_size=32, weight=stored.weight)], device)
    other, _ = random_layer(rng, 2, 32, 8, 64)
    with pytest.raises(ShapeError, match="different kinds"):
        upload([stored, other], device)
    large = Stored(
        name="down", bits=4, inputs=64, group_size=32, weight=stored.weight,
        scales=np.full((8, 2), 6e4, np.float16),
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="down: a scale of 60000"):
        upload([large], device)
