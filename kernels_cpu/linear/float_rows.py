"""Products with float16 and float32 weights [N, K] and float32 activations, accumulated in float32.

A few tokens: row by row, as in `linear/rows.py`. More: `linear/float_tiles.py`.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.float_tiles import make_float_tiles
from edgetok.kernels_cpu.linear.layout import DECODE_TOKENS, MATMUL_LAST
from edgetok.kernels_cpu.linear.row_steps import float_row_step, store_tokens, zero_tokens
from edgetok.kernels_cpu.linear.rows import PAIR, TOKENS, finish_rows
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.emit import LANES, VB, inline
from edgetok.kernels_cpu.simd.memory import f32_from_bits, read_i64, store_f32
from edgetok.kernels_cpu.simd.ops import zero_f32


def make_float_rows(bits: int) -> Any:
    """The kernel body for up to DECODE_TOKENS tokens."""
    weight_bytes = bits // 8

    def make_sums(rows: int, tokens: int) -> Any:
        step, last_step = (float_row_step(bits, rows, tokens, part) for part in (False, True))

        @inline
        def sums(f, w, x, wb, xb, last, K):  # type: ignore[no-untyped-def]
            for _ in range(K // LANES):
                f = step(f, w, x, wb, xb, last)
                w, x = w + weight_bytes * LANES, x + 4 * LANES
            if K % LANES != 0:
                f = last_step(f, w, x, wb, xb, last, K % LANES)
            return f

        return sums

    row_sums, pair_sums = make_sums(1, 1), make_sums(PAIR, TOKENS)
    pair_zero, store_sums = zero_tokens(PAIR, TOKENS), store_tokens(PAIR, TOKENS)

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
        xb, wb = 4 * K, weight_bytes * K
        if read_i64(instr + 8 * layout.MATMUL_LAST) != 0:
            x += (tokens - 1) * xb
            tokens = 1

        runs = (N + LANES - 1) // LANES
        for run in range(tid * runs // threads, (tid + 1) * runs // threads):
            n = run * LANES
            end = n + LANES if n + LANES < N else N
            if tokens == 1:
                for r in range(n, end):
                    f = row_sums((zero_f32(),), weight + r * wb, x, 0, 0, 0, K)
                    store_f32(scratch + (r - n) * VB, f[0])
            else:
                for r in range(n, end, PAIR):
                    # An odd last row is its own neighbour.
                    wr = 0 if r + 1 == end else wb
                    for t in range(0, tokens, TOKENS):
                        last = tokens - 1 - t
                        v = pair_sums(pair_zero(), weight + r * wb, x + t * xb, wr, xb, last, K)
                        store_sums(v, scratch + (t * LANES + r - n) * VB)
            for t in range(tokens):
                sums = scratch + t * LANES * VB
                finish_rows(sums, y + t * yb, bias, n, end - n, factor, onto)

    return rows


_rows_16, _rows_32 = make_float_rows(16), make_float_rows(32)
_tiles_16, _tiles_32 = make_float_tiles(16), make_float_tiles(32)


@kernel
def matmul_f16(instr: int, ctx: int, tid: int, threads: int) -> None:
    """float16 weights."""
    if read_i64(ctx + 8 * CTX_TOKENS) <= DECODE_TOKENS or read_i64(instr + 8 * MATMUL_LAST) != 0:
        _rows_16(instr, ctx, tid, threads)
    else:
        _tiles_16(instr, ctx, tid, threads)


@kernel
def matmul_f32(instr: int, ctx: int, tid: int, threads: int) -> None:
    """float32 weights."""
    if read_i64(ctx + 8 * CTX_TOKENS) <= DECODE_TOKENS or read_i64(instr + 8 * MATMUL_LAST) != 0:
        _rows_32(instr, ctx, tid, threads)
    else:
        _tiles_32(instr, ctx, tid, threads)
