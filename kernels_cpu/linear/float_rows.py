"""Products with float16 and float32 weights [N, K] and float32 activations, accumulated in float32.

A few tokens: row by row. Inputs k, k + CHAINS, k + 2 * CHAINS, ... of a slab of FLOAT_SLAB are one
sum, a lane of one or several vectors; a slab's CHAINS sums are added in their order, and slabs to
y. Many tokens: `linear/float_tiles.py`, in the same order.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.float_row_steps import float_row_step, store_chains, sum_chains
from edgetok.kernels_cpu.linear.float_tiles import CHAINS, FLOAT_SLAB, make_float_tiles
from edgetok.kernels_cpu.linear.row_steps import zero_sums
from edgetok.kernels_cpu.linear.scales import finish
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import LANES, VB, inline
from edgetok.kernels_cpu.simd.memory import f32_from_bits, read_i64

ROW_TOKENS = 8  # most tokens that are multiplied row by row
TOKENS = 4  # side by side
# Rows side by side, for one token and for several: as many sums as hide the additions' latency.
_ALONE, _SIDE = 4, 2
AHEAD_BYTES = 8192  # how far ahead weights are asked for
_PART = 16 * FLOAT_SLAB  # inputs of a row that are read at once: most rows are read in one stream
_ROW_BYTES = 4 * CHAINS + VB  # of scratch, for a row's sums; other rows, other sets of the cache
_SLAB_BYTES = LANES * _ROW_BYTES
_TOKEN_BYTES = _PART // FLOAT_SLAB * _SLAB_BYTES
if ROW_TOKENS * _TOKEN_BYTES > layout.SCRATCH_BYTES:
    raise ValueError("the rows' sums do not fit the scratch")


def make_float_rows(bits: int) -> Any:
    """The kernel body for up to ROW_TOKENS tokens."""
    each = bits // 8
    add_chains = sum_chains(CHAINS, _ROW_BYTES)

    def make_slab(rows: int, tokens: int, lanes: int) -> Any:
        """A function for rows x tokens of one slab, `lanes` of the CHAINS sums at a time."""
        step, last_step = (float_row_step(bits, rows, tokens, lanes, p) for p in (False, True))
        zero = zero_sums(rows * tokens * lanes // LANES)
        store = store_chains(rows, tokens, lanes, _ROW_BYTES, _TOKEN_BYTES)

        @inline
        def slab(w, x, wb, xb, last_row, last, width, out):  # type: ignore[no-untyped-def]
            for lane in range(0, CHAINS, lanes):
                f, i = zero(), lane
                while i + lanes <= width:
                    f = step(f, w + each * i, x + 4 * i, wb, xb, last_row, last, AHEAD_BYTES)
                    i += CHAINS
                if i < width:
                    rest = width - i
                    f = last_step(f, w + each * i, x + 4 * i, wb, xb, last_row, last, rest)
                store(f, out + 4 * lane)

        return slab

    one, few = make_slab(_ALONE, 1, CHAINS), make_slab(_SIDE, TOKENS, LANES)

    @inline
    def rows(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        """The rows of one thread, all tokens."""
        y = read_i64(instr + 8 * layout.MATMUL_Y)
        x = read_i64(instr + 8 * layout.MATMUL_X)
        weight = read_i64(instr + 8 * layout.MATMUL_QWEIGHT)
        bias = read_i64(instr + 8 * layout.MATMUL_BIAS)
        N = read_i64(instr + 8 * layout.MATMUL_N)
        K = read_i64(instr + 8 * layout.MATMUL_K)
        yb = 4 * read_i64(instr + 8 * layout.MATMUL_Y_STRIDE)
        scratch = read_i64(instr + 8 * layout.MATMUL_SCRATCH) + tid * layout.SCRATCH_BYTES
        epilogue = read_i64(instr + 8 * layout.MATMUL_EPILOGUE)
        factor, onto = f32_from_bits(epilogue), epilogue >> 32
        tokens = read_i64(ctx + 8 * CTX_TOKENS)
        xb, wb = 4 * K, each * K
        side = _ALONE if tokens == 1 else _SIDE

        runs = (N + LANES - 1) // LANES
        for run in range(tid * runs // threads, (tid + 1) * runs // threads):
            n = run * LANES
            end = n + LANES if n + LANES < N else N
            for begin in range(0, K, _PART):
                width = K - begin if K - begin < _PART else _PART
                for r in range(n, end, side):
                    for k in range(0, width, FLOAT_SLAB):
                        here = width - k if width - k < FLOAT_SLAB else FLOAT_SLAB
                        w = weight + r * wb + each * (begin + k)
                        for t in range(0, tokens, TOKENS):
                            a = x + t * xb + 4 * (begin + k)
                            out = scratch + t * _TOKEN_BYTES + k // FLOAT_SLAB * _SLAB_BYTES
                            out += (r - n) * _ROW_BYTES
                            if tokens == 1:
                                one(w, a, wb, xb, end - 1 - r, 0, here, out)
                            else:
                                few(w, a, wb, xb, end - 1 - r, tokens - 1 - t, here, out)
                for t in range(tokens):
                    sums = scratch + t * _TOKEN_BYTES
                    for k in range(begin, begin + width, FLOAT_SLAB):
                        more, final = onto != 0 or k != 0, k + FLOAT_SLAB >= K
                        value = add_chains(sums)
                        finish(value, y + t * yb, bias, n, end - n, factor, more, final)
                        sums += _SLAB_BYTES

    return rows


_rows_16, _rows_32 = make_float_rows(16), make_float_rows(32)
_tiles_16, _tiles_32 = make_float_tiles(16), make_float_tiles(32)


@kernel
def matmul_f16(instr: int, ctx: int, tid: int, threads: int) -> None:
    """float16 weights."""
    if read_i64(ctx + 8 * CTX_TOKENS) <= ROW_TOKENS:
        _rows_16(instr, ctx, tid, threads)
    else:
        _tiles_16(instr, ctx, tid, threads)


@kernel
def matmul_f32(instr: int, ctx: int, tid: int, threads: int) -> None:
    """float32 weights."""
    if read_i64(ctx + 8 * CTX_TOKENS) <= ROW_TOKENS:
        _rows_32(instr, ctx, tid, threads)
    else:
        _tiles_32(instr, ctx, tid, threads)
