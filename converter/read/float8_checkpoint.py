"""Read checkpoints whose matrices are 8-bit floats: fine-grained FP8, compressed-tensors.

    NAME.weight            float8 e4m3 [N, K]
    NAME.weight_scale_inv  fp8: one number, or [ceil(N/a), ceil(K/b)] of blocks of a x b
    NAME.weight_scale      compressed-tensors: one number, [N, 1] of rows, or of blocks

    w = weight * scale

An artefact has no such type: matrices are read as float32, in which the product is exact unless the
scale has more than 20 bits, and are then quantised as asked. Scales of activations are not used.

Source: OCP 8-bit Floating Point Specification 1.0, table 1; transformers 5,
`integrations/finegrained_fp8.py`; compressed-tensors 0.20, `naive_quantized`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.converter.read.packed_checkpoint import compressed_formats, require_known
from edgetok.converter.read.quantised_checkpoint import KEY
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.checkpoint import Checkpoint
from edgetok.formats.safetensors_file import TensorInfo, read_bytes

METHODS = {"fp8": "_scale_inv", "compressed-tensors": "_scale"}  # what is behind a matrix's name

_DTYPE = "F8_E4M3"
# Scales of activations, which edgetok rounds in its own way.
_UNUSED = (".activation_scale", ".input_scale", ".input_zero_point")
# Settings of fp8 that say how activations are rounded, and which modules were left as they were.
_IGNORED = (
    *("quant_method", "activation_scheme", "dequantize", "weight_block_size"),
    *("modules_to_not_convert", "modules_to_convert", "ignored_layers"),
)
_USUAL = {"scale_fmt": "float", "expert_dtype": "fp8", "fmt": "e4m3"}
_SIGN, _MANTISSA_BITS, _BIAS = 128, 3, 7
Block = tuple[int, int]


def _levels() -> npt.NDArray[np.float32]:
    """Values of all 256 bytes; two are not numbers."""
    code = np.arange(256)
    exponent, mantissa = code % _SIGN >> _MANTISSA_BITS, code & 7
    whole = np.where(exponent == 0, mantissa, mantissa + 8)
    values: npt.NDArray[np.float32] = np.ldexp(
        whole.astype(np.float32), np.maximum(exponent, 1) - _BIAS - _MANTISSA_BITS
    )
    values[code % _SIGN == 127] = np.nan
    values[_SIGN:] *= -1
    return values


_LEVELS = _levels()


class Float8Checkpoint(Checkpoint):
    """A checkpoint whose 8-bit floats read as float32, times their scales."""

    def __init__(self, inner: Checkpoint) -> None:
        """Find the matrices.

        Raises:
            UnsupportedError: a setting that may change what they mean.
            CheckpointError: there are none, or a scale is missing or of another shape.
        """
        settings: dict[str, Any] = inner.config[KEY]
        suffix = METHODS[settings["quant_method"]]
        self._block = _block(settings)
        infos: dict[str, TensorInfo] = {}
        self._scales: dict[str, str] = {}
        for name, info in inner.infos.items():
            if info.dtype == _DTYPE:
                self._scales[name] = name + suffix
                _check(inner, name, name + suffix, self._block)
                info = replace(info, dtype="F32")
            infos[name] = info
        if not self._scales:
            raise CheckpointError(
                f"{inner.folder}: config.json has {KEY} of 8-bit floats, but no tensor has dtype "
                f"{_DTYPE}; remove {KEY} if the weights are of another type"
            )
        scales = set(self._scales.values())
        infos = {n: x for n, x in infos.items() if n not in scales and not n.endswith(_UNUSED)}
        config = {key: value for key, value in inner.config.items() if key != KEY}
        super().__init__(inner.folder, config, inner.generation_config, infos, inner.fingerprint)
        self._inner = inner
        self.notes = (
            *inner.notes,
            f"{len(self._scales)} matrices are 8-bit floats: they are quantised from the values "
            "that these stand for",
        )

    def tensor(
        self, name: str, rows: tuple[int, int] | None = None, *, flat: bool = False
    ) -> npt.NDArray[np.float32]:
        """Read a tensor as `Checkpoint.tensor` does; 8-bit floats are multiplied out."""
        if name not in self._scales:
            return self._inner.tensor(name, rows, flat=flat)
        info = self._inner.infos[name]
        N, K = info.shape
        first, end = rows or (0, N)
        if not 0 <= first <= end <= N:
            raise CheckpointError(
                f"{info.path.name}: rows {first}..{end} of tensor {name!r} with {N} rows"
            )
        values = _LEVELS[read_bytes(info, (first, end))]
        scales = self._inner.tensor(self._scales[name])
        if scales.size == 1:
            values *= scales.reshape(())
        else:
            height, width = self._block or (1, K)
            wide = np.repeat(scales[np.arange(first, end) // height], width, axis=1)
            values *= wide[:, :K]
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{info.path.name}: tensor {name!r} holds a value that is not a finite float32; "
                "the checkpoint is damaged, take another copy or revision"
            )
        return values


def is_float8(settings: Any) -> bool:
    """Return whether a `quantization_config` is one of 8-bit floats."""
    if not isinstance(settings, dict):
        return False
    if settings.get("quant_method") == "compressed-tensors":
        return set(map(str, compressed_formats(settings))) == {"float-quantized"}
    return settings.get("quant_method") == "fp8"


def _block(settings: dict[str, Any]) -> Block | None:
    """Check settings and return the size of a block with a scale; None: a matrix or a row."""
    if settings["quant_method"] == "fp8":
        for key, value in settings.items():
            if key not in _IGNORED and value and value != _USUAL.get(key):
                raise UnsupportedError(
                    f"config.json: {KEY} has {key} {value!r:.60}, which may change what the "
                    "weights mean; convert the original checkpoint"
                )
        return _size(settings.get("weight_block_size"))
    require_known("compressed-tensors", settings)
    groups = settings.get("config_groups")
    blocks = set()
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        weights = weights if isinstance(weights, dict) else {}
        if (weights.get("type"), weights.get("num_bits")) != ("float", 8):
            raise UnsupportedError(
                f"config.json: {KEY} is float-quantized, but has weights of type "
                f"{weights.get('type')!r:.20} with {weights.get('num_bits')!r:.10} bits, expected "
                "float with 8"
            )
        blocks.add(_size(weights.get("block_structure")))
    if len(blocks) > 1:
        raise UnsupportedError(
            f"config.json: {KEY} has blocks of {len(blocks)} sizes, expected one"
        )
    return next(iter(blocks), None)


def _size(value: Any) -> Block | None:
    if value is None:
        return None
    if not (
        isinstance(value, list)
        and len(value) == 2
        and all(type(size) is int and 0 < size <= 1 << 16 for size in value)
    ):
        raise UnsupportedError(
            f"config.json: {KEY} has blocks of {value!r:.40}, expected two sizes up to 65,536"
        )
    return value[0], value[1]


def _check(inner: Checkpoint, name: str, scale: str, block: Block | None) -> None:
    """Refuse a matrix without a scale, or with one of another shape."""
    if scale not in inner.infos:
        raise CheckpointError(f"{inner.folder}: tensor {scale!r} is missing")
    shape, found = inner.infos[name].shape, inner.infos[scale].shape
    if len(shape) != 2:
        raise UnsupportedError(
            f"{inner.folder}: tensor {name!r} of 8-bit floats has {len(shape)} axes, expected 2"
        )
    expected = (shape[0], 1)
    if block is not None:
        expected = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    if math.prod(found) != 1 and found != expected:
        raise CheckpointError(
            f"{inner.folder}: tensor {scale!r} is {list(found)}, expected {list(expected)} or one "
            "number"
        )
