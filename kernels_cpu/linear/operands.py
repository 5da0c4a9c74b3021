"""Operands of linear kernels: weights as an artefact has them, quantised activations.

Every size is checked against the memory that is there. No numba here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.program.memory import Span, aligned_bytes
from edgetok.kernels_cpu.simd.isa import ISAS, Isa

QUANTISED_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearWeight:
    """A linear layer's weights where the artefact has them (docs/architecture.md).

    Attributes:
        name: for messages.
        bits: 2, 3, 4, 5, 6, 8 quantised; 16 float16; 32 float32.
        N: outputs.
        K: inputs.
        group_size: inputs that share a scale; 0 for 16 and 32 bits.
        weight: codes, or float16 / float32 [N, K].
        high: 3, 5 and 6 bits only: the plane of high bits.
        table: 4 bits only: int8 [16], the levels that codes choose; or None.
        scales: float16 [N, G], int8 where there are super-scales; None for 16 and 32 bits.
        zeros: packed zero points, or None.
        offsets: like scales, or None.
        super_scales: float16 [N, K / 256, 1], with offsets [N, K / 256, 2], or None.
        bias: float32 [N], or None.
    """

    name: str
    bits: int
    N: int
    K: int
    group_size: int = 0
    weight: Span
    high: Span | None = None
    table: Span | None = None
    scales: Span | None = None
    zeros: Span | None = None
    offsets: Span | None = None
    super_scales: Span | None = None
    bias: Span | None = None

    @property
    def grouped(self) -> bool:
        """Whether kernels of grouped weights compute it: offsets, super-scales, tables."""
        more = (self.offsets, self.super_scales, self.table)
        return self.bits in (5, 6) or any(span is not None for span in more)

    @property
    def kernel(self) -> str:
        """Name of the kernels of its kind."""
        if self.bits in (16, 32):
            return f"f{self.bits}"
        if self.table is not None:
            return "q4_table"
        more = {3: "_supers", 4: "_offsets"}.get(self.bits, "") if self.grouped else ""
        if self.bits == 6 and self.super_scales is None:
            more = "_scales"
        return f"q{self.bits}{more}"

    def __post_init__(self) -> None:
        """Check every size against the bytes that are there.

        Raises:
            ShapeError: something is missing, too small or of an unknown kind.
        """
        if self.N < 1 or self.K < 1:
            raise ShapeError(f"{self.name}: [{self.N}, {self.K}], expected at least [1, 1]")
        if self.bits in (16, 32):
            self._holds("weight", self.weight, self.N * self.K * self.bits // 8)
            for part in ("high", "table", "scales", "zeros", "offsets", "super_scales"):
                if getattr(self, part) is not None:
                    raise ShapeError(f"{self.name}: {self.bits} bits do not have {part}")
        elif self.grouped:
            self._check_grouped()
        elif self.bits in QUANTISED_BITS and self.group_size in GROUP_SIZES:
            groups = -(-self.K // self.group_size)
            codes = self.N * groups * self.group_size
            self._holds("weight", self.weight, codes * (2 if self.bits == 3 else self.bits) // 8)
            if self.bits == 3:
                self._holds("high", self.high, codes // 8)
            elif self.high is not None:
                raise ShapeError(f"{self.name}: {self.bits} bits do not have a high plane")
            self._holds("scales", self.scales, self.N * groups * 2)
            if self.zeros is not None:
                zero_bits = 8 if self.bits == 3 else self.bits
                self._holds("zeros", self.zeros, self.N * (-(-groups * zero_bits // 8)))
        else:
            raise ShapeError(
                f"{self.name}: {self.bits} bits in groups of {self.group_size}, expected 16 or 32 "
                f"bits, or {QUANTISED_BITS} in groups of {GROUP_SIZES}"
            )
        if self.bias is not None:
            self._holds("bias", self.bias, 4 * self.N)

    def _check_grouped(self) -> None:
        supers = self.super_scales is not None
        whole = layout.SUPER_GROUP if supers else self.group_size
        expected = layout.grouped_size(self.bits, supers)
        if expected != self.group_size or self.K % whole:
            raise ShapeError(
                f"{self.name}: {self.bits} bits in groups of {self.group_size} of {self.K} inputs, "
                f"expected whole groups of {expected}"
            )
        if self.zeros is not None:
            raise ShapeError(f"{self.name}: {self.bits} bits in groups do not have zeros")
        if self.table is not None:
            if self.bits != 4 or self.offsets is not None:
                raise ShapeError(f"{self.name}: a table, expected with 4 bits and without offsets")
            self._holds("table", self.table, 16)
        weights, groups = self.N * self.K, self.N * self.K // self.group_size
        self._holds("weight", self.weight, weights * layout.LOW_BITS[self.bits] // 8)
        if self.bits in layout.HIGH_BITS:
            self._holds("high", self.high, weights * layout.HIGH_BITS[self.bits] // 8)
        each = 2 if self.super_scales is None else 1
        self._holds("scales", self.scales, each * groups)
        if self.offsets is not None:
            self._holds("offsets", self.offsets, each * groups)
        if self.super_scales is not None:
            numbers = weights // layout.SUPER_GROUP * (1 if self.offsets is None else 2)
            self._holds("super_scales", self.super_scales, 2 * numbers)

    def _holds(self, part: str, span: Span | None, nbytes: int) -> None:
        if span is None or span.nbytes < nbytes:
            found = "nothing" if span is None else f"{span.nbytes} bytes"
            raise ShapeError(f"{self.name}: {part} is {found}, expected {nbytes} bytes")

    @property
    def read_bytes(self) -> int:
        """Bytes that one product reads of it."""
        if self.bits in (16, 32):
            total = self.N * self.K * self.bits // 8
        elif self.grouped:
            numbers = (self.scales, self.offsets, self.super_scales)
            spans = (self.weight, self.high, self.table, *numbers)
            total = sum(span.nbytes for span in spans if span is not None)
        else:
            groups = -(-self.K // self.group_size)
            zero_bits = 0 if self.zeros is None else 8 if self.bits == 3 else self.bits
            total = self.N * (
                groups * self.group_size * self.bits // 8 + 2 * groups + -(-groups * zero_bits // 8)
            )
        return total + (0 if self.bias is None else 4 * self.N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """A buffer of quantised activations for products with weights of one format.

    Products whose weights have the same K, `bits` and `group_size` share it.
    Its layout is private to the linear kernels.

    Attributes:
        tokens_max, K, bits, group_size: what `allocate` was told.
        block: inputs that share a scale.
        array: `activation_bytes` of memory at a multiple of 64, or where it will be.
    """

    tokens_max: int
    K: int
    bits: int
    group_size: int
    block: int
    array: npt.NDArray[np.uint8] | Span

    @property
    def address(self) -> int:
        """Address of the buffer."""
        return self.array.address if isinstance(self.array, Span) else self.array.ctypes.data

    @classmethod
    def allocate(
        cls, isa: Isa, *, tokens_max: int, K: int, bits: int, group_size: int
    ) -> Activations:
        """A zeroed buffer for up to `tokens_max` tokens.

        Args:
            isa: of the kernels that will use it.
            tokens_max: most tokens of one run.
            K: inputs.
            bits: of the weights: 2, 3, 4, 5, 6 or 8.
            group_size: of the weights.

        Raises:
            ShapeError: a size is out of range.
        """
        nbytes = activation_bytes(tokens_max, K, bits, group_size, vector_bytes=isa.vector_bytes)
        array = aligned_bytes(nbytes)
        return cls.at(array, tokens_max=tokens_max, K=K, bits=bits, group_size=group_size)

    @classmethod
    def at(
        cls,
        array: npt.NDArray[np.uint8] | Span,
        *,
        tokens_max: int,
        K: int,
        bits: int,
        group_size: int,
    ) -> Activations:
        """A buffer in zeroed memory of `activation_bytes`, at a multiple of 64.

        Raises:
            ShapeError: a size is out of range.
        """
        _check_activations(tokens_max, K, bits, group_size)
        return cls(
            tokens_max=tokens_max,
            K=K,
            bits=bits,
            group_size=group_size,
            block=min(group_size, ACTIVATION_BLOCK),
            array=array,
        )

    def serves(self, weight: LinearWeight) -> bool:
        """Whether a product of `weight` can read this buffer."""
        # 2 and 3 bits have one order of codes, but sums times different middles.
        wanted = (weight.bits, weight.K, weight.group_size)
        return wanted == (self.bits, self.K, self.group_size)


# Inputs that share an activation scale, where the weights' groups are not smaller.
ACTIVATION_BLOCK = 128
_WIDEST = max(isa.vector_bytes for isa in ISAS.values())


def activation_bytes(
    tokens_max: int, K: int, bits: int, group_size: int, *, vector_bytes: int = _WIDEST
) -> int:
    """Bytes that `Activations` take; unless told otherwise enough for every instruction set.

    Raises:
        ShapeError: a size is out of range.
    """
    _check_activations(tokens_max, K, bits, group_size)
    block = min(group_size, ACTIVATION_BLOCK)
    return layout.activation_bytes(tokens_max, K, group_size, block, bits, vector_bytes)


def _check_activations(tokens_max: int, K: int, bits: int, group_size: int) -> None:
    sizes = (16, 32) if bits == 6 else (16, *GROUP_SIZES) if bits == 3 else GROUP_SIZES
    if tokens_max < 1 or K < 1 or bits not in QUANTISED_BITS or group_size not in sizes:
        raise ShapeError(
            f"activations of {tokens_max} tokens, {K} inputs for {bits} bits in groups of "
            f"{group_size}"
        )
