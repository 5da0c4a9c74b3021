"""The plain NumPy truth of linear layers: rounded activations, codes, their products.

Axes: T tokens, K inputs, N outputs, G groups, g group_size. See `reference.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.reference import SMALLEST_ABSMAX, Array, Bytes


def quantise_activations(
    x: npt.NDArray[np.float32], block: int = 32
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round each block of inputs to int8: q = rint(x * (127 / absmax)), scale = absmax / 127.

    Both quotients are float32 and rint goes to even on ties. A block whose absmax is below
    `SMALLEST_ABSMAX` becomes zeros with a scale of zero. Zeros pad the last block.

    Args:
        x: [T, K] float32, finite.
        block: inputs that share a scale.

    Returns:
        q [T, ceil(K / block), block] int8 and scales [T, ceil(K / block)] float32.
    """
    if x.ndim != 2 or x.dtype != np.float32:
        raise ShapeError(f"activations are {x.dtype} {x.shape}, expected float32 [T, K]")
    T, K = x.shape
    blocks = -(-K // block)
    padded = np.zeros((T, blocks * block), np.float32)
    padded[:, :K] = x
    padded = padded.reshape(T, blocks, block)
    absmax = np.max(np.abs(padded), axis=2)
    absmax[absmax < SMALLEST_ABSMAX] = 0
    safe = np.where(absmax == 0, np.float32(1), absmax)
    inverse = np.where(absmax == 0, np.float32(0), np.float32(127) / safe)
    q = np.rint(padded * inverse[:, :, None]).astype(np.int8)
    return q, absmax / np.float32(127)


def unpack_nbits(packed: Bytes, bits: int) -> Bytes:
    """Codes of 1, 2, 4 or 8 bits, low bits of a byte first: [..., n] -> [..., n * 8 / bits]."""
    if bits not in (1, 2, 4, 8) or packed.dtype != np.uint8:
        raise ShapeError(f"{bits} bits of {packed.dtype}, expected 1, 2, 4 or 8 bits of uint8")
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(*packed.shape[:-1], -1)


def unpack_codes(qweight: Bytes, bits: int, high: Bytes | None = None) -> Bytes:
    """A linear layer's codes, padding included.

    Args:
        qweight: [N, G, g * low / 8]: the low bits of each code, 2 of 3, 4 of 5 and 6, or all.
        bits: 2, 3, 4, 5, 6 or 8.
        high: 3, 5 and 6 bits only: [N, G, g * (bits - low) / 8], the other bits of each code.

    Returns:
        [N, G, g] uint8.
    """
    if (bits in (3, 5, 6)) != (high is not None):
        raise ShapeError(f"{bits} bits and a high plane: {high is not None}")
    if high is None:
        return unpack_nbits(qweight, bits)
    low_bits = 2 if bits == 3 else 4
    above = unpack_nbits(high, bits - low_bits)
    return unpack_nbits(qweight, low_bits) | (above << np.uint8(low_bits))


def join_supers(values: Array, factors: Array) -> npt.NDArray[np.float32]:
    """Scales or offsets: int8 [N, G] times float16 super-scales [N, S]; exact in float32."""
    N, G = values.shape
    if factors.shape[0] != N or G % factors.shape[1]:
        raise ShapeError(f"{values.shape} integers and {factors.shape} super-scales")
    wide = np.repeat(factors.astype(np.float32), G // factors.shape[1], axis=1)
    return np.asarray(values.astype(np.float32) * wide)


def unpack_zeros(zeros: Bytes | None, bits: int, shape: tuple[int, int]) -> Bytes:
    """Zero points [N, G] from [N, ceil(G * bits / 8)], one byte each for 3 bits; 2^(bits-1)."""
    if zeros is None:
        return np.full(shape, 1 << (bits - 1), np.uint8)
    unpacked = unpack_nbits(zeros, 8 if bits == 3 else bits)[:, : shape[1]]
    if unpacked.shape != shape:
        raise ShapeError(f"zeros are {zeros.shape} of {bits} bits, expected {shape} of them")
    return unpacked


def _centred(
    codes: Bytes, bits: int, zeros: Bytes | None, offsets: Array | None, table: Array | None
) -> npt.NDArray[np.int64]:
    """The integers that scales multiply: [N, G, g]."""
    if table is not None:
        return table.astype(np.int64)[codes]
    centred = codes.astype(np.int64)
    if offsets is None:
        centred -= unpack_zeros(zeros, bits, codes.shape[:2])[:, :, None]
    return centred


def dequantise(
    qweight: Bytes,
    scales: Array,
    *,
    bits: int,
    inputs: int,
    zeros: Bytes | None = None,
    high: Bytes | None = None,
    offsets: Array | None = None,
    table: npt.NDArray[np.int8] | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    """The weights (q - zero) * scale, q * scale + offset or table[q] * scale of the artefact.

    Args:
        qweight: as in `unpack_codes`.
        scales: [N, G] float16, or what `join_supers` gives.
        bits: as in `unpack_codes`.
        inputs: K; the padding behind it is dropped.
        zeros: as in `unpack_zeros`.
        high: as in `unpack_codes`.
        offsets: like scales, in place of zero points.
        table: [16] int8, the levels of codes of 4 bits, in place of zero points.
        dtype: of the result; exact in float64, and in float32 but for the sum with an offset.

    Returns:
        [N, K].
    """
    codes = unpack_codes(qweight, bits, high)
    N, G, group_size = codes.shape
    if scales.shape != (N, G) or not (G - 1) * group_size < inputs <= G * group_size:
        raise ShapeError(
            f"qweight {qweight.shape} of {bits} bits, scales {scales.shape} and {inputs} inputs "
            f"do not match"
        )
    centred = _centred(codes, bits, zeros, offsets, table)
    weights: Array = centred.astype(dtype) * scales.astype(dtype)[:, :, None]
    if offsets is not None:
        weights += offsets.astype(dtype)[:, :, None]
    return weights.reshape(N, -1)[:, :inputs]


def matmul_nbits(
    x: Array,
    qweight: Bytes,
    scales: Array,
    *,
    bits: int,
    zeros: Bytes | None = None,
    high: Bytes | None = None,
    offsets: Array | None = None,
    table: npt.NDArray[np.int8] | None = None,
) -> npt.NDArray[np.float64]:
    """x W^T with W as in `dequantise` and activations as they are, in float64.

    Args:
        x: [T, K].
        qweight: as in `dequantise`, as all that follow.
        scales: [N, G] float16.
        bits: 2, 3, 4 or 8.
        zeros: packed zero points, or None.
        high: the high plane, or None.
        offsets: as in `dequantise`.
        table: likewise.

    Returns:
        [T, N] float64.
    """
    weights = dequantise(
        qweight, scales, bits=bits, inputs=x.shape[1], zeros=zeros, high=high, offsets=offsets,
        table=table, dtype=np.float64,
    )  # fmt: skip
    return np.asarray(x.astype(np.float64) @ weights.T)


def matmul_nbits_int8(
    x: npt.NDArray[np.float32],
    qweight: Bytes,
    scales: Array,
    *,
    bits: int,
    zeros: Bytes | None = None,
    high: Bytes | None = None,
    offsets: Array | None = None,
    table: npt.NDArray[np.int8] | None = None,
    block: int = 32,
) -> npt.NDArray[np.float64]:
    """Compute `matmul_nbits` with `quantise_activations(x, block)`; products are exact integers.

        y[t, n] = sum_blocks a_scale[t, b] * scale[n, b // (g / block)]
                  * sum_i a[t, b, i] * (q[n, b, i] - zero[n, b // (g / block)])

    Args:
        x: [T, K] float32.
        qweight: as in `dequantise`, as all that follow.
        scales: [N, G] float16.
        bits: 2, 3, 4 or 8.
        zeros: packed zero points, or None.
        high: the high plane, or None.
        offsets: as in `dequantise`; their term is offset * a_scale * sum_i a[t, b, i].
        table: as in `dequantise`.
        block: inputs that share an activation scale; divides g.

    Returns:
        [T, N] float64.
    """
    codes = unpack_codes(qweight, bits, high)
    N, group_size = len(codes), codes.shape[2]
    if group_size % block:
        raise ShapeError(f"group_size {group_size} is no multiple of the block of {block}")
    centred = _centred(codes, bits, zeros, offsets, table).reshape(N, -1, block)
    a, a_scales = quantise_activations(x, block)
    used = a.shape[1]  # the last group may hold whole blocks of padding
    products = np.einsum("tbi,nbi->tnb", a.astype(np.int64), centred[:, :used])
    w_scales = np.repeat(scales.astype(np.float64), group_size // block, axis=1)[:, :used]
    sums = np.einsum("tnb,tb,nb->tn", products, a_scales.astype(np.float64), w_scales)
    if offsets is not None:
        wide = np.repeat(offsets.astype(np.float64), group_size // block, axis=1)[:, :used]
        sums += np.einsum("tb,tb,nb->tn", a.astype(np.int64).sum(2), a_scales, wide)
    return np.asarray(sums, np.float64)
