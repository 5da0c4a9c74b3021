"""Find a tied matrix that a GGUF file holds twice, and read it once.

llama.cpp stores a tied output head as `token_embd` alone, but a quantised file may have both, each
rounded in its own way. They are one matrix if no more than the rounding of both lies between them:

    sum of squared differences <= 1.5^2 * sum of (step_a^2 + step_b^2) / 12

where a step is what lies between neighbouring codes of a group. Rounding to nearest makes errors of
step^2 / 12 on average; K-quants, which fit their scales, a little more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgetok.converter.read.gguf_codes import KINDS, read_codes
from edgetok.formats.gguf import BLOCKS, GgufFile
from edgetok.formats.safetensors_file import TensorInfo, read_exactly

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_SLACK = 1.5**2
_ROWS = 4096  # at a time
_LEVEL = 240 / 15  # what lies between the sixteen levels of IQ4_NL's table, on average
# Of three levels, or of steps that grow with the weight, other matrices could pass for the same.
_COARSE = {"TQ1_0", "TQ2_0", "MXFP4"}
_KNOWN: dict[str, bool] = {}  # whether a file's two matrices are one, by its fingerprint


def tied_once(file: GgufFile) -> tuple[GgufFile, str]:
    """Return a file whose tied matrix occurs once, and a note; the same file without one.

    Of the two the one with more bytes is kept, under the embedding's name.
    """
    embedding, head = file.infos.get(_EMBEDDING), file.infos.get(_HEAD)
    if embedding is None or head is None or embedding.shape != head.shape:
        return file, ""
    if not {embedding.dtype, head.dtype} <= {*KINDS, "F16", "F32"} - _COARSE:
        return file, ""
    if file.fingerprint not in _KNOWN:
        _KNOWN[file.fingerprint] = _is_one(embedding, head)
    if not _KNOWN[file.fingerprint]:
        return file, ""
    better, other = sorted((embedding, head), key=lambda info: -info.nbytes)
    infos = {name: info for name, info in file.infos.items() if name != _HEAD}
    infos[_EMBEDDING] = better
    note = (
        f"token_embd ({embedding.dtype}) and output ({head.dtype}) are one matrix up to rounding: "
        f"stored once, as {better.dtype}; {other.nbytes / 1e6:,.1f} MB less"
    )
    return dataclasses.replace(file, infos=infos), note


def _is_one(a: TensorInfo, b: TensorInfo) -> bool:
    difference = rounding = 0.0
    for first in _starts(a.shape[0]):
        end = min(first + _ROWS, a.shape[0])
        (x, x_error), (y, y_error) = (_read(info, first, end) for info in (a, b))
        delta = (x - y).ravel()
        difference += float(np.dot(delta, delta))
        rounding += x_error + y_error
        if not difference <= _SLACK * rounding:
            return False
    return True


def _starts(rows: int) -> Iterator[int]:
    return iter(range(0, rows, _ROWS))


def _read(info: TensorInfo, first: int, end: int) -> tuple[npt.NDArray[np.float32], float]:
    """Rows, and the squared error that rounding to their steps makes on average."""
    row_bytes = info.nbytes // info.shape[0]
    raw = np.empty((end - first, row_bytes), np.uint8)
    read_exactly(info.path, info.begin + first * row_bytes, raw.reshape(-1))
    if info.dtype in ("F16", "F32"):
        values = raw.view("<f2" if info.dtype == "F16" else "<f4").astype(np.float32)
        # A float16 has 11 bits: steps are at least 2^-11 of the value.
        return values, float(np.square(values * np.float32(2.0**-11)).sum()) / 12
    q = read_codes(info.dtype, raw.reshape(len(raw), -1, BLOCKS[info.dtype][1]))
    step = 1.0 if q.table is None else _LEVEL
    return q.dequantise(), float(np.square(step * q.steps()).sum()) * q.group_size / 12
