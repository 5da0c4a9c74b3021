"""Linear layers on the device: the artefact's bytes, row for row.

Layers that share input and format lie below each other and are one product: queries, keys and
values; gate and up. Unquantised weights change to plane order (`jit.py`) as they are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetok.errors import ShapeError, UnsupportedError
from edgetok.kernels_gpu.jit import plane_stride, to_planes

_WORD: dict[int, type[np.generic]] = {
    2: np.int16, 3: np.int16, 4: np.int32, 5: np.int32, 6: np.int32, 8: np.int64,
}  # fmt: skip
_HIGH_WORD: dict[int, type[np.generic]] = {3: np.uint8, 5: np.uint8, 6: np.int16}
_LEVELS = 16
_LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One layer as the artefact holds it.

    Attributes:
        name: for messages.
        bits: 2, 3, 4, 5, 6, 8, or 16 and 32 for floats.
        inputs: K.
        weight: `.qweight` [N, G, bytes], or `.weight` [N, K].
        group_size: inputs that share a scale; 0 for floats.
        high: `.qweight_high`, 3, 5 and 6 bits only.
        levels: `.table`, float32 [16], where codes of 4 bits choose levels.
        scales: float16 [N, G].
        zeros: packed zero points, or None.
        bias: float32 [N], or None.
    """

    name: str
    bits: int
    inputs: int
    weight: npt.NDArray[Any]
    group_size: int = 0
    high: npt.NDArray[np.uint8] | None = None
    levels: npt.NDArray[np.float32] | None = None
    scales: npt.NDArray[np.float16] | None = None
    zeros: npt.NDArray[np.uint8] | None = None
    bias: npt.NDArray[np.float32] | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """Layers of the same kind can be one product."""
        return (
            self.bits,
            self.inputs,
            self.group_size,
            self.zeros is None,
            self.bias is None,
            None if self.levels is None else self.levels.tobytes(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Layers on the device.

    Attributes:
        bits: 2, 3, 4, 5, 6, 8, or 16 for floats of any width.
        N: outputs of all layers together.
        K: inputs.
        groups: G = ceil(K / group_size); for floats the plane stride over 32.
        group_words: words of a group: group_size / 8.
        weight: [N, words] int16, int32 or int64; floats [N, 8, plane stride].
        high: uint8, at 6 bits int16, [N, words]; 3, 5 and 6 bits only.
        levels: float32 [16], of all layers, or None.
        scales: float16 [N, G]; None for floats.
        zeros: uint8 [N, bytes] or None.
        bias: float32 [N] or None.
    """

    bits: int
    N: int
    K: int
    groups: int
    group_words: int
    weight: torch.Tensor
    high: torch.Tensor | None
    levels: torch.Tensor | None
    scales: torch.Tensor | None
    zeros: torch.Tensor | None
    bias: torch.Tensor | None

    @property
    def words(self) -> int:
        """Words of a row."""
        return self.groups * self.group_words

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        parts = (self.weight, self.high, self.levels, self.scales, self.zeros, self.bias)
        return sum(t.nbytes for t in parts if t is not None)

    @property
    def stride(self) -> int:
        """Entries of a plane of inputs."""
        return plane_stride(self.K)


def upload(layers: Sequence[Stored], device: torch.device) -> Linear:
    """Copy layers of one kind to the device, below each other.

    Raises:
        ShapeError: they are of different kinds, or an array does not match its layer.
        UnsupportedError: a weight is too large for the half precision of prefill.
    """
    first = layers[0]
    if any(layer.kind != first.kind for layer in layers):
        raise ShapeError(f"{[layer.name for layer in layers]} are of different kinds")
    for layer in layers:
        _check(layer)

    def join(parts: Sequence[npt.NDArray[Any] | None]) -> torch.Tensor | None:
        present = [part for part in parts if part is not None]
        if not present:
            return None
        rows = sum(len(part) for part in present)
        made = torch.empty(
            (rows, *present[0].shape[1:]), dtype=_torch_type(present[0].dtype), device=device
        )
        at = 0
        for part in present:  # layer by layer: no second copy of the whole in host memory
            made[at : at + len(part)].copy_(_host(part))
            at += len(part)
        return made

    bias = join([layer.bias for layer in layers])
    if first.bits in (16, 32):
        planes = [to_planes(_host(layer.weight).to(device)) for layer in layers]
        weight = torch.cat(planes) if len(planes) > 1 else planes[0]
        return Linear(
            bits=16, N=len(weight), K=first.inputs, groups=weight.shape[2] // 32, group_words=32,
            weight=weight, high=None, levels=None, scales=None, zeros=None, bias=bias,
        )  # fmt: skip
    words = [_words(layer.weight, _WORD[layer.bits]) for layer in layers]
    weight = _required(join(words))
    groups = -(-first.inputs // first.group_size)
    return Linear(
        bits=first.bits,
        N=len(weight),
        K=first.inputs,
        groups=groups,
        group_words=first.group_size // 8,
        weight=weight,
        high=join([None if x.high is None else _words(x.high, _HIGH_WORD[x.bits]) for x in layers]),
        levels=None if first.levels is None else _host(first.levels).to(device),
        scales=join([layer.scales for layer in layers]),
        zeros=join([layer.zeros for layer in layers]),
        bias=bias,
    )


def _check(layer: Stored) -> None:
    """Sizes against each other, in Python integers; values against half precision."""
    N, K, bits, g = len(layer.weight), layer.inputs, layer.bits, layer.group_size
    result = {"weight": layer.weight, "bias": layer.bias}
    expected: dict[str, tuple[object, tuple[int, ...]] | None]
    if bits in (16, 32):
        expected = {"weight": (np.float16 if bits == 16 else np.float32, (N, K))}
    elif bits in _WORD and g in (16, 32, 64, 128, 256):
        G, stored = -(-K // g), {3: 2, 5: 4, 6: 4}.get(bits, bits)
        expected = {
            "weight": (np.uint8, (N, G, g * stored // 8)),
            "scales": (np.float16, (N, G)),
            "high": (np.uint8, (N, G, g * (bits - stored) // 8)) if stored < bits else None,
        }
        result |= {"scales": layer.scales, "high": layer.high}
        if layer.levels is not None:
            if bits != 4 or layer.zeros is not None:
                raise ShapeError(f"{layer.name}: a table beside {bits} bits or zero points")
            expected["levels"] = (np.float32, (_LEVELS,))
            result["levels"] = layer.levels
        if layer.zeros is not None:
            expected["zeros"] = (np.uint8, (N, G if bits == 3 else -(-G * bits // 8)))
            result["zeros"] = layer.zeros
    else:
        raise ShapeError(f"{layer.name}: {bits} bits in groups of {g}")
    expected["bias"] = None if layer.bias is None else (np.float32, (N,))
    for part, array in result.items():
        wanted = expected[part]
        if (array is None) != (wanted is None):
            raise ShapeError(f"{layer.name}: {part} is {'missing' if array is None else 'given'}")
        if array is None or wanted is None:
            continue
        if array.dtype != wanted[0] or array.shape != wanted[1]:
            raise ShapeError(
                f"{layer.name}: {part} is {array.dtype} {array.shape}, expected {wanted[1]}"
            )
    if layer.scales is not None:
        code = 1 << bits if layer.levels is None else np.abs(layer.levels).max()
        largest = float(np.abs(layer.scales).max(initial=0)) * float(code)
        if not largest <= _LARGEST_HALF:
            raise UnsupportedError(
                f"{layer.name}: a scale of {largest / code:g} is too large for a GPU's half "
                "precision; run it with --device cpu"
            )


def _words(array: npt.NDArray[np.uint8], word: type[np.generic]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(array).reshape(len(array), -1).view(word)


def _host(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return a tensor over the same memory; the file is mapped read-only, and only read."""
    if not array.flags.writeable:
        pointer = array.ctypes.data
        return _borrowed(array, pointer)
    return torch.from_numpy(np.ascontiguousarray(array))


def _borrowed(array: npt.NDArray[Any], pointer: int) -> torch.Tensor:
    import ctypes

    buffer = (ctypes.c_byte * array.nbytes).from_address(pointer)
    flat = torch.frombuffer(buffer, dtype=_torch_type(array.dtype))
    return flat.view(array.shape)


def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    known = {
        "uint8": torch.uint8,
        "int16": torch.int16,
        "int32": torch.int32,
        "int64": torch.int64,
        "float16": torch.float16,
        "float32": torch.float32,
    }
    return known[dtype.name]


def _required(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ShapeError("no layers were given")
    return tensor
