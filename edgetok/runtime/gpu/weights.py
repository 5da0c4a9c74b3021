"""The weights of an artefact on a device, as products and norms take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgetok.formats.artefact import Artefact
from edgetok.formats.layout import HIGH_BITS, LOW_BITS, TABLE
from edgetok.kernels_gpu.device import Device
from edgetok.kernels_gpu.jit import to_planes
from edgetok.kernels_gpu.linear import Linear, Stored, upload

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Product:
    """Layers that share an input: where each begins in the output, and what it is."""

    parts: tuple[tuple[int, Linear], ...]

    @property
    def joined(self) -> Linear | None:
        """The one product that they are, if they are."""
        return self.parts[0][1] if len(self.parts) == 1 else None

    @property
    def nbytes(self) -> int:
        """Bytes of weights."""
        return sum(linear.nbytes for _, linear in self.parts)


class Weights:
    """Copies weights to a device when they are first asked for.

    Attributes:
        norms: by name with suffix.
        products: by the names of their layers.
    """

    def __init__(self, artefact: Artefact, device: Device) -> None:
        self._artefact, self._device = artefact, device
        self.norms: dict[str, torch.Tensor] = {}
        self.products: dict[tuple[str, ...], Product] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all that was copied."""
        norms = sum(norm.nbytes for norm in self.norms.values())
        return norms + sum(product.nbytes for product in self.products.values())

    def norm(self, name: str, *, planes: bool) -> torch.Tensor:
        """A norm's weights [size], or in plane order."""
        key = f"{name}.weight"
        if key not in self.norms:
            weight = self._device.copy(self._artefact.tensor(key))
            self.norms[key] = to_planes(weight[None])[0] if planes else weight
        return self.norms[key]

    def product(self, *names: str) -> Product:
        """One product where formats are the same, else one each.

        Raises:
            UnsupportedError: a weight is too large for half precision.
        """
        if names not in self.products:
            self.products[names] = self._join(names)
        return self.products[names]

    def _join(self, names: tuple[str, ...]) -> Product:
        stored = [self._stored(name) for name in names]
        if all(layer.kind == stored[0].kind for layer in stored):
            return Product(((0, upload(stored, self._device.torch_device)),))
        parts, at = [], 0
        for layer in stored:
            parts.append((at, upload([layer], self._device.torch_device)))
            at += len(layer.weight)
        return Product(tuple(parts))

    def _stored(self, name: str) -> Stored:
        form, shape = self._artefact.formats[name], self._artefact.shapes[name]
        read = self._artefact.tensor
        bias = read(name + ".bias") if shape.bias else None
        if not form.quantised:
            weight = read(name + ".weight")
            return Stored(name=name, bits=form.bits, inputs=shape.K, weight=weight, bias=bias)
        stored_bits = LOW_BITS[form.bits]
        groups = -(-shape.K // form.group_size)
        return Stored(
            name=name,
            bits=form.bits,
            inputs=shape.K,
            group_size=form.group_size,
            weight=read(name + ".qweight").reshape(
                shape.N, groups, form.group_size * stored_bits // 8
            ),
            high=read(name + ".qweight_high") if form.bits in HIGH_BITS else None,
            levels=read(name + TABLE).astype(np.float32) if form.table else None,
            scales=read(name + ".scales"),
            zeros=read(name + ".zeros") if form.zeros else None,
            bias=bias,
        )
