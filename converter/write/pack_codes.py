"""Pack codes into bytes as the artefact stores them: low bits first, rows of zeros byte-aligned.

    2, 4, 8 bits: byte j of a group holds codes j*c .. j*c + c - 1, c = 8 / bits, the first lowest
    3, 5, 6 bits: a plane of the low 2, 4, 4 bits and one of the other bits, each packed like that

Inputs K..G*group_size - 1, which pad the last group, get the group's zero point, so that they add
nothing. Rows are packed a few at a time, which needs about a megabyte beside the result.

Source: onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantised import Quantised
from edgetok.errors import ShapeError
from edgetok.formats.layout import HIGH_BITS, LOW_BITS, TABLE_LEVELS, TensorFormat, groups_of

Bytes = npt.NDArray[np.uint8]

SUFFIXES = (
    ".qweight", ".qweight_high", ".scales", ".zeros", ".offsets", ".super_scales", ".table",
)  # fmt: skip
_CHUNK_CODES = 1 << 20


def pack_linear(
    codes: Bytes, scales: npt.NDArray[np.generic], zeros: Bytes | None, form: TensorFormat
) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays that the artefact stores of a quantised layer, without its bias.

    Args:
        codes: [N, K] uint8, each below 2^bits.
        scales: [N, G] floating point, G = ceil(K / group_size); stored as float16.
        zeros: [N, G] uint8, each below 2^bits, where `form.zeros`; otherwise None.
        form: a quantised format without offsets, super-scales and tables.

    Returns:
        Arrays by suffix: `.qweight`, `.qweight_high` (3, 5, 6 bits), `.scales`, `.zeros`.

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
    parts = _packed_codes(codes, form, zeros)
    parts[".scales"] = stored
    if zeros is not None:
        parts[".zeros"] = pack_zeros(zeros, form.bits)
    return parts


def pack_quantised(q: Quantised) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays that the artefact stores of a layer of any format, without its bias.

    Raises:
        ShapeError: as for `pack_linear`.
    """
    form = q.form
    if not (form.offsets or form.supers or form.table):
        return pack_linear(q.codes, q.scales, q.zeros, form)
    _check(q.codes, None, form)
    parts = _packed_codes(q.codes, form, None)
    kind = np.int8 if form.supers else np.float16
    for suffix, values in ((".scales", q.scales), (".offsets", q.offsets)):
        if values is not None:
            if values.dtype != kind or not np.isfinite(values).all():
                raise ShapeError(f"{suffix} are {values.dtype}, expected finite {kind.__name__}")
            parts[suffix] = np.ascontiguousarray(values)
    if q.super_scales is not None:
        parts[".super_scales"] = np.ascontiguousarray(q.super_scales)
    if q.table is not None:
        if q.table.dtype != np.int8 or q.table.shape != (TABLE_LEVELS,):
            raise ShapeError(f".table is {q.table.dtype} {q.table.shape}, expected int8 [16]")
        parts[".table"] = q.table
    return parts


def _packed_codes(
    codes: Bytes, form: TensorFormat, zeros: Bytes | None
) -> dict[str, npt.NDArray[np.generic]]:
    if form.bits not in HIGH_BITS:
        return {".qweight": pack_codes(codes, form.bits, form.group_size, zeros)}
    low, high = pack_planes(codes, form.group_size, zeros, form.bits)
    return {".qweight": low, ".qweight_high": high}


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
        raise ShapeError(f"{bits} bits, expected 2, 4 or 8; others are packed by pack_planes")
    N, K = _check_codes(codes, zeros, bits, group_size)
    packed = np.empty((N, groups_of(K, group_size), group_size * bits // 8), np.uint8)
    for rows, padded in _padded_rows(codes, bits, group_size, zeros):
        packed[rows] = _pack(padded, bits).reshape(packed[rows].shape)
    return packed


def pack_planes(
    codes: Bytes, group_size: int, zeros: Bytes | None = None, bits: int = 3
) -> tuple[Bytes, Bytes]:
    """Pack codes of 3, 5 or 6 bits into a plane of their low bits and one of the others.

    Args:
        codes: [N, K] uint8, each below 2^bits.
        group_size: inputs that share a scale.
        zeros: [N, G] uint8: what the padding of the last group gets; None: 2^(bits - 1).
        bits: 3, 5 or 6.

    Returns:
        [N, G, group_size * LOW_BITS / 8] and [N, G, group_size * HIGH_BITS / 8] uint8.

    Raises:
        ShapeError: a shape or dtype is not as above, or a code does not fit.
    """
    N, K = _check_codes(codes, zeros, bits, group_size)
    G, low_bits, high_bits = groups_of(K, group_size), LOW_BITS[bits], HIGH_BITS[bits]
    low = np.empty((N, G, group_size * low_bits // 8), np.uint8)
    high = np.empty((N, G, group_size * high_bits // 8), np.uint8)
    for rows, padded in _padded_rows(codes, bits, group_size, zeros):
        mask = np.uint8((1 << low_bits) - 1)
        low[rows] = _pack(padded & mask, low_bits).reshape(low[rows].shape)
        high[rows] = _pack(padded >> np.uint8(low_bits), high_bits).reshape(high[rows].shape)
    return low, high


def pack_zeros(zeros: Bytes, bits: int) -> Bytes:
    """Pack zero points: [N, G] -> [N, ceil(G * bits / 8)]; 3 bits: one byte each, unchanged.

    Raises:
        ShapeError: `zeros` are not uint8 [N, G].
    """
    if zeros.ndim != 2 or zeros.dtype != np.uint8:
        raise ShapeError(f"zeros are {zeros.dtype} {zeros.shape}, expected uint8 [N, G]")
    if bits in (3, 8):
        return np.ascontiguousarray(zeros)
    return _pack(np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % (8 // bits)))), bits)


def unpack_linear(
    parts: Mapping[str, npt.NDArray[np.generic]], form: TensorFormat, K: int
) -> Quantised:
    """Undo `pack_linear` and `pack_quantised`.

    Args:
        parts: arrays by suffix, shapes as in `formats/layout.py`.
        form: their format.
        K: inputs, without padding.
    """
    scales = parts[".scales"]
    N, G = scales.shape
    low = np.asarray(parts[".qweight"], np.uint8).reshape(N, -1)
    codes = _unpack(low, LOW_BITS[form.bits])
    if form.bits in HIGH_BITS:
        high = np.asarray(parts[".qweight_high"], np.uint8).reshape(N, -1)
        codes |= _unpack(high, HIGH_BITS[form.bits]) << np.uint8(LOW_BITS[form.bits])
    zeros = None
    if form.zeros:
        stored = np.asarray(parts[".zeros"], np.uint8)
        zeros = stored if form.bits == 3 else _unpack(stored, form.bits)[:, :G]
    return Quantised(
        codes[:, :K],
        np.asarray(scales),
        zeros,
        form.bits,
        form.group_size,
        parts.get(".offsets"),  # type: ignore[arg-type]
        parts.get(".super_scales"),  # type: ignore[arg-type]
        parts.get(".table"),  # type: ignore[arg-type]
    )


def _check(codes: Bytes, zeros: Bytes | None, form: TensorFormat) -> tuple[int, int]:
    return _check_codes(codes, zeros, form.bits, form.group_size)


def _check_codes(codes: Bytes, zeros: Bytes | None, bits: int, group_size: int) -> tuple[int, int]:
    if codes.ndim != 2 or codes.dtype != np.uint8 or codes.size == 0:
        raise ShapeError(f"codes are {codes.dtype} {codes.shape}, expected uint8 [N, K]")
    N, K = codes.shape
    expected = (N, groups_of(K, group_size))
    if zeros is not None and (zeros.shape != expected or zeros.dtype != np.uint8):
        raise ShapeError(f"zeros are {zeros.dtype} {zeros.shape}, expected uint8 {expected}")
    for what, values in (("code", codes), ("zero point", zeros)):
        if values is not None and int(values.max()) >> bits:
            raise ShapeError(f"a {what} is {int(values.max())}, expected below {1 << bits}")
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
