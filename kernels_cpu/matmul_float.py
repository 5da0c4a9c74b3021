"""Products with float16 and float32 weights [N, K] and float32 activations, accumulated in float32.

A few tokens: row by row, each row read once, four tokens side by side. More: `matmul_tiles.py`.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu import linear_layout as layout
from edgetok.kernels_cpu.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.linear_layout import DECODE_TOKENS, MATMUL_LAST
from edgetok.kernels_cpu.linear_simd import inline
from edgetok.kernels_cpu.matmul_float_tiles import make_float_tiles
from edgetok.kernels_cpu.matmul_rows import ROWS, TOKENS, finish
from edgetok.kernels_cpu.matmul_steps import float_row_step
from edgetok.kernels_cpu.simd import LANES, f32_from_bits, read_i64, sum_lanes, zero_f32


def make_float_rows(bits: int) -> Any:
    """The kernel body for up to DECODE_TOKENS tokens."""
    weight_bytes = bits // 8
    row_step, last_row_step = (float_row_step(bits, ROWS, 1, part) for part in (False, True))
    token_step, last_token_step = (float_row_step(bits, 1, TOKENS, part) for part in (False, True))

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
        epilogue = read_i64(instr + 8 * layout.MATMUL_EPILOGUE)
        factor, add = f32_from_bits(epilogue), epilogue >> 32
        tokens = read_i64(ctx + 8 * CTX_TOKENS)
        xb, wb = 4 * K, weight_bytes * K
        if read_i64(instr + 8 * layout.MATMUL_LAST) != 0:
            x += (tokens - 1) * xb
            tokens = 1
        whole, tail = K // LANES, K % LANES

        quads = (N + ROWS - 1) // ROWS
        row, end = tid * quads // threads * ROWS, (tid + 1) * quads // threads * ROWS
        if end > N:
            end = N
        if tokens == 1:
            while row + ROWS <= end:
                f = (zero_f32(), zero_f32(), zero_f32(), zero_f32())
                w, a = weight + row * wb, x
                for _ in range(whole):
                    f = row_step(f, w, a, wb, 0, 0)
                    w, a = w + weight_bytes * LANES, a + 4 * LANES
                if tail != 0:
                    f = last_row_step(f, w, a, wb, 0, 0, tail)
                for i in range(ROWS):
                    finish(y + 4 * (row + i), bias, row + i, sum_lanes(f[i]), factor, add)
                row += ROWS
        for r in range(row, end):
            for t in range(0, tokens, TOKENS):
                last = tokens - 1 - t
                f = (zero_f32(), zero_f32(), zero_f32(), zero_f32())
                w, a = weight + r * wb, x + t * xb
                for _ in range(whole):
                    f = token_step(f, w, a, wb, xb, last)
                    w, a = w + weight_bytes * LANES, a + 4 * LANES
                if tail != 0:
                    f = last_token_step(f, w, a, wb, xb, last, tail)
                for i in range(TOKENS):
                    if i <= last:
                        out = y + (t + i) * yb + 4 * r
                        finish(out, bias, r, sum_lanes(f[i]), factor, add)

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
