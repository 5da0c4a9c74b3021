"""Read checkpoints whose matrices are ternary (BitNet b1.58) and keep their codes.

    NAME.weight        uint8 [N/4, K]: codes of 2 bits; the lowest two are those of the first N/4
                       rows, and so on
    NAME.weight_scale  one number

    w = (code - 1) * weight_scale       linear_class "autobitlinear", as Microsoft's
    w = (code - 1) / weight_scale       "bitlinear", as models that were trained on

An artefact holds codes of 1, 2 and 3, whose zero point is its own, and the scale as float16: that
of an "autobitlinear" exactly, or it is refused, one over that of a "bitlinear" rounded.

Source: transformers 5, `integrations/bitnet.py`; arXiv 2402.17764, arXiv 2504.12285.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgetok.converter.quantised import Quantised
from edgetok.converter.read.quantised_checkpoint import KEY, WrappedCheckpoint
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.checkpoint import Checkpoint
from edgetok.formats.safetensors_file import read_bytes

METHOD = "bitnet"

_A_BYTE = 4  # codes
_GROUPS = (256, 128, 64, 32)  # all of a matrix have one scale: the larger, the fewer bytes
_SCALE = "_scale"
_CLASSES = ("bitlinear", "autobitlinear")
# Where weights stay floating-point, and a number for a norm that must not be there.
_IGNORED = ("quant_method", "modules_to_not_convert", "rms_norm_eps")


class TernaryCheckpoint(WrappedCheckpoint):
    """A checkpoint whose packed matrices read as `NAME.weight` [N, K]; others are floating-point.

    Attributes:
        divides: whether a matrix is divided by its scale.
    """

    def __init__(self, inner: Checkpoint) -> None:
        """Find the packed matrices.

        Raises:
            UnsupportedError: a setting that may change what the codes mean, or weights that are
                not packed.
            CheckpointError: a tensor is missing or of another shape.
        """
        self.divides = _divides(inner.config[KEY])
        infos = dict(inner.infos)
        packed = {}
        for scale in inner.names:
            name = scale.removesuffix(_SCALE)
            if not scale.endswith(f".weight{_SCALE}"):
                continue
            N, K = _shape(inner, name)
            del infos[scale]
            infos[name] = replace(inner.infos[name], dtype="F32", shape=(N, K))
            packed[name] = scale
        super().__init__(inner, METHOD, infos, packed.keys(), suffix=f".weight{_SCALE}")
        self._scales = packed

    def _read_codes(self, name: str) -> Quantised:
        info, (N, K) = self._inner.infos[name], self.infos[name].shape
        packed = read_bytes(info)
        codes = np.concatenate([packed >> np.uint8(2 * i) & np.uint8(3) for i in range(_A_BYTE)])
        if codes.max(initial=0) > 2:
            raise CheckpointError(
                f"{self.folder}: tensor {name!r} holds a code of 3, expected 0, 1 and 2; the file "
                "is damaged, take another copy"
            )
        group = next((g for g in _GROUPS if K % g == 0), _GROUPS[-1])
        scales = np.full((N, -(-K // group)), self._scale(name), np.float16)
        return Quantised(codes + np.uint8(1), scales, None, 2, group)

    def _scale(self, name: str) -> np.float16:
        """Return what codes are multiplied with."""
        stored = self._inner.tensor(self._scales[name]).reshape(-1)[0]
        with np.errstate(divide="ignore", over="ignore"):
            wanted = np.float32(1) / stored if self.divides else stored
            scale = np.float16(wanted)
        exact = abs(float(scale) - float(wanted)) <= (float(scale) / 1024 if self.divides else 0.0)
        if not (exact and np.isfinite(scale) and scale > 0):
            raise UnsupportedError(
                f"{self.folder}: tensor {self._scales[name]!r} is {float(stored):.6g}, a scale "
                "that float16, the type of an artefact's scales, cannot hold; convert the original "
                "checkpoint"
            )
        return scale


def _divides(settings: dict[str, Any]) -> bool:
    """Check settings and return whether a matrix is divided by its scale."""
    kind = settings.get("linear_class", _CLASSES[0])
    if kind not in _CLASSES:
        raise UnsupportedError(
            f"config.json: {KEY} has linear_class {kind!r:.40}, expected {' or '.join(_CLASSES)}"
        )
    if settings.get("quantization_mode", "offline") != "offline":
        raise UnsupportedError(
            f"config.json: {KEY} has quantization_mode {settings['quantization_mode']!r:.40}: its "
            "weights are those of the training, rounded as they are used; convert the checkpoint "
            "with packed weights (quantization_mode offline)"
        )
    for key, value in settings.items():
        if key not in (*_IGNORED, "linear_class", "quantization_mode") and value:
            raise UnsupportedError(
                f"config.json: {KEY} has {key} {value!r:.60}, which may change what the codes "
                "mean; convert the original checkpoint"
            )
    return bool(kind == _CLASSES[0])


def _shape(inner: Checkpoint, name: str) -> tuple[int, int]:
    """[N, K] of a packed matrix."""
    scale = inner.infos[name + _SCALE]
    info = inner.infos.get(name)
    if info is None:
        raise CheckpointError(f"{inner.folder}: tensor {name!r} is missing")
    if info.dtype != "U8" or len(info.shape) != 2 or scale.shape not in ((1,), ()):
        raise CheckpointError(
            f"{inner.folder}: {name} is {info.dtype} {list(info.shape)} and its scale "
            f"{list(scale.shape)}, expected U8 [rows / {_A_BYTE}, inputs] and one number"
        )
    return _A_BYTE * info.shape[0], info.shape[1]
