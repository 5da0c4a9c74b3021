"""Read checkpoints whose experts are MXFP4 (gpt-oss) and keep their codes.

    NAME_blocks  uint8 [experts, rows, K/32, 16]: codes of 4 bits (e2m1), the first in the low half
    NAME_scales  uint8 [experts, rows, K/32]: a group's exponent (e8m0)

    w = level[code] * 2^(exponent - 127)

An artefact has twice the levels, which are whole numbers, and half the power of two, as float16.
Rows of gate and up take turns in one tensor; here each is a tensor of its own, as down is.

Source: OCP Microscaling Formats 1.0, sections 5.3.3 and 5.4.1; gpt-oss, model card.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantised import Quantised
from edgetok.converter.read.quantised_checkpoint import KEY, WrappedCheckpoint
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.checkpoint import Checkpoint
from edgetok.formats.safetensors_file import read_bytes

METHOD = "mxfp4"

_GROUP = 32
_LEVELS = (0, 1, 2, 3, 4, 6, 8, 12)  # twice those of e2m1
TABLE = np.array([*_LEVELS, *(-level for level in _LEVELS)], np.int8)
# 2^(exponent - 128) is a float16 number from 2^-24 to 2^15.
_LOWEST, _HIGHEST = 104, 143
_ANY = 128  # the exponent of a group of zeros, which may have any
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_BLOCKS = re.compile(r"(.*\.experts\.)(gate_up_proj|down_proj)_blocks")


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of one matrix: every `step`-th of a tensor's, from `first` on."""

    blocks: str
    scales: str
    first: int
    step: int


class Mxfp4Checkpoint(WrappedCheckpoint):
    """A checkpoint whose experts read as `experts.gate_proj.weight` [experts, rows, K] and so on.

    Other tensors are floating-point ones.
    """

    def __init__(self, inner: Checkpoint) -> None:
        """Find the packed tensors.

        Raises:
            UnsupportedError: a setting that may change what the codes mean.
            CheckpointError: there are none, or a tensor is missing or of another shape.
        """
        settings: dict[str, Any] = inner.config[KEY]
        for key, value in settings.items():
            if key not in ("quant_method", "modules_to_not_convert", "dequantize") and value:
                raise UnsupportedError(
                    f"config.json: {KEY} has {key} {value!r:.60}, which may change what the codes "
                    "mean; convert the original checkpoint"
                )
        infos = dict(inner.infos)
        self._parts: dict[str, _Part] = {}
        for name in inner.names:
            match = _BLOCKS.fullmatch(name)
            if match is None:
                continue
            scales = name.removesuffix("_blocks") + "_scales"
            experts, rows, groups = _shape(inner, name, scales)
            del infos[name], infos[scales]
            parts = _PARTS[match[2]]
            if rows % len(parts):
                raise CheckpointError(
                    f"{inner.folder}: tensor {name!r} has {rows} rows, expected an even number"
                )
            for first, part in enumerate(parts):
                own = f"{match[1]}{part}.weight"
                shape = (experts, rows // len(parts), groups * _GROUP)
                info = inner.infos[name]
                infos[own] = replace(info, dtype="F32", shape=shape)
                self._parts[own] = _Part(name, scales, first, len(parts))
        coded = self._parts.keys()
        super().__init__(inner, METHOD, infos, coded, suffix=".experts.*_blocks")

    def tensor(
        self, name: str, rows: tuple[int, int] | None = None, *, flat: bool = False
    ) -> npt.NDArray[np.float32]:
        """Read a tensor as `Checkpoint.tensor` does; rows of packed ones are dequantised."""
        if name not in self._parts:
            return self._inner.tensor(name, rows, flat=flat)
        experts, each, K = self.infos[name].shape
        first, end = rows or (0, experts * each if flat else experts)
        of_one = 1 if flat else each
        codes = self._read_last(name).rows(slice(first * of_one, end * of_one))
        values = codes.dequantise()
        return values if flat else values.reshape(end - first, each, K)

    def _read_codes(self, name: str) -> Quantised:
        """All experts' rows below each other."""
        part, (experts, rows, K) = self._parts[name], self.infos[name].shape
        blocks = read_bytes(self._inner.infos[part.blocks])[:, part.first :: part.step]
        exponents = read_bytes(self._inner.infos[part.scales])[:, part.first :: part.step]
        packed = blocks.reshape(experts * rows, K // 2)
        codes = np.empty((experts * rows, K), np.uint8)
        np.bitwise_and(packed, 15, out=codes[:, ::2])
        np.right_shift(packed, 4, out=codes[:, 1::2])
        scales = mxfp4_scales(f"tensor {name!r}", exponents, codes)
        return Quantised(codes, scales, None, 4, _GROUP, table=TABLE)


def mxfp4_scales(
    where: str, exponents: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float16]:
    """Return the groups' scales for `TABLE`, which has twice the levels: [N, G] float16.

    Args:
        where: begins an error's message.
        exponents: uint8, one for each group in order.
        codes: [N, K], groups of 32.

    Raises:
        UnsupportedError: a group that is not all zeros has a scale that is no float16 number.
    """
    exponents = exponents.reshape(len(codes), -1)
    odd = (exponents < _LOWEST) | (exponents > _HIGHEST)
    if odd.any():
        zeros = (codes.reshape(*exponents.shape, _GROUP) & 7 == 0).all(-1)
        if not zeros[odd].all():
            power = int(exponents[odd & ~zeros][0]) - 127
            raise UnsupportedError(
                f"{where}: a group's scale is 2^{power}, expected one from "
                f"2^{_LOWEST - 127} to 2^{_HIGHEST - 127}, which an artefact holds exactly; "
                "convert the original checkpoint"
            )
        exponents = np.where(odd, np.uint8(_ANY), exponents)
    return np.ldexp(np.float32(1.0), exponents.astype(np.int32) - 128).astype(np.float16)


def _shape(inner: Checkpoint, blocks: str, scales: str) -> tuple[int, int, int]:
    """Experts, rows and groups of a packed tensor."""
    for name in (blocks, scales):
        if name not in inner.infos:
            raise CheckpointError(f"{inner.folder}: tensor {name!r} is missing")
        if inner.infos[name].dtype != "U8":
            raise CheckpointError(
                f"{inner.folder}: tensor {name!r} has dtype {inner.infos[name].dtype}, expected U8"
            )
    shape = inner.infos[blocks].shape
    if len(shape) != 4 or shape[3] != _GROUP // 2 or inner.infos[scales].shape != shape[:3]:
        raise CheckpointError(
            f"{inner.folder}: {blocks} is {list(shape)} and {scales} "
            f"{list(inner.infos[scales].shape)}, expected [experts, rows, groups, {_GROUP // 2}] "
            "and the same without the last"
        )
    return shape[0], shape[1], shape[2]
