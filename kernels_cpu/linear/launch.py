"""Builds the instructions of the linear kernels, with all their checking. No numba here.

A caller allocates buffers once, makes instructions once and runs them many times: an instruction
holds addresses, and the number of tokens is read from the run's state. Whoever passes a `Span`
keeps its memory alive as long as the instruction is used.

    qx = Activations.allocate(kernels.isa, tokens_max=T, K=K, bits=4, group_size=32)
    quantise_instruction(kernels, x=Floats.of(x), qx=qx)
    matmul_instruction(kernels, weight=q_proj, x=qx, y=Floats.of(q), scratch=scratch)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.operands import Activations, LinearWeight
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS
from edgetok.kernels_cpu.program.memory import Floats, Span, aligned_bytes
from edgetok.kernels_cpu.program.tables import Addresses, float_bits

Instruction = npt.NDArray[np.int64]

SCRATCH_BYTES = layout.SCRATCH_BYTES  # of each thread, see `allocate_scratch`


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


def _instruction(kernels: Addresses, name: str, barrier: bool) -> Instruction:
    instruction = np.zeros(INSTR_SLOTS, np.int64)
    instruction[0] = kernels.address(name)
    instruction[1] = barrier
    return instruction
