"""Instructions of experts, and the memory that they need. No numba here.

A run's choices are T * top rows. Sorted by expert, and by token within one, they are *sorted rows*:
what the experts' products read and write. The *lists* say how they are sorted:

    int64 [LISTS_HEAD]          how many experts have rows
    int64 [experts, 3]          of each of those: its number, its first sorted row, how many
    int64 [T * top]             token of each sorted row
    int64 [T * top]             sorted row of each choice
    int64 [experts]             counters
    float32 [experts, padded]   probabilities of one token
"""

from __future__ import annotations

from dataclasses import replace

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.launch import matmul_instruction
from edgetok.kernels_cpu.linear.operands import Activations, LinearWeight
from edgetok.kernels_cpu.program.abi import CTX_SLOTS, INSTR_SLOTS
from edgetok.kernels_cpu.program.memory import Floats, Span
from edgetok.kernels_cpu.program.tables import (
    Addresses,
    Instruction,
    Table,
    float_bits,
    instruction,
)

LISTS_HEAD = 8
GROUP_EXPERT, GROUP_FIRST, GROUP_ROWS, GROUP_SLOTS = range(4)
_PADDING_BYTES = 64  # of vectors

(
    ROUTE_SCORES,
    ROUTE_CHOSEN,
    ROUTE_SHARES,
    ROUTE_BIAS,
    ROUTE_LISTS,
    ROUTE_EXPERTS,
    ROUTE_TOP,
    ROUTE_TOKENS,
    ROUTE_SIGMOID,
    ROUTE_NORMED,
    ROUTE_SUM_EPS,
    ROUTE_FACTOR,
    ROUTE_SCALES,
) = range(2, 15)
(
    GATHER_FROM,
    GATHER_TO,
    GATHER_LISTS,
    GATHER_EXPERTS,
    GATHER_TOP,
    GATHER_K,
    GATHER_GROUP,
    GATHER_PLANES,
) = range(2, 10)
(
    OPERANDS_KERNEL,
    OPERANDS_LISTS,
    OPERANDS_EXPERTS,
    OPERANDS_ALONE,
    OPERANDS_PLANES,
    OPERANDS_SCRATCH,
    OPERANDS_SCRATCH_BYTES,
    OPERANDS_WEIGHT_BYTES,
    OPERANDS_HIGH_BYTES,
    OPERANDS_SCALE_BYTES,
    OPERANDS_ZERO_BYTES,
    OPERANDS_SUPER_BYTES,
) = range(2, 14)
(
    MIX_SOURCE,
    MIX_SHARES,
    MIX_RESULT,
    MIX_LISTS,
    MIX_EXPERTS,
    MIX_TOP,
    MIX_TOKENS,
    MIX_SIZE,
    MIX_SCALE,
    MIX_ADD,
) = range(2, 12)

COPY_BYTES = 8 * (INSTR_SLOTS + CTX_SLOTS)  # of a thread: an instruction and a ctx


def lists_bytes(tokens: int, experts: int, top: int) -> int:
    """Return the bytes of a run's lists."""
    if tokens < 1 or experts < 1 or not 1 <= top <= experts:
        raise ShapeError(f"experts: {tokens} tokens, {top} of {experts} experts: out of range")
    numbers = LISTS_HEAD + (GROUP_SLOTS + 1) * experts + 2 * tokens * top
    return 8 * numbers + 4 * experts + 2 * _PADDING_BYTES


def route(
    kernels: Addresses,
    *,
    scores: int,
    chosen: int,
    shares: int,
    bias: int,
    lists: Span,
    tokens: int,
    experts: int,
    top: int,
    sigmoid: bool,
    normed: bool,
    sum_eps: float,
    factor: float,
    scales: int = 0,
) -> Instruction:
    """Choose experts and sort the choices.

    Args:
        kernels: the loaded kernels.
        scores: address of float32 [T, experts].
        chosen: address of float32 [T, top]: numbers of experts, best first.
        shares: address of float32 [T, top].
        bias: address of float32 [experts], added for the choice alone; 0: none.
        lists: `lists_bytes`.
        tokens: most tokens of a run.
        experts: how many there are.
        top: how many a token gets.
        sigmoid: probabilities are sigmoids of the scores, not their softmax.
        normed: shares are divided by their sum + `sum_eps`.
        sum_eps: see above.
        factor: shares are multiplied by it.
        scales: address of float32 [experts], which an expert's share is multiplied by; 0: none.

    Raises:
        ShapeError: sizes do not go together.
    """
    if lists.nbytes < lists_bytes(tokens, experts, top):
        raise ShapeError(f"experts: lists are {lists.nbytes} bytes, too few for {tokens} tokens")
    args = (scores, chosen, shares, bias, lists.address, experts, top, tokens)
    more = (int(sigmoid), int(normed), float_bits(sum_eps), float_bits(factor), scales)
    return instruction(kernels.address("route_experts"), *args, *more, wait=True)


def gather(
    kernels: Addresses,
    *,
    x: Activations | Floats,
    to: Activations | Floats,
    lists: Span,
    experts: int,
    top: int,
    wait: bool,
) -> Instruction:
    """Copy each sorted row's activations from its token's; a single token's stay where they are.

    Raises:
        ShapeError: x and `to` do not match.
    """
    width = x.K if isinstance(x, Activations) else x.width
    other = to.K if isinstance(to, Activations) else to.width
    if type(x) is not type(to) or width != other or to.tokens_max < top * x.tokens_max:
        raise ShapeError(f"experts: rows of {width} into {other}, {top} for each of {x.tokens_max}")
    group, planes = 0, 0
    if isinstance(x, Activations):
        group, planes = x.group_size | x.block << 32, layout.PLANES[x.bits]
    args = (x.address, to.address, lists.address, experts, top, width, group, planes)
    return instruction(kernels.address("gather_expert_rows"), *args, wait=wait)


def expert_products(
    kernels: Addresses,
    *,
    weight: LinearWeight,
    experts: int,
    x: Activations | Floats,
    alone: int,
    y: Floats,
    lists: Span,
    scratch: Span,
    own: int,
    own_bytes: int,
    barrier: bool,
) -> list[Instruction | Table]:
    """y[row] = x[row] W[expert of row]^T + bias, for sorted rows; each expert is read once.

    Two instructions: the first holds what the kernel of the second needs beside the product's own
    slots, and does nothing itself.

    Args:
        kernels: loaded kernels.
        weight: [experts * N, K] of any bits.
        experts: how many matrices lie below each other.
        x: sorted rows of activations.
        alone: address of the activations that all rows of a single token share; 0: they have rows
            of their own.
        y: float32 [T * top, N], sorted rows.
        lists: the run's.
        scratch: of products.
        own: address of `own_bytes` for each thread, at least `COPY_BYTES`, that nothing else uses.
        own_bytes: see above.
        barrier: all threads wait afterwards.

    Raises:
        ShapeError: sizes do not go together.
    """
    N, rest = divmod(weight.N, experts)
    if rest or own_bytes < COPY_BYTES:
        raise ShapeError(f"{weight.name}: {weight.N} rows of {experts} experts, {own_bytes} bytes")
    one = replace(weight, N=N)
    product = matmul_instruction(kernels, weight=one, x=x, y=y, scratch=scratch, barrier=barrier)
    planes = layout.PLANES[weight.bits] if isinstance(x, Activations) else 0
    strides = [
        0 if span is None else _each(span, experts, weight.name)
        for span in (
            weight.weight,
            weight.high,
            weight.scales,
            weight.offsets if weight.grouped else weight.zeros,
            weight.super_scales,
        )
    ]
    operands = instruction(
        kernels.address("expert_operands"),
        int(product[0]),
        lists.address,
        experts,
        alone,
        planes,
        own,
        own_bytes,
        *strides,
    )
    product[0] = kernels.address("expert_products")
    return [operands, product]


def mix(
    kernels: Addresses,
    *,
    source: int,
    shares: int,
    result: int,
    lists: Span,
    tokens: int,
    experts: int,
    top: int,
    size: int,
    scale: float,
    add: bool,
    wait: bool,
) -> Instruction:
    """result[t] [+]= scale * sum over j of shares[t, j] * source[sorted row of (t, j)].

    Args:
        kernels: the loaded kernels.
        source: address of float32 [T * top, size], sorted rows.
        shares: address of float32 [T, top].
        result: address of float32 [T, size].
        lists: the run's.
        tokens: most tokens of a run.
        experts: how many there are.
        top: how many a token gets.
        size: of a row.
        scale: see above.
        add: to the result.
        wait: see `instruction`.
    """
    args = (source, shares, result, lists.address, experts, top, tokens, size, float_bits(scale))
    return instruction(kernels.address("mix_experts"), *args, int(add), wait=wait)


def _each(span: Span, experts: int, name: str) -> int:
    each, rest = divmod(span.nbytes, experts)
    if rest:
        raise ShapeError(f"{name}: {span.nbytes} bytes of {experts} experts, expected whole ones")
    return each
