"""The Walsh-Hadamard transform of each head's dims, in place.

    x = H y / sqrt(n), H[i, j] = (-1)^(number of bits that i and j share), y = (x - centre) * factor

over blocks of n dims, n the largest power of two that divides head_dim. It is its own inverse and
leaves products of two rotated vectors as they are; a dim that is far larger than the others is
spread over its block, which codes of 4 to 8 bits need (arXiv 2404.00456). Centre and factor, of
each KV head, are those of `launch.hadamard`; without them y = x. Heads are shared out as by
`rope`, so that nothing waits between the two. Slots: `attention/launch.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.attention.launch import (
    HADAMARD_BLOCK,
    HADAMARD_CENTRE,
    HADAMARD_FACTOR,
    HADAMARD_GROUP,
    HADAMARD_HEAD_DIM,
    HADAMARD_HEADS,
    HADAMARD_SCALE,
    HADAMARD_X,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import (
    _F32,
    _I64,
    F32,
    LANES,
    _constant,
    _shuffle,
    i64,
    inline,
    op,
    outline,
)
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32,
    load_f32_first,
    read_i64,
    store_f32,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import add, mul, splat_f32, sub


@op(F32, F32, i64)
def _turn_lanes(b: Any, v: Any, block: Any) -> Any:
    """The unscaled transform of every `block` lanes, or of all where it is larger."""
    h = 1
    while h < LANES:
        signs = _constant(_F32, LANES, [-1.0 if i & h else 1.0 for i in range(LANES)])
        partner = _shuffle(b, v, [i ^ h for i in range(LANES)])
        turned = b.fadd(b.fmul(v, signs), partner)
        v = b.select(b.icmp_signed("<", ir.Constant(_I64, h), block), turned, v)
        h *= 2
    return v


@outline
def _turn(x: int, block: int, scale: float) -> None:
    """One block that is longer than a vector."""
    for i in range(0, block, LANES):
        at = x + 4 * i
        store_f32(at, _turn_lanes(mul(load_f32(at), splat_f32(scale)), block))
    h = LANES
    while h < block:
        for first in range(0, block, 2 * h):
            for i in range(first, first + h, LANES):
                a = load_f32(x + 4 * i)
                b = load_f32(x + 4 * (i + h))
                store_f32(x + 4 * i, add(a, b))
                store_f32(x + 4 * (i + h), sub(a, b))
        h *= 2


@outline
def turn_head(head: int, size: int, block: int, scale: float) -> None:
    """Transform the dims of one head, float32 [size], in place; `scale` is 1 / sqrt(block)."""
    if block > LANES:
        for i in range(0, size, block):
            _turn(head + 4 * i, block, scale)
    else:
        for i in range(0, size, LANES):
            count = min(LANES, size - i)
            v = mul(load_f32_first(head + 4 * i, count), splat_f32(scale))
            store_f32_first(head + 4 * i, _turn_lanes(v, block), count)


@inline
def prepare(head: int, centre: int, factor: int, size: int) -> None:
    """x = (x - centre) * factor, float32 [size] each; `centre` 0 stands for zeros."""
    for i in range(0, size, LANES):
        count = min(LANES, size - i)
        v = load_f32_first(head + 4 * i, count)
        if centre != 0:
            v = sub(v, load_f32_first(centre + 4 * i, count))
        store_f32_first(head + 4 * i, mul(v, load_f32_first(factor + 4 * i, count)), count)


@kernel
def hadamard(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Turn this thread's share of heads."""
    x = read_i64(instr + 8 * HADAMARD_X)
    heads = read_i64(instr + 8 * HADAMARD_HEADS)
    size = read_i64(instr + 8 * HADAMARD_HEAD_DIM)
    block = read_i64(instr + 8 * HADAMARD_BLOCK)
    scale = f32_from_bits(read_i64(instr + 8 * HADAMARD_SCALE))
    centre = read_i64(instr + 8 * HADAMARD_CENTRE)
    factor = read_i64(instr + 8 * HADAMARD_FACTOR)
    group = read_i64(instr + 8 * HADAMARD_GROUP)
    units = read_i64(ctx + 8 * CTX_TOKENS) * heads
    for unit in range(share(units, tid, threads), share(units, tid + 1, threads)):
        if factor != 0:
            row = 4 * size * (unit % heads // group)
            to_subtract = centre + row if centre != 0 else centre
            prepare(x + 4 * size * unit, to_subtract, factor + row, size)
        turn_head(x + 4 * size * unit, size, block, scale)
