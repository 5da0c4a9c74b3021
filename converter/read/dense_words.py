"""Codes packed densely into 32-bit words, as GPTQ, AWQ and compressed-tensors store them.

Code i of a row takes bits i*bits .. i*bits + bits - 1 of the row, lowest first. A row ends with a
whole word. Codes of 3 bits may span two words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int32]


def pack_words(codes: Codes, bits: int) -> Words:
    """[n, m] codes below 2^bits -> [n, ceil(m * bits / 32)]."""
    n, m = codes.shape
    single = np.unpackbits(codes[:, :, None], axis=2, count=bits, bitorder="little")
    padded = np.zeros((n, -(-m * bits // 32) * 32), np.uint8)
    padded[:, : m * bits] = single.reshape(n, m * bits)
    return np.packbits(padded, axis=1, bitorder="little").view("<i4")


def unpack_words(words: Words, bits: int, count: int) -> Codes:
    """Undo `pack_words`: [n, ceil(count * bits / 32)] -> [n, count]."""
    raw = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    single = np.unpackbits(raw, axis=1, count=count * bits, bitorder="little")
    packed = np.packbits(single.reshape(len(words), count, bits), axis=2, bitorder="little")
    return packed[:, :, 0]
