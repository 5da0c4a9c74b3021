"""Builds the instructions of the linear kernels, with all their checking. No numba here.

A caller allocates buffers once, makes instructions once and runs them many times: an instruction
holds addresses, and the number of tokens is read from the run's state. Whoever passes a `Span`
keeps its memory alive as long as the instruction is used.

    qx = Activations.allocate(kernels.isa, tokens_max=T, K=K, bits=4, group_size=32)
    quantise_instruction(kernels, x=Floats.of(x), qx=qx)
    matmul_instruction(kernels, weight=q_proj, x=qx, y=Floats.of(q), scratch=scratch)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS
from edgetok.kernels_cpu.program.tables import Addresses, float_bits
from edgetok.kernels_cpu.simd.isa import ISAS, Isa

Instruction = npt.NDArray[np.int64]

QUANTISED_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128, 256)
SCRATCH_BYTES = layout.SCRATCH_BYTES  # of each thread, see `allocate_scratch`


@dataclass(frozen=True, slots=True)
class Span:
    """Readable (or writable) memory: address and how many bytes lie there."""

    address: int
    nbytes: int

    @classmethod
    def of(cls, array: npt.NDArray[np.generic]) -> Span:
        """The memory of a C-contiguous array, which the caller keeps alive.

        Raises:
            ShapeError: the array is not C-contiguous.
        """
        if not array.flags.c_contiguous:
            raise ShapeError(f"array of shape {array.shape} is not C-contiguous")
        return cls(array.ctypes.data, array.nbytes)


@dataclass(frozen=True, slots=True)
class Floats:
    """float32 [tokens_max, stride] at an address, of which `width` columns are used.

    A token's row begins `stride` floats after the one before, so that several results can lie side
    by side in one buffer.
    """

    address: int
    tokens_max: int
    width: int
    stride: int

    @classmethod
    def of(cls, array: npt.NDArray[np.float32], first: int = 0, width: int | None = None) -> Floats:
        """Columns first..first + width of a C-contiguous float32 array [T, stride].

        Raises:
            ShapeError: the array has another dtype or layout, or the columns are not inside.
        """
        if array.dtype != np.float32 or array.ndim != 2 or not array.flags.c_contiguous:
            raise ShapeError(
                f"array is {array.dtype} {array.shape}, expected C-contiguous float32 [T, K]"
            )
        width = array.shape[1] - first if width is None else width
        if not 0 <= first < first + width <= array.shape[1]:
            raise ShapeError(f"columns {first}..{first + width} of an array {array.shape}")
        return cls(array.ctypes.data + 4 * first, array.shape[0], width, array.shape[1])


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
        """What kernels of its kind are called."""
        if self.bits in (16, 32):
            return f"f{self.bits}"
        if self.table is not None:
            return "q4_table"
        more = {3: "_supers", 4: "_offsets"}.get(self.bits, "") if self.grouped else ""
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
        whole = layout.SUPER_GROUP if self.super_scales is not None else self.group_size
        if layout.GROUPED.get(self.bits) != self.group_size or self.K % whole:
            raise ShapeError(
                f"{self.name}: {self.bits} bits in groups of {self.group_size} of {self.K} inputs, "
                f"expected whole groups of {layout.GROUPED}"
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


def aligned_bytes(nbytes: int) -> npt.NDArray[np.uint8]:
    """Zeroed bytes whose address is a multiple of 64."""
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def allocate_scratch(threads: int) -> npt.NDArray[np.uint8]:
    """The buffer that all matmul instructions of a team of up to `threads` threads can share."""
    return aligned_bytes(threads * SCRATCH_BYTES)


def quantise_instruction(
    kernels: Addresses, *, x: Floats, qx: Activations, rows: int = 1, barrier: bool = True
) -> Instruction:
    """qx = x [T * rows, K] in int8.

    Args:
        kernels: loaded kernels.
        x: float32 [T * rows, K].
        qx: where it goes.
        rows: of each token.
        barrier: all threads wait afterwards.

    Raises:
        ShapeError: x and qx do not match.
    """
    if x.width != qx.K or x.tokens_max > qx.tokens_max or rows < 1:
        raise ShapeError(
            f"quantise: x [{x.tokens_max}, {x.width}] into activations for "
            f"[{qx.tokens_max}, {qx.K}]"
        )
    instruction = _instruction(kernels, "quantise", barrier)
    instruction[layout.QUANTISE_X] = x.address
    instruction[layout.QUANTISE_QX] = qx.address
    instruction[layout.QUANTISE_K] = qx.K
    instruction[layout.QUANTISE_GROUP] = qx.group_size | qx.block << 32
    instruction[layout.QUANTISE_BITS] = qx.bits
    instruction[layout.QUANTISE_X_STRIDE] = x.stride
    instruction[layout.QUANTISE_ROWS] = rows
    return instruction


def matmul_instruction(
    kernels: Addresses,
    *,
    weight: LinearWeight,
    x: Activations | Floats,
    y: Floats,
    scratch: npt.NDArray[np.uint8] | Span,
    add: bool = False,
    scale: float = 1.0,
    barrier: bool = True,
) -> Instruction:
    """y = scale * (x W^T + bias), or y += with `add`.

    Args:
        kernels: loaded kernels.
        weight: any bits with `Floats`; 2, 3, 4, 5, 6, 8 with `Activations`.
        x: int8 activations that `quantise` has filled, or float32 [T, K] without gaps for exact
            float32 arithmetic.
        y: float32 [T, N].
        scratch: from `allocate_scratch`, for at least as many threads as will run it.
        add: add to y instead of overwriting it.
        scale: factor of the product.
        barrier: all threads wait afterwards.

    Raises:
        ShapeError: sizes do not match.
    """
    if y.width != weight.N or y.tokens_max < x.tokens_max:
        raise ShapeError(
            f"{weight.name}: y is [{y.tokens_max}, {y.width}], expected "
            f"[{x.tokens_max}, {weight.N}]"
        )
    if not isinstance(scratch, Span):
        scratch = Span.of(scratch)
    if scratch.nbytes < layout.SCRATCH_BYTES or scratch.address % 64:
        raise ShapeError(f"{weight.name}: scratch must come from allocate_scratch")
    block = 0
    if isinstance(x, Activations):
        if not x.serves(weight):
            raise ShapeError(
                f"{weight.name}: {weight.bits} bits, groups of {weight.group_size}, K {weight.K}; "
                f"activations are for {x.bits} bits, groups of {x.group_size}, K {x.K}"
            )
        name, address, block = f"matmul_{weight.kernel}", x.address, x.block
    else:
        if x.width != weight.K or x.stride != weight.K:
            raise ShapeError(
                f"{weight.name}: x is [T, {x.width}] with stride {x.stride}, expected {weight.K}"
            )
        name = f"matmul_{weight.kernel}" + ("" if weight.bits in (16, 32) else "_float")
        address = x.address
    instruction = _instruction(kernels, name, barrier)
    instruction[layout.MATMUL_Y] = y.address
    instruction[layout.MATMUL_X] = address
    instruction[layout.MATMUL_QWEIGHT] = weight.weight.address
    for slot, span in (
        (layout.MATMUL_HIGH, weight.high or weight.table),
        (layout.MATMUL_SCALES, weight.scales),
        (layout.MATMUL_ZEROS, weight.offsets if weight.grouped else weight.zeros),
        (layout.MATMUL_BIAS, weight.bias),
        (layout.MATMUL_SUPERS, weight.super_scales),
    ):
        instruction[slot] = 0 if span is None else span.address
    instruction[layout.MATMUL_N] = weight.N
    instruction[layout.MATMUL_K] = weight.K
    instruction[layout.MATMUL_GROUP] = weight.group_size | block << 32
    instruction[layout.MATMUL_Y_STRIDE] = y.stride
    instruction[layout.MATMUL_SCRATCH] = scratch.address
    instruction[layout.MATMUL_EPILOGUE] = float_bits(scale) | (1 << 32 if add else 0)
    return instruction


def embed_instruction(
    kernels: Addresses,
    *,
    table: LinearWeight,
    tokens: Span,
    x: Floats,
    scale: float = 1.0,
    barrier: bool = True,
) -> Instruction:
    """x[t] = scale * table[tokens[t]].

    Args:
        kernels: loaded kernels.
        table: [vocabulary, K] of any bits.
        tokens: int32, as many as a run has at most; the caller has checked that each is in 0..N-1.
        x: float32 [T, K] without gaps.
        scale: the spec's embed_scale.
        barrier: all threads wait afterwards.

    Raises:
        ShapeError: sizes do not match.
    """
    if x.width != table.K or x.stride != table.K or tokens.nbytes < 4 * x.tokens_max:
        raise ShapeError(
            f"{table.name}: {tokens.nbytes // 4} tokens into [{x.tokens_max}, {x.width}] with "
            f"stride {x.stride}, table rows are {table.K} wide"
        )
    instruction = _instruction(kernels, f"embed_{table.kernel}", barrier)
    instruction[layout.EMBED_X] = x.address
    instruction[layout.EMBED_TOKENS] = tokens.address
    instruction[layout.EMBED_QWEIGHT] = table.weight.address
    for slot, span in (
        (layout.EMBED_HIGH, table.high or table.table),
        (layout.EMBED_SCALES, table.scales),
        (layout.EMBED_ZEROS, table.offsets if table.grouped else table.zeros),
        (layout.EMBED_SUPERS, table.super_scales),
    ):
        instruction[slot] = 0 if span is None else span.address
    instruction[layout.EMBED_K] = table.K
    instruction[layout.EMBED_GROUP_SIZE] = table.group_size
    instruction[layout.EMBED_SCALE] = float_bits(scale)
    return instruction


def _check_activations(tokens_max: int, K: int, bits: int, group_size: int) -> None:
    sizes = (16,) if bits == 6 else (16, *GROUP_SIZES) if bits == 3 else GROUP_SIZES
    if tokens_max < 1 or K < 1 or bits not in QUANTISED_BITS or group_size not in sizes:
        raise ShapeError(
            f"activations of {tokens_max} tokens, {K} inputs for {bits} bits in groups of "
            f"{group_size}"
        )


def _instruction(kernels: Addresses, name: str, barrier: bool) -> Instruction:
    instruction = np.zeros(INSTR_SLOTS, np.int64)
    instruction[0] = kernels.address(name)
    instruction[1] = barrier
    return instruction
