"""The target of launches: weights and buffers, and the rows of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgetok.errors import ShapeError, UnsupportedError
from edgetok.kernels_gpu.attention import MAX_SPLITS, partials_shape
from edgetok.kernels_gpu.device import Device
from edgetok.kernels_gpu.jit import PLANES, plane_stride
from edgetok.kernels_gpu.matmul_nbits import Epilogue, matmul_nbits
from edgetok.kernels_gpu.norm import to_half
from edgetok.models import ops
from edgetok.runtime.gpu.cache_memory import GpuCacheMemory
from edgetok.runtime.gpu.inputs import Inputs
from edgetok.runtime.gpu.weights import Product, Weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows begin..end - 1 of every buffer, for launches.

    Attributes:
        inputs: inputs of the run.
        cache: likewise.
        begin: the first row.
        end: the last and one.
        logits: float32 [end - begin, vocab_size], where the head is computed.
    """

    begin: int
    end: int
    inputs: Inputs | None = None
    cache: GpuCacheMemory | None = None
    logits: torch.Tensor | None = None

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return self.end - self.begin

    def of(self, buffer: torch.Tensor) -> torch.Tensor:
        """The rows of a buffer."""
        return buffer[self.begin : self.end]

    def run(self) -> tuple[Inputs, GpuCacheMemory]:
        """Inputs and cache, which operations of a layer have.

        Raises:
            UnsupportedError: the operation is outside of a layer.
        """
        if self.inputs is None or self.cache is None:
            raise UnsupportedError("this operation belongs to a layer, where a cache is")
        return self.inputs, self.cache

    def last(self, count: int) -> Rows:
        """The last rows alone."""
        return replace(self, begin=self.end - count)


class Target:
    """The target of lowering: weights and buffers on a device, allocated when first used.

    Attributes:
        weights: weights of the artefact.
        buffers: by what they hold.
        half: type of the inputs of products of many tokens.
        tied: whether the embedding is the head's matrix.
    """

    def __init__(
        self, weights: Weights, device: Device, *, half: str, rows: int, widest: int, tied: bool
    ) -> None:
        """Begin without buffers.

        Args:
            weights: weights of the artefact.
            device: where everything is.
            half: see above.
            rows: most tokens of one run.
            widest: most inputs of a product.
            tied: see above.
        """
        self.weights, self.half, self.tied = weights, half, tied
        self.buffers: dict[object, torch.Tensor] = {}
        self._device, self._rows, self._widest = device, rows, widest
        self._columns: dict[str, tuple[torch.Tensor, int, int]] = {}

    def planes(self, value: str, size: int) -> torch.Tensor:
        """A value in plane order: float32 [rows, 8, plane_stride(size)]."""
        self._columns.pop(value, None)
        return self.buffer(("planes", value), (self._rows, PLANES, plane_stride(size)))

    def read_planes(self, value: str, size: int) -> torch.Tensor:
        """The same of a value that was written so.

        Raises:
            ShapeError: it was written side by side with others.
        """
        if value in self._columns:
            raise ShapeError(f"{value} lies beside other values, expected it in plane order")
        return self.planes(value, size)

    def side_by_side(self, group: Sequence[ops.Linear]) -> torch.Tensor:
        """Results of a group beside each other: float32 [rows, all outputs]."""
        width = sum(op.outputs for op in group)
        key = tuple(op.result for op in group)
        buffer = self.buffer(("columns", *key), (self._rows, width))
        at = 0
        for op in group:
            self._columns[op.result] = buffer, at, op.outputs
            at += op.outputs
        return buffer

    def columns(self, value: str) -> tuple[torch.Tensor, int, int] | None:
        """Return the buffer of a value, its first column and its width.

        None where it lies in plane order.
        """
        return self._columns.get(value)

    def heads(self, value: str, heads: int, head_dim: int) -> torch.Tensor:
        """A value as `attention` reads it: float32 [rows, heads, head_dim]."""
        return self.buffer(("heads", value), (self._rows, heads, head_dim))

    def log_sums(self, heads: int) -> torch.Tensor:
        """Scratch for the mass of attention: float32 [rows, heads]."""
        return self.buffer("log_sums", (self._rows, heads))

    def partials(self, op: ops.Attend) -> torch.Tensor:
        """Partial results of one token's attention, which is split over slots."""
        splits = min(MAX_SPLITS, max(1, 2 * self._device.processors // op.kv_heads))
        return self.buffer("partials", partials_shape(op.heads, op.head_dim, splits))

    def half_inputs(self, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of a product of many tokens, of this type, and each row's divisor."""
        flat = (self._rows * PLANES * plane_stride(self._widest),)
        return self.buffer(("half", kind), flat, kind), self.buffer("divisors", (self._rows,))

    def buffer(self, key: object, shape: tuple[int, ...], kind: str = "float32") -> torch.Tensor:
        """Zeros that stay the same for a key."""
        if key not in self.buffers:
            self.buffers[key] = self._device.zeros(shape, kind)
        return self.buffers[key]

    def multiply(
        self,
        product: Product,
        x: torch.Tensor,
        out: torch.Tensor,
        epilogue: Epilogue,
        norm: torch.Tensor | None,
        eps: float,
    ) -> None:
        """The product of one token or many; layers of different formats fill columns of `out`."""
        T, size = len(x), product.parts[0][1].K
        made: dict[str, torch.Tensor] = {}
        for at, linear in product.parts:
            part = out if product.joined is not None else out[:, at : at + linear.N]
            if T == 1:
                matmul_nbits(x, linear, part, epilogue, norm=norm, eps=eps)
                continue
            # Float32 weights are there because float16 would overflow: their inputs stay, too.
            wide = linear.weight.element_size() == 4 and linear.bits == 16
            kind = "float32" if wide else self.half
            flat, divisors = self.half_inputs(kind)
            if kind not in made:
                made[kind] = flat[: T * PLANES * linear.stride].view(T, PLANES, linear.stride)
                to_half(x, made[kind], divisors[:T], size=size, weight=norm, eps=eps)
            matmul_nbits(made[kind], linear, part, epilogue, x_scale=divisors[:T])
