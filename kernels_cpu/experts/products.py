"""Products with the matrices of chosen experts, and the sum of their results.

A product's kernel gets, for one expert after the other, a copy of its instruction with that
expert's addresses and a copy of ctx with its number of rows. So weights of every format are read by
the kernels that there are, each expert that has rows once for all of them, and a row has the same
bits alone and beside others. Slots and lists: `experts/launch.py`.
"""

from __future__ import annotations

from edgetok.kernels_cpu.experts.launch import (
    GATHER_EXPERTS,
    GATHER_FROM,
    GATHER_GROUP,
    GATHER_K,
    GATHER_LISTS,
    GATHER_PLANES,
    GATHER_TO,
    GATHER_TOP,
    GROUP_EXPERT,
    GROUP_FIRST,
    GROUP_ROWS,
    GROUP_SLOTS,
    LISTS_HEAD,
    MIX_ADD,
    MIX_EXPERTS,
    MIX_LISTS,
    MIX_RESULT,
    MIX_SCALE,
    MIX_SHARES,
    MIX_SIZE,
    MIX_SOURCE,
    MIX_TOKENS,
    MIX_TOP,
    OPERANDS_ALONE,
    OPERANDS_HIGH_BYTES,
    OPERANDS_KERNEL,
    OPERANDS_LISTS,
    OPERANDS_PLANES,
    OPERANDS_SCALE_BYTES,
    OPERANDS_SCRATCH,
    OPERANDS_SCRATCH_BYTES,
    OPERANDS_SUPER_BYTES,
    OPERANDS_WEIGHT_BYTES,
    OPERANDS_ZERO_BYTES,
)
from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.program.abi import CTX_SLOTS, CTX_TOKENS, INSTR_SLOTS, kernel
from edgetok.kernels_cpu.simd.emit import LANES, VB, inline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32,
    load_f32_first,
    read_f32,
    read_i64,
    store_f32,
    store_f32_first,
    write_i64,
)
from edgetok.kernels_cpu.simd.ops import fma, mul, splat_f32, zero_f32
from edgetok.kernels_cpu.simd.threads import call_kernel

_RUN = 64  # floats that are shared out together: four cache lines


@inline
def _row_bytes(K, group, planes):  # type: ignore[no-untyped-def]
    """From one row of activations to the next; planes 0: float32."""
    if planes == 0:
        return 4 * K
    return layout.token_bytes(layout.padded_codes(K, group & 0xFFFFFFFF, planes, VB), group >> 32)


@kernel
def gather_expert_rows(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Copy this thread's share of the sorted rows' activations."""
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    if tokens == 1:
        return
    source = read_i64(instr + 8 * GATHER_FROM)
    to = read_i64(instr + 8 * GATHER_TO)
    lists = read_i64(instr + 8 * GATHER_LISTS)
    experts = read_i64(instr + 8 * GATHER_EXPERTS)
    rows = tokens * read_i64(instr + 8 * GATHER_TOP)
    K = read_i64(instr + 8 * GATHER_K)
    group = read_i64(instr + 8 * GATHER_GROUP)
    nbytes = _row_bytes(K, group, read_i64(instr + 8 * GATHER_PLANES))
    token_of = lists + 8 * (LISTS_HEAD + GROUP_SLOTS * experts)
    floats = nbytes // 4
    whole = floats // LANES * LANES
    for row in range(rows * tid // threads, rows * (tid + 1) // threads):
        x = source + nbytes * read_i64(token_of + 8 * row)
        out = to + nbytes * row
        for i in range(0, whole, LANES):
            store_f32(out + 4 * i, load_f32(x + 4 * i))
        if whole < floats:
            rest = floats - whole
            store_f32_first(out + 4 * whole, load_f32_first(x + 4 * whole, rest), rest)


@kernel
def expert_operands(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Hold arguments of the next instruction, which is `expert_products`."""


@kernel
def expert_products(instr: int, ctx: int, tid: int, threads: int) -> None:
    """This thread's share of the product of each expert that has rows."""
    operands = instr - 8 * INSTR_SLOTS
    product = read_i64(operands + 8 * OPERANDS_KERNEL)
    lists = read_i64(operands + 8 * OPERANDS_LISTS)
    alone = read_i64(operands + 8 * OPERANDS_ALONE)
    weight_bytes = read_i64(operands + 8 * OPERANDS_WEIGHT_BYTES)
    high_bytes = read_i64(operands + 8 * OPERANDS_HIGH_BYTES)
    scale_bytes = read_i64(operands + 8 * OPERANDS_SCALE_BYTES)
    zero_bytes = read_i64(operands + 8 * OPERANDS_ZERO_BYTES)
    super_bytes = read_i64(operands + 8 * OPERANDS_SUPER_BYTES)
    copy = read_i64(operands + 8 * OPERANDS_SCRATCH)
    copy += tid * read_i64(operands + 8 * OPERANDS_SCRATCH_BYTES)
    my_ctx = copy + 8 * INSTR_SLOTS
    for i in range(INSTR_SLOTS):
        write_i64(copy + 8 * i, read_i64(instr + 8 * i))
    for i in range(CTX_SLOTS):
        write_i64(my_ctx + 8 * i, read_i64(ctx + 8 * i))
    y = read_i64(instr + 8 * layout.MATMUL_Y)
    y_bytes = 4 * read_i64(instr + 8 * layout.MATMUL_Y_STRIDE)
    x = read_i64(instr + 8 * layout.MATMUL_X)
    weight = read_i64(instr + 8 * layout.MATMUL_QWEIGHT)
    high = read_i64(instr + 8 * layout.MATMUL_HIGH)
    scales = read_i64(instr + 8 * layout.MATMUL_SCALES)
    zeros = read_i64(instr + 8 * layout.MATMUL_ZEROS)
    bias = read_i64(instr + 8 * layout.MATMUL_BIAS)
    supers = read_i64(instr + 8 * layout.MATMUL_SUPERS)
    K = read_i64(instr + 8 * layout.MATMUL_K)
    N = read_i64(instr + 8 * layout.MATMUL_N)
    group = read_i64(instr + 8 * layout.MATMUL_GROUP)
    x_bytes = _row_bytes(K, group, read_i64(operands + 8 * OPERANDS_PLANES))
    if alone != 0 and read_i64(ctx + 8 * CTX_TOKENS) == 1:
        x = alone
        x_bytes = 0
    groups = lists + 8 * LISTS_HEAD
    for _ in range(read_i64(lists)):
        e = read_i64(groups + 8 * GROUP_EXPERT)
        first = read_i64(groups + 8 * GROUP_FIRST)
        groups += 8 * GROUP_SLOTS
        write_i64(my_ctx + 8 * CTX_TOKENS, read_i64(groups + 8 * (GROUP_ROWS - GROUP_SLOTS)))
        write_i64(copy + 8 * layout.MATMUL_Y, y + first * y_bytes)
        write_i64(copy + 8 * layout.MATMUL_X, x + first * x_bytes)
        write_i64(copy + 8 * layout.MATMUL_QWEIGHT, weight + e * weight_bytes)
        write_i64(copy + 8 * layout.MATMUL_HIGH, high + e * high_bytes)
        write_i64(copy + 8 * layout.MATMUL_SCALES, scales + e * scale_bytes)
        write_i64(copy + 8 * layout.MATMUL_ZEROS, zeros + e * zero_bytes)
        if bias != 0:
            write_i64(copy + 8 * layout.MATMUL_BIAS, bias + 4 * N * e)
        write_i64(copy + 8 * layout.MATMUL_SUPERS, supers + e * super_bytes)
        call_kernel(product, copy, my_ctx, tid, threads)


@kernel
def mix_experts(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Add up this thread's share of columns of every token, in the order of its choices."""
    source = read_i64(instr + 8 * MIX_SOURCE)
    shares = read_i64(instr + 8 * MIX_SHARES)
    result = read_i64(instr + 8 * MIX_RESULT)
    lists = read_i64(instr + 8 * MIX_LISTS)
    experts = read_i64(instr + 8 * MIX_EXPERTS)
    top = read_i64(instr + 8 * MIX_TOP)
    room = read_i64(instr + 8 * MIX_TOKENS)
    size = read_i64(instr + 8 * MIX_SIZE)
    scale = splat_f32(f32_from_bits(read_i64(instr + 8 * MIX_SCALE)))
    onto = read_i64(instr + 8 * MIX_ADD)
    row_of = lists + 8 * (LISTS_HEAD + GROUP_SLOTS * experts + room * top)
    runs = (size + _RUN - 1) // _RUN
    total = runs * read_i64(ctx + 8 * CTX_TOKENS)
    for unit in range(total * tid // threads, total * (tid + 1) // threads):
        t = unit // runs
        begin = unit % runs * _RUN
        for i in range(begin, min(begin + _RUN, size), LANES):
            count = min(LANES, size - i)
            f = zero_f32()
            for j in range(t * top, (t + 1) * top):
                row = source + 4 * size * read_i64(row_of + 8 * j)
                share = splat_f32(read_f32(shares + 4 * j))
                f = fma(load_f32_first(row + 4 * i, count), share, f)
            out = result + 4 * (size * t + i)
            f = fma(f, scale, load_f32_first(out, count)) if onto != 0 else mul(f, scale)
            store_f32_first(out, f, count)
