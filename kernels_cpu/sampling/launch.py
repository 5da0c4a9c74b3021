"""Sampling by kernel: slots, memory, and a call from Python. No numba here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.abi import CTX_SLOTS
from edgetok.kernels_cpu.program.loader import Kernels
from edgetok.kernels_cpu.program.tables import double_bits, float_bits, instruction

(
    SAMPLE_LOGITS,  # address of float32 [size]; not changed
    SAMPLE_SIZE,  # of the vocabulary
    SAMPLE_OPTIONS,  # address of the table below
    SAMPLE_SEEN,  # address of int32 [seen, 2]: tokens, each once, and how often it is in the answer
    SAMPLE_SEEN_COUNT,  # seen
    SAMPLE_MASK,  # address of uint32 [ceil(size / 32)]: bit i of word w allows 32 w + i; 0: all
    SAMPLE_SEED,  # of the generator (`sampling/random.py`)
    SAMPLE_INDEX,  # which number of its stream: the token's place in the answer
    SAMPLE_SCRATCH,  # address of `scratch_bytes(size)`
    SAMPLE_OUT,  # address of int64: the token; -1 - token where that token's logit is not finite
) = range(2, 12)

# Options: int64 each.
(
    OPTION_TEMPERATURE,  # float64 bits
    OPTION_TOP_K,
    OPTION_TOP_P,  # float64 bits
    OPTION_MIN_P,  # float64 bits
    OPTION_REPETITION,  # float32 bits
    OPTION_PRESENCE,  # float32 bits
    OPTION_FREQUENCY,  # float32 bits
) = range(7)
OPTIONS = 7

BLOCK = 64  # logits of which the largest is kept
FEW = 512  # up to so many tokens all are looked at


def scratch_bytes(size: int) -> int:
    """Scratch memory for a vocabulary; pages that a choice does not need are not touched."""
    blocks = -(-size // BLOCK)
    # Changed logits, ids, rough weights; largest and sum of each block; weights twice; numbers.
    return 12 * BLOCK * blocks + 12 * blocks + 16 * BLOCK * blocks + 64


class Chooser:
    """Chooses tokens as `edgetok.sampling` defines it. One caller at a time."""

    def __init__(
        self,
        kernels: Kernels,
        size: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
    ) -> None:
        """Remember the options, which somebody has checked, and allocate scratch memory.

        Args:
            kernels: the module `sampling.sample` among them.
            size: of the vocabulary.
            temperature: 0 takes the most likely token; this and the others as `SamplingOptions`.
            top_k: 0 for all.
            top_p: 1 for all.
            min_p: 0 for all.
            repetition_penalty: 1 for none.
            presence_penalty: 0 for none.
            frequency_penalty: 0 for none.

        Raises:
            ShapeError: the vocabulary is empty.
        """
        if size < 1:
            raise ShapeError(f"a vocabulary of {size} tokens, expected at least 1")
        self._size = size
        self._options = np.array(
            [
                double_bits(temperature),
                top_k,
                double_bits(top_p),
                double_bits(min_p),
                float_bits(repetition_penalty),
                float_bits(presence_penalty),
                float_bits(frequency_penalty),
            ],
            np.int64,
        )
        self._scratch = np.empty(scratch_bytes(size), np.uint8)
        self._out = np.zeros(1, np.int64)
        self._call = kernels.function("sample")
        self._ctx = np.zeros(CTX_SLOTS, np.int64)
        self._instruction = np.array(instruction(kernels.address("sample")), np.int64)
        table = self._instruction
        table[SAMPLE_SIZE] = size
        table[SAMPLE_OPTIONS] = self._options.ctypes.data
        table[SAMPLE_SCRATCH] = self._scratch.ctypes.data
        table[SAMPLE_OUT] = self._out.ctypes.data
        self._addresses = table.ctypes.data, self._ctx.ctypes.data

    def choose(
        self,
        logits: npt.NDArray[np.float32],
        seed: int,
        index: int,
        seen: npt.NDArray[np.int32] | None = None,
        mask: npt.NDArray[np.uint32] | None = None,
    ) -> int:
        """Choose the next token.

        Args:
            logits: [size] float32, C-contiguous; not changed.
            seed: 0 .. 2^64 - 1.
            index: the token's place in the answer, from 0.
            seen: [n, 2] int32, C-contiguous: tokens in the prompt or the answer, each once, and how
                often each is in the answer.
            mask: [ceil(size / 32)] uint32, C-contiguous: bit i of word w allows token 32 w + i.

        Returns:
            The token; -1 - token where the logits are not numbers, that token's for one.

        Raises:
            ShapeError: an array is of another type, shape or layout, or a token has no logit.
        """
        table = self._instruction
        table[SAMPLE_LOGITS] = _address("logits", logits, np.float32, (self._size,))
        rows = 0 if seen is None else len(seen)
        table[SAMPLE_SEEN_COUNT] = rows
        if seen is not None and rows:
            table[SAMPLE_SEEN] = _address("seen", seen, np.int32, (rows, 2))
            ids = seen[:, 0]
            if int(ids.min()) < 0 or int(ids.max()) >= self._size:
                raise ShapeError(
                    f"a token was seen that has no logit, expected 0..{self._size - 1}"
                )
        words = (-(-self._size // 32),)
        table[SAMPLE_MASK] = 0 if mask is None else _address("mask", mask, np.uint32, words)
        table[SAMPLE_SEED] = seed if seed < 1 << 63 else seed - (1 << 64)
        table[SAMPLE_INDEX] = index
        self._call(*self._addresses, 0, 1)
        return int(self._out[0])


def _address(
    name: str, array: npt.NDArray[np.generic], dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> int:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ShapeError(
            f"{name} is {array.dtype} {array.shape}, expected contiguous {np.dtype(dtype)} {shape}"
        )
    return int(array.ctypes.data)
