"""Arrays on the device for code that was written for NumPy.

A `DeviceArray` answers NumPy's own functions (NEP 13 and 18): what torch has under the same name is
computed on the device, anything else on the host from a copy, with the same result. So what chooses
among a cache's tokens is written once, for arrays of either kind. `numpy.asarray` fetches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

_KINDS: dict[Any, torch.dtype] = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.int64): torch.int64,
}


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """A tensor as NumPy sees an array; slices share its memory.

    Attributes:
        tensor: what it holds.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the sizes."""
        return tuple(self.tensor.shape)

    @property
    def T(self) -> DeviceArray:
        """Return the transposed matrix."""
        return DeviceArray(self.tensor.mT)

    def __len__(self) -> int:
        return len(self.tensor)

    def __float__(self) -> float:
        return float(self.tensor)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = self.tensor.cpu().numpy()
        return result.astype(dtype or result.dtype, copy=bool(copy))

    def __getitem__(self, index: Any) -> DeviceArray:
        return DeviceArray(self.tensor[self._index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tensor[self._index(index)] = self._operand(value)

    def view(self, dtype: npt.DTypeLike) -> DeviceArray:
        """Return the same bytes as another type."""
        return DeviceArray(self.tensor.view(_KINDS[np.dtype(dtype)]))

    def astype(self, dtype: npt.DTypeLike) -> DeviceArray:
        """Return the values as another type."""
        return DeviceArray(self.tensor.to(_KINDS[np.dtype(dtype)]))

    def reshape(self, *shape: int) -> DeviceArray:
        """Return the same values in another shape."""
        return DeviceArray(self.tensor.reshape(*shape))

    def max(self, axis: Any, keepdims: bool = False) -> DeviceArray:
        """Return the largest along an axis."""
        return DeviceArray(self.tensor.amax(axis, keepdims))

    def sum(self, axis: Any, keepdims: bool = False) -> DeviceArray:
        """Return the sum along an axis."""
        return DeviceArray(self.tensor.sum(axis, keepdims))

    def mean(self, axis: Any, keepdims: bool = False) -> DeviceArray:
        """Return the mean along an axis."""
        return DeviceArray(self.tensor.mean(axis, keepdims))

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Any:
        name = "eq" if ufunc is np.equal else ufunc.__name__
        there: Callable[..., torch.Tensor] | None = getattr(torch, name, None)
        if method != "__call__" or options or there is None:
            made = getattr(ufunc, method)(*map(_host, inputs), **options)
        else:
            made = DeviceArray(there(*map(self._operand, inputs)))
        if out is None:
            return made
        out[0][...] = made
        return out[0]

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        there = _FUNCTIONS.get(function)
        if there is None:
            return function(*map(_host, args), **{k: _host(v) for k, v in options.items()})
        return DeviceArray(there(*map(self._operand, args), **options))

    def _operand(self, value: Any) -> Any:
        """Return a value for torch on this array's device; a number becomes a 0-dim tensor."""
        if isinstance(value, DeviceArray):
            return value.tensor
        if isinstance(value, list | tuple):
            return [self._operand(part) for part in value]
        if isinstance(value, str):
            return value
        if np.ndim(value) == 0:
            kind = torch.float32 if isinstance(value, float | np.floating) else None
            return torch.tensor(value, dtype=kind)
        return torch.from_numpy(np.array(value)).to(self.tensor.device)

    def _index(self, index: Any) -> Any:
        if isinstance(index, tuple):
            return tuple(map(self._index, index))
        if isinstance(index, np.ndarray | DeviceArray):
            return self._operand(index)
        return index


def _norm(x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
    return cast(torch.Tensor, torch.linalg.vector_norm(x, dim=axis, keepdim=keepdims))


def _concatenate(parts: list[torch.Tensor], axis: int = 0) -> torch.Tensor:
    return torch.cat(parts, dim=axis)


def _einsum(subscripts: str, *parts: torch.Tensor, optimize: Any = True) -> torch.Tensor:
    return torch.einsum(subscripts, *parts)


_FUNCTIONS: dict[Any, Callable[..., torch.Tensor]] = {
    np.linalg.norm: _norm,
    np.concatenate: _concatenate,
    np.einsum: _einsum,
}


def _host(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_host, value))
    return np.asarray(value) if isinstance(value, DeviceArray) else value
