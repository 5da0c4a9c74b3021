"""Cache and attention on the device against NumPy in float64: slots in any order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the extra edgetok[gpu]")

import torch

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference
from edgetok.kernels_gpu.attention import attention, attention_mass, partials_shape
from edgetok.kernels_gpu.jit import from_planes, plane_stride
from edgetok.kernels_gpu.kv_append import EMPTY, KINDS, Constants, Slots, row_entries
from edgetok.kernels_gpu.rope import rope_append
from edgetok.kernels_gpu.stored import StoredRows

BITS = [4, 8, 16]
SHAPES = [(1, 1, 16), (7, 1, 64), (4, 2, 24), (4, 2, 80), (8, 2, 256)]
# Rotation is slow to interpret: of 4 and 8 bits one shape rotated as a whole, one in blocks of 8.
CASES = [(16, *shape) for shape in SHAPES]
CASES += [(bits, *shape) for bits in (4, 8) for shape in ((2, 1, 64), (4, 2, 24))]
CASES += [(8, 1, 1, 256)]


def make_slots(device, bits, KH, D, slots):
    """Empty slots whose every byte would show if it were read."""
    width, kind = row_entries(D, bits), KINDS[bits]
    fill = 3e4 if bits == 16 else 111
    rows = KH * slots
    scales = (0,) if bits == 16 else (rows,)
    return Slots(
        bits=bits,
        head_dim=D,
        keys=torch.full((rows, width), fill, dtype=kind, device=device),
        values=torch.full((rows, width), fill, dtype=kind, device=device),
        key_scales=torch.full(scales, 1e3, device=device),  # at 4 bits a base of 1e3 too
        value_scales=torch.full(scales, 1e3, device=device),
        positions=torch.full((slots,), EMPTY, dtype=torch.int32, device=device),
        starts=torch.arange(KH, dtype=torch.int32, device=device) * slots,
        used=torch.zeros(1, dtype=torch.int32, device=device),
        span=slots,
        mass=torch.zeros(rows, device=device),
    )


def append(cache, q, k, v, slots, positions, **options):
    """Store tokens; returns the queries as they come out."""
    T, H, D = q.shape
    device = cache.keys.device
    qkv = np.concatenate([q.reshape(T, -1), k.reshape(T, -1), v.reshape(T, -1)], axis=1)
    out = torch.full((T, H, D), float("nan"), device=device)
    rope_append(
        torch.from_numpy(qkv).to(device),
        out,
        cache,
        token_positions=torch.from_numpy(positions.astype(np.int32)).to(device),
        token_slots=torch.from_numpy(slots.astype(np.int32)).to(device)[None],
        **{"rope": None, **options},
    )
    cache.used.fill_(max(int(cache.used), int(slots.max()) + 1))
    return out


def read(cache):
    """Keys and values [slots, KH, D] in float64, as attention sees them: rotated up to 8 bits."""
    made = []
    for codes, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales)):
        x, scales = codes.cpu().numpy(), scales.cpu().numpy()
        if cache.bits == 4:
            x = np.stack([x & 15, x >> 4], axis=-1).reshape(len(x), -1)
            words = scales.view(np.uint32)
            scale, base = (words << 16).view(np.float32), (words & 0xFFFF0000).view(np.float32)
            x = x * scale.astype(np.float64)[:, None] + base[:, None]
        elif cache.bits == 8:
            x = x * scales.astype(np.float64)[:, None]
        x = x.astype(np.float64).reshape(cache.kv_heads, cache.span, -1)
        made.append(x.transpose(1, 0, 2)[..., : cache.head_dim])
    return made


def filled(device, bits, H, KH, D, S, slots=None, seed=0, shuffle=True):
    rng = np.random.default_rng(seed)
    slots = slots or -(-S // 64) * 64
    cache = make_slots(device, bits, KH, D, slots)
    q, k, v = (rng.standard_normal((S, n, D)).astype(np.float32) for n in (H, KH, KH))
    order = rng.permutation(slots)[:S] if shuffle else np.arange(S)
    out = append(cache, q, 2 * k, v, order, np.arange(S))
    return cache, out, 2 * k, v, order


def attend(
    cache, q, first, *, splits=0, lse=False, scale=0.3, window=0, softcap=0.0, ordered=False
):
    T, H, D = q.shape
    device = cache.keys.device
    out = torch.zeros((T, 8, plane_stride(H * D)), device=device)
    out[:] = float("nan")
    positions = torch.arange(first, first + T, dtype=torch.int32, device=device)
    partials = torch.full(partials_shape(H, D, splits), float("nan"), device=device)
    logs = torch.full((T, H), float("nan"), device=device) if lse else None
    attention(
        q, cache, out, token_positions=positions, window=window, scale=scale, softcap=softcap,
        ordered=ordered, partials=partials if splits else None, lse=logs,
    )  # fmt: skip
    result = from_planes(out, H * D).reshape(T, H, D).cpu().numpy()
    return (result, positions, logs) if lse else result


def truth(cache, q, order, *, window=0, scale=0.3, softcap=0.0):
    k, v = read(cache)
    q = q.cpu().numpy().astype(np.float64)
    out = reference.attention(q, k[order], v[order], scale=scale, window=window, cap=softcap)
    return reference.hadamard(out) if cache.bits <= 8 else out


def close(out, expected):
    """Queries and probabilities are float16."""
    error = np.abs(out - expected).max()
    assert error <= 2e-3 * max(1.0, np.abs(expected).max()), error


@pytest.mark.parametrize(("bits", "H", "KH", "D"), CASES)
def test_append_rounds_as_said(device, bits, H, KH, D):
    cache, q, k, v, order = filled(device, bits, H, KH, D, 20)
    for stored, plain in zip(read(cache), (k, v), strict=True):
        given = reference.hadamard(plain) if bits <= 8 else plain
        if bits == 4:
            codes, scale, base = reference.quantise_slots(given)
            expected = codes * scale + base
            # Sums in another order: a code on the border, or the last bit of a bfloat16.
            error = np.abs(stored[order] - expected) / scale
            assert np.mean(error > 1e-5) < 0.02
            assert error.max() < 1.1
            continue
        if bits == 8:
            absmax = np.abs(given).max(-1, keepdims=True)
            # The transform's sums in another order: a code on the border may round the other way.
            error = np.abs(stored[order] - given) / (absmax / 127)
            assert error.max() < 0.501
            continue
        expected = given.astype(np.float16)
        np.testing.assert_allclose(stored[order], expected, rtol=1e-6)
    assert torch.isfinite(q).all()
    assert int((cache.positions != EMPTY).sum()) == 20


@pytest.mark.parametrize(("bits", "H", "KH", "D"), CASES)
def test_attention(device, bits, H, KH, D):
    S = 70
    cache, q, _, _, order = filled(device, bits, H, KH, D, S)
    for T, splits in ((1, 0), (1, 3), (5, 0)):
        out = attend(cache, q[S - T :].contiguous(), S - T, splits=splits)
        close(out, truth(cache, q[S - T :], order))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("window", "softcap"), [(1, 0.0), (8, 0.0), (50, 3.0), (0, 2.0)])
def test_windows_and_caps(device, window, softcap, ordered):
    S = 140
    cache, q, _, _, order = filled(device, 8, 4, 2, 32, S, shuffle=not ordered)
    options = {"window": window, "softcap": softcap}
    for T, splits in ((1, 2), (20, 0)):
        out = attend(
            cache, q[S - T :].contiguous(), S - T, splits=splits, ordered=ordered, **options
        )
        close(out, truth(cache, q[S - T :], order, **options))


def test_norm_and_rope(device):
    """Queries and keys are normed, then rotated; dims beyond the rotation stay."""
    T, H, KH, D, R = 5, 4, 2, 24, 18
    rng = np.random.default_rng(2)
    cache = make_slots(device, 16, KH, D, 64)
    q, k, v = (rng.standard_normal((T, n, D)).astype(np.float32) for n in (H, KH, KH))
    norms = rng.standard_normal((2, D)).astype(np.float32)
    positions = np.arange(3, 3 + T)
    inv_freq = 100.0 ** -(np.arange(R // 2) / 9)
    angles = np.outer(positions, inv_freq)
    rotation = [torch.from_numpy(f(angles).astype(np.float32)).to(device) for f in (np.cos, np.sin)]
    out = append(
        cache, q, k, v, np.arange(T), positions, rope=(rotation[0], rotation[1]), eps=1e-5,
        norms=tuple(torch.from_numpy(n).to(device) for n in norms),
    )  # fmt: skip
    for result, given, norm in (
        (out.cpu().numpy(), q, norms[0]),
        (read(cache)[0][:T], k, norms[1]),
    ):
        normed = reference.rms_norm(given.astype(np.float64), norm.astype(np.float64), 1e-5)
        expected = reference.rope(normed, positions, inv_freq)
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(read(cache)[1][:T], v.astype(np.float16))


def test_a_ring_of_slots(device):
    """Older tokens overwritten: the window still sees all that it should."""
    H, KH, D, window, slots, S = 2, 1, 16, 40, 64, 100
    rng = np.random.default_rng(1)
    cache = make_slots(device, 16, KH, D, slots)
    k, v = (rng.standard_normal((S, KH, D)).astype(np.float16).astype(np.float32) for _ in "kv")
    q = rng.standard_normal((S, H, D)).astype(np.float32)
    for a in range(0, S, 20):
        at = np.arange(a, a + 20)
        queries = append(cache, q[at], k[at], v[at], at % slots, at)
        out = attend(cache, queries, a, window=window)
        expected = reference.attention(
            q[at].astype(np.float64), k[: a + 20].astype(np.float64),
            v[: a + 20].astype(np.float64), scale=0.3, window=window,
        )  # fmt: skip
        close(out, expected)


@pytest.mark.parametrize("T", [1, 9])
def test_mass(device, T):
    """Return the mass that slots receive from the last tokens, added to a share of the old mass."""
    H, KH, D, S = 4, 2, 16, 90
    cache, q, _, _, order = filled(device, 8, H, KH, D, S)
    q = q[S - T :].contiguous()
    _, positions, lse = attend(cache, q, S - T, splits=3 if T == 1 else 0, lse=True)
    rng = np.random.default_rng(3)
    old = rng.random((KH, cache.span)).astype(np.float32)
    cache.mass.copy_(torch.from_numpy(old.ravel()))
    first = T // 3
    attention_mass(
        q, cache, lse, token_positions=positions, window=0, scale=0.3, first=first, keep=0.5
    )
    k = read(cache)[0][order]
    expected = 0.5 * old
    for t in range(first, T):
        for head in range(H):
            seen = k[: S - T + t + 1, head // (H // KH)]
            shares = reference.softmax(0.3 * seen @ q[t, head].cpu().numpy().astype(np.float64))
            expected[head // (H // KH), order[: S - T + t + 1]] += shares
    result, used = cache.mass.cpu().numpy().reshape(KH, -1), int(cache.used)
    np.testing.assert_allclose(result[:, :used], expected[:, :used], atol=3e-3)
    np.testing.assert_array_equal(result[:, used:], old[:, used:])  # not touched


def test_large_scores_do_not_overflow(device):
    cache, q, _, _, order = filled(device, 16, 2, 1, 64, 30)
    q = q[27:] * 1e5
    close(attend(cache, q, 27), truth(cache, q, order))


def test_nothing_to_see_is_zero(device):
    cache, q, *_ = filled(device, 8, 2, 1, 16, 30)
    cache.positions[:] = EMPTY
    for T, splits in ((1, 2), (3, 0)):
        np.testing.assert_array_equal(attend(cache, q[:T].contiguous(), 5, splits=splits), 0)


@pytest.mark.parametrize("bits", BITS)
def test_slots_read_and_written_outside(device, bits):
    """Rows read back equal those given, up to rounding; written again they do not change."""
    cache, _, k, v, order = filled(device, bits, 4, 2, 24, 20)
    at = order.astype(np.int64) + cache.span  # of the second head
    for rows, scales, given in (
        (cache.keys, cache.key_scales, k),
        (cache.values, cache.value_scales, v),
    ):
        stored = StoredRows(rows, scales, 24, keys=rows is cache.keys)
        result = np.asarray(stored.read(at))
        expected = given[:, 1]
        if bits <= 8 and rows is cache.values:
            expected = reference.hadamard(expected)
        assert apart(result, expected) < {4: 0.15, 8: 8e-3, 16: 5e-4}[bits]
        before = stored.read(at)
        rows[at] = 0
        stored.write(at, before)
        # Rounded twice: the range may have shrunk a little, and a code have moved.
        most = {4: 0.15, 8: 8e-3, 16: 1e-6}[bits]
        assert apart(np.asarray(stored.read(at)), result) < most


@pytest.mark.parametrize("bits", [4, 8])
def test_constants(device, bits):
    """Keys stored by constants read back as given, and scores stay what they were."""
    H, KH, D, S = 4, 2, 24, 40
    rng = np.random.default_rng(3)
    cache = make_slots(device, bits, KH, D, 64)
    centre, factor = rng.standard_normal((KH, D)), np.exp2(rng.uniform(-1, 1, (KH, D)))
    parts = [
        torch.tensor(x, dtype=torch.float32, device=device) for x in (centre, factor, 1 / factor)
    ]
    cache = replace(
        cache, constants=Constants(centre=parts[0], factor=parts[1], query_factor=parts[2])
    )
    q, k, v = (rng.standard_normal((S, n, D)).astype(np.float32) for n in (H, KH, KH))
    k = (k + centre).astype(np.float32)
    given = append(cache, q, k, v, np.arange(S), np.arange(S))
    stored = StoredRows(cache.keys, cache.key_scales, D, keys=True)
    for head in range(KH):
        at = np.arange(S, dtype=np.int64) + head * cache.span
        known = (parts[0][head], parts[1][head])
        assert apart(np.asarray(stored.read(at, known)), k[:, head]) < {4: 0.2, 8: 0.012}[bits]
        before = stored.read(at, known)
        cache.keys[at] = 0
        stored.write(at, before, known)
        result = np.asarray(stored.read(at, known))
        assert apart(result, np.asarray(before)) < {4: 0.2, 8: 0.012}[bits]
    found = attend(cache, given[-1:].contiguous(), S - 1)
    expected = reference.attention(q[-1:], k, v, scale=0.3)
    assert np.abs(found - expected).max() < {4: 0.4, 8: 0.03}[bits]


def apart(result, expected):
    """The largest distance of a row, to its length."""
    return (np.linalg.norm(result - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


def test_float16_clamps_instead_of_overflowing(device):
    cache = make_slots(device, 16, 1, 16, 64)
    large = np.full((1, 1, 16), 1e6, np.float32)
    append(cache, large, large, -large, np.array([3]), np.array([0]))
    assert (cache.keys[3] == 65504).all()
    assert (cache.values[3] == -65504).all()


def test_refused_before_a_launch(device):
    cache, q, *_ = filled(device, 8, 2, 1, 16, 30)
    positions = torch.zeros(30, dtype=torch.int32, device=device)
    out = torch.zeros((30, 8, plane_stride(32)), device=device)
    with pytest.raises(ShapeError, match="token_positions"):
        attention(q, cache, out, token_positions=positions[:-1], window=0, scale=1.0)
    with pytest.raises(ShapeError, match="out is"):
        attention(q, cache, out[:5], token_positions=positions, window=0, scale=1.0)
    with pytest.raises(ShapeError, match="kv_bits is 3"):
        replace(cache, bits=3)
    with pytest.raises(ShapeError, match=r"keys is torch\.int8"):
        replace(cache, bits=4)
