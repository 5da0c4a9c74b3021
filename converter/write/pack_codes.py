"""Pack codes into bytes as the artefact stores them: low bits first, rows of zeros byte-aligned.

    2, 4, 8 bits: byte j of a group holds codes j*c .. j*c + c - 1, c = 8 / bits, the first lowest
    3 bits: a plane of the low two bits and one of the high bit, each packed like that

Inputs K..G*group_size - 1, which pad the last group, get the group's zero point, so that they add
nothing. Rows are packed a few at a time, which needs about a megabyte beside the result.

Source: onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.formats.layout import TensorFormat, groups_of

Bytes = npt.NDArray[np.uint8]

_CHUNK_CODES = 1 << 20


def pack_linear(
    codes: Bytes, scales: npt.NDArray[np.generic], zeros: Bytes | None, form: TensorFormat
) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays that the artefact stores of a quantised layer, without its bias.

    Args:
        codes: [N, K] uint8, each below 2^bits.
        scales: [N, G] floating point, G = ceil(K / group_size); stored as float16.
        zeros: [N, G] uint8, each below 2^bits, where `form.zeros`; otherwise None.
        form: a quantised format.

    Returns:
        Arrays by suffix: `.qweight`, `.qweight_high` (3 bits), `.scales`, `.zeros`.

    Raises:
        ShapeError: a shape or dtype is not as above, or a code does not fit.
    """
    if not form.quantised:
        raise ShapeError(f"a format of {form.bits} bits has no codes to pack")
    if form.zeros != (zeros is not None):
        raise ShapeError(f"format says zeros={form.zeros}, but zeros are {zeros!r:.20}")
    N, K = _check(codes, zeros, form)
    G = groups_of(K, form.group_size)
    if scales.shape != (N, G):
        raise ShapeError(f"scales are {scales.shape}, expected {(N, G)}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(scales, dtype=np.float16)
    if not np.isfinite(stored).all():
        raise ShapeError("a scale is not finite in float16; store this layer with 32 bits")
    parts: dict[str, npt.NDArray[np.generic]] = {}
    if form.bits == 3:
        parts[".qweight"], parts[".qweight_high"] = pack_planes(codes, form.group_size, zeros)
    else:
        parts[".qweight"] = pack_codes(codes, form.bits, form.group_size, zeros)
    parts[".scales"] = stored
    if zeros is not None:
        parts[".zeros"] = pack_zeros(zeros, form.bits)
    return parts


def pack_codes(codes: Bytes, bits: int, group_size: int, zeros: Bytes | None = None) -> Bytes:
    """Pack codes of 2, 4 or 8 bits as MatMulNBits reads them.

    Args:
        codes: [N, K] uint8, each below 2^bits.
        bits: 2, 4 or 8.
        group_size: inputs that share a scale.
        zeros: [N, G] uint8: what the padding of the last group gets; None: 2^(bits - 1).

    Returns:
        [N, G, group_size * bits / 8] uint8.

    Raises:
        ShapeError: a shape or dtype is not as above, or a code does not fit.
    """
    if bits not in (2, 4, 8):
        raise ShapeError(f"{bits} bits, expected 2, 4 or 8; 3 bits are packed by pack_planes")
    N, K = _check(codes, zeros, TensorFormat(bits, group_size))
    packed = np.empty((N, groups_of(K, group_size), group_size * bits // 8), np.uint8)
    for rows, padded in _padded_rows(codes, bits, group_size, zeros):
        packed[rows] = _pack(padded, bits).reshape(packed[rows].shape)
    return packed


def pack_planes(codes: Bytes, group_size: int, zeros: Bytes | None = None) -> tuple[Bytes, Bytes]:
    """Pack codes of 3 bits into a plane of their low two bits and one of their high bit.

    Args:
        codes: [N, K] uint8, each below 8.
        group_size: inputs that share a scale.
        zeros: [N, G] uint8: what the padding of the last group gets; None: 4.

    Returns:
        [N, G, group_size / 4] and [N, G, group_size / 8] uint8.

    Raises:
        ShapeError: a shape or dtype is not as above, or a code does not fit.
    """
    N, K = _check(codes, zeros, TensorFormat(3, group_size))
    G = groups_of(K, group_size)
    low = np.empty((N, G, group_size // 4), np.uint8)
    high = np.empty((N, G, group_size // 8), np.uint8)
    for rows, padded in _padded_rows(codes, 3, group_size, zeros):
        low[rows] = _pack(padded & np.uint8(3), 2).reshape(low[rows].shape)
        high[rows] = _pack(padded >> np.uint8(2), 1).reshape(high[rows].shape)
    return low, high


def pack_zeros(zeros: Bytes, bits: int) -> Bytes:
    """Pack zero points: [N, G] -> [N, ceil(G * bits / 8)]; 3 bits: one byte each, unchanged."""
    if zeros.ndim != 2 or zeros.dtype != np.uint8:
        raise ShapeError(f"zeros are {zeros.dtype} {zeros.shape}, expected uint8 [N, G]")
    if bits in (3, 8):
        return np.ascontiguousarray(zeros)
    return _pack(np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % (8 // bits)))), bits)


def unpack_linear(
    parts: Mapping[str, npt.NDArray[np.generic]], form: TensorFormat, K: int
) -> tuple[Bytes, npt.NDArray[np.float16], Bytes | None]:
    """Undo `pack_linear`: return codes [N, K], scales [N, G], zeros [N, G] or None."""
    scales = np.asarray(parts[".scales"], np.float16)
    N, G = scales.shape
    low = np.asarray(parts[".qweight"], np.uint8).reshape(N, -1)
    if form.bits == 3:
        high = np.asarray(parts[".qweight_high"], np.uint8).reshape(N, -1)
        codes = _unpack(low, 2) | (_unpack(high, 1) << np.uint8(2))
    else:
        codes = _unpack(low, form.bits)
    zeros = None
    if form.zeros:
        stored = np.asarray(parts[".zeros"], np.uint8)
        zeros = stored if form.bits == 3 else _unpack(stored, form.bits)[:, :G]
    return codes[:, :K], scales, zeros


def _check(codes: Bytes, zeros: Bytes | None, form: TensorFormat) -> tuple[int, int]:
    if codes.ndim != 2 or codes.dtype != np.uint8 or codes.size == 0:
        raise ShapeError(f"codes are {codes.dtype} {codes.shape}, expected uint8 [N, K]")
    N, K = codes.shape
    expected = (N, groups_of(K, form.group_size))
    if zeros is not None and (zeros.shape != expected or zeros.dtype != np.uint8):
        raise ShapeError(f"zeros are {zeros.dtype} {zeros.shape}, expected uint8 {expected}")
    for what, values in (("code", codes), ("zero point", zeros)):
        if values is not None and int(values.max()) >> form.bits:
            raise ShapeError(f"a {what} is {int(values.max())}, expected below {1 << form.bits}")
    return N, K


def _padded_rows(
    codes: Bytes, bits: int, group_size: int, zeros: Bytes | None
) -> Iterator[tuple[slice, Bytes]]:
    """Yield rows, a few at a time, [n, G * group_size], padded with the last group's zero point."""
    N, K = codes.shape
    width = groups_of(K, group_size) * group_size
    step = max(1, _CHUNK_CODES // width)
    for start in range(0, N, step):
        rows = slice(start, min(start + step, N))
        padded = np.empty((rows.stop - rows.start, width), np.uint8)
        padded[:, :K] = codes[rows]
        padded[:, K:] = (1 << (bits - 1)) if zeros is None else zeros[rows, -1:]
        yield rows, padded


def _pack(values: Bytes, bits: int) -> Bytes:
    """[n, m] -> [n, m * bits / 8], low bits first; m * bits is a multiple of 8."""
    each = 8 // bits
    packed = values[:, ::each].copy()
    for i in range(1, each):
        packed |= values[:, i::each] << np.uint8(i * bits)
    return packed


def _unpack(packed: Bytes, bits: int) -> Bytes:
    """Undo `_pack`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    mask = np.uint8((1 << bits) - 1)
    return ((packed[:, :, None] >> shifts) & mask).reshape(len(packed), -1)
