"""Blocks of GGUF's types as codes, scales and offsets, without rounding anything.

    Q4_0, Q5_0, Q8_0   w = (q - 2^(bits - 1)) * d          32 weights a block
    Q4_1, Q5_1         w = q * d + m
    Q4_K, Q5_K         w = q * (d * sc) - dmin * mn        256 a block, eight sc and mn of 6 bits
    Q6_K               w = (q - 32) * (d * sc)             256 a block, sixteen sc of 8 bits
    Q3_K               w = (q - 4) * (d * (sc - 32))       256 a block, sixteen sc of 6 bits
    IQ4_NL             w = table[q] * d                    32 a block
    IQ4_XS             w = table[q] * (d * (sc - 32))      256 a block, eight sc of 6 bits
    TQ1_0, TQ2_0       w = (q - 1) * d                     256 a block, q of 0, 1 and 2
    MXFP4              w = table[q] * 2^(e - 128)          32 a block, e of 8 bits

d, m and dmin are float16.

Source: ggml, `ggml-common.h` and `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantised import Quantised
from edgetok.converter.read.mxfp4_checkpoint import TABLE, mxfp4_scales

Bytes = npt.NDArray[np.uint8]

_IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def read_codes(kind: str, blocks: Bytes) -> Quantised:
    """Take blocks apart.

    Args:
        kind: a key of `KINDS`.
        blocks: [N, blocks of a row, bytes of a block].

    Returns:
        The layer; `dequantise` gives what the `gguf` package gives, bit by bit.
    """
    return KINDS[kind](blocks)


def _halves(packed: Bytes) -> Bytes:
    """Two codes of 4 bits a byte: all low ones of a block, then all high ones."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=2)


def _fields(packed: Bytes, run: int, bits: int) -> Bytes:
    """Codes of `bits` in runs of `run` bytes: of each run the lowest ones, then the next."""
    N, count, nbytes = packed.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(N, count, nbytes // run, 1, run) >> shifts
    return (runs & np.uint8((1 << bits) - 1)).reshape(N, count, -1)


def _float16(blocks: Bytes, at: int) -> npt.NDArray[np.float16]:
    """The float16 at a byte of each block: [N, blocks]."""
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[:, :, 0]


def _matrix(codes: Bytes) -> Bytes:
    return np.ascontiguousarray(codes.reshape(len(codes), -1))


def _bits_of_words(packed: Bytes) -> Bytes:
    """32 bits of each four bytes, lowest first."""
    return np.unpackbits(packed, axis=2, bitorder="little")


def _q4_0(blocks: Bytes) -> Quantised:
    return Quantised(_matrix(_halves(blocks[:, :, 2:])), _float16(blocks, 0), None, 4, 32)


def _q4_1(blocks: Bytes) -> Quantised:
    codes = _matrix(_halves(blocks[:, :, 4:]))
    return Quantised(codes, _float16(blocks, 0), None, 4, 32, _float16(blocks, 2))


def _q5_0(blocks: Bytes) -> Quantised:
    high = _bits_of_words(blocks[:, :, 2:6]) << np.uint8(4)
    codes = _matrix(_halves(blocks[:, :, 6:]) | high)
    return Quantised(codes, _float16(blocks, 0), None, 5, 32)


def _q5_1(blocks: Bytes) -> Quantised:
    high = _bits_of_words(blocks[:, :, 4:8]) << np.uint8(4)
    codes = _matrix(_halves(blocks[:, :, 8:]) | high)
    return Quantised(codes, _float16(blocks, 0), None, 5, 32, _float16(blocks, 2))


def _q8_0(blocks: Bytes) -> Quantised:
    codes = _matrix(blocks[:, :, 2:] ^ np.uint8(128))  # two's complement plus 128
    return Quantised(codes, _float16(blocks, 0), None, 8, 32)


def _iq4_nl(blocks: Bytes) -> Quantised:
    codes = _matrix(_halves(blocks[:, :, 2:]))
    return Quantised(codes, _float16(blocks, 0), None, 4, 32, table=np.array(_IQ4_LEVELS, np.int8))


def _iq4_xs(blocks: Bytes) -> Quantised:
    codes = _matrix(_fields(blocks[:, :, 8:], 16, 4))
    low, high = _fields(blocks[:, :, 4:8], 1, 4), _fields(blocks[:, :, 2:4], 1, 2)
    scales = _matrix(low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    factors = _float16(blocks, 0)[:, :, None]
    table = np.array(_IQ4_LEVELS, np.int8)
    return Quantised(codes, scales, None, 4, 32, super_scales=factors, table=table)


def _scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of 6 bits in 12 bytes: [N, blocks, 8] each."""
    first, second, third = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    low, top = np.uint8(63), np.uint8(0x30)
    scales = [first & low, (third & np.uint8(15)) | ((first >> np.uint8(2)) & top)]
    minima = [second & low, (third >> np.uint8(4)) | ((second >> np.uint8(2)) & top)]
    return np.concatenate(scales, axis=2), np.concatenate(minima, axis=2)


def _k_offset(blocks: Bytes, codes: Bytes, bits: int) -> Quantised:
    scales, minima = _scales_and_minima(blocks[:, :, 4:16])
    factors = np.stack([_float16(blocks, 0), -_float16(blocks, 2)], axis=2)
    parts = (_matrix(part).view(np.int8) for part in (scales, minima))
    scales8, minima8 = parts
    return Quantised(_matrix(codes), scales8, None, bits, 32, minima8, factors)


def _q3_k(blocks: Bytes) -> Quantised:
    high = _fields(blocks[:, :, :32], 32, 1) << np.uint8(2)
    codes = _matrix(_fields(blocks[:, :, 32:96], 32, 2) | high)
    low, top = _fields(blocks[:, :, 96:104], 8, 4), _fields(blocks[:, :, 104:108], 4, 2)
    scales = _matrix(low | top << np.uint8(4)).view(np.int8) - np.int8(32)
    return Quantised(codes, scales, None, 3, 16, None, _float16(blocks, 108)[:, :, None])


def _q4_k(blocks: Bytes) -> Quantised:
    return _k_offset(blocks, _fields(blocks[:, :, 16:], 32, 4), 4)


def _q5_k(blocks: Bytes) -> Quantised:
    high = _fields(blocks[:, :, 16:48], 32, 1) << np.uint8(4)
    return _k_offset(blocks, _fields(blocks[:, :, 48:], 32, 4) | high, 5)


def _q6_k(blocks: Bytes) -> Quantised:
    high = _fields(blocks[:, :, 128:192], 32, 2) << np.uint8(4)
    codes = _matrix(_fields(blocks[:, :, :128], 64, 4) | high)
    scales = _matrix(blocks[:, :, 192:208]).view(np.int8)
    return Quantised(codes, scales, None, 6, 16, None, _float16(blocks, 208)[:, :, None])


def _ternary(codes: Bytes, scales: npt.NDArray[np.float16]) -> Quantised:
    """Codes of 0, 1 and 2 as 1, 2 and 3, so that the zero point is the format's own, in the middle.

    TQ2_0 has room for a fourth, which its writers do not use; then each group has a zero point.
    """
    if codes.max(initial=0) < 3:
        return Quantised(codes + np.uint8(1), scales, None, 2, 256)
    return Quantised(codes, scales, np.ones(scales.shape, np.uint8), 2, 256)


def _tq1_0(blocks: Bytes) -> Quantised:
    # A byte is a number of five digits, or four, of base 3, below 1, in units of 1/256.
    digits = []
    for first, end, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        packed = blocks[:, :, first:end]
        # Multiplied by 3^i in a byte, the digits before the i-th are lost.
        digits += [packed * np.uint8(3**i) for i in range(count)]
    codes = (np.concatenate(digits, axis=2).astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
    return _ternary(_matrix(codes.astype(np.uint8)), _float16(blocks, 52))


def _tq2_0(blocks: Bytes) -> Quantised:
    return _ternary(_matrix(_fields(blocks[:, :, :64], 32, 2)), _float16(blocks, 64))


def _mxfp4(blocks: Bytes) -> Quantised:
    codes = _matrix(_halves(blocks[:, :, 1:]))
    scales = mxfp4_scales("MXFP4", blocks[:, :, 0], codes)
    return Quantised(codes, scales, None, 4, 32, table=TABLE)


KINDS: Mapping[str, Callable[[Bytes], Quantised]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
}
"""The types whose codes are kept."""
