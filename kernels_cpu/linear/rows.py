"""Products of quantised weights with one or a few int8 tokens, row by row: decoding.

    f[row] += float(sum_block (q - zero) * a) * w_scale[row, group] * a_scale[block]

The integers of a block are exact in whatever order they are added; the blocks' products are added
in float32 one after the other, as `linear/tiles.py` does it, so that a token has the same bits in
either kernel, alone or beside others, and on every instruction set with fused multiply-add.

First STRIP rows at a time are read as they lie in the artefact, in one stream, as memory likes it,
while the next strip is asked for; lanes hold parts of blocks and are added across, which gives the
integers of STRIP rows for each block. They wait in scratch. Then vectors of rows (a lane is a row)
meet the scales, block by block, four sums side by side as each waits for its last addition.

The truth: `reference_linear.matmul_nbits_int8`.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.layout import SLAB
from edgetok.kernels_cpu.linear.row_steps import STRIP, fold_step, row_step, store_sums, zero_sums
from edgetok.kernels_cpu.linear.scales import (
    LINE,
    finish,
    make_read_halves,
    make_read_supers,
    make_read_zeros,
)
from edgetok.kernels_cpu.program.abi import CTX_TOKENS
from edgetok.kernels_cpu.simd.emit import LANES, NAME, VB, inline
from edgetok.kernels_cpu.simd.memory import f32_from_bits, load_f32, prefetch, read_i64

# Most tokens that are multiplied row by row.
ROW_TOKENS = {"avx512": 4, "avxvnni": 4, "avx2": 4, "neon": 4, "portable": 2}[NAME]
# How far before a strip's end weights are asked for. Tuned in November 2026 (4 bits, groups of 32,
# rows of 2048 and 8192): 8192 on a Zen 5 core that reads 30 to 36 GB/s; on Zen 3 at 15 GB/s 8192
# loses up to 18 % and 4096 up to 21 %.
AHEAD_BYTES = 16384 if NAME == "avx2" else 8192

_CHAINS = 4  # sums side by side

# Blocks that a strip reads at once: of 32 inputs a few slabs, so that most rows are read in one go.
_BLOCKS = 4 * SLAB // 32
_SUM_BYTES = (_BLOCKS + 1) * VB  # of a vector of rows; odd, so that sets of the cache differ

# Regions of a thread's scratch.
_WORDS = 0
_SCALES = max(LANES, _CHAINS) * VB


def _make_strip(bits: int, block: int, tokens: int, table: bool = False) -> Any:
    """A function for a strip of STRIP rows by up to SLAB inputs and `tokens` tokens."""
    planes = layout.PLANES[bits]
    chunk = planes * VB
    low_bits, high_bits = layout.LOW_BITS[bits], layout.HIGH_BITS.get(bits, 0)
    length = max(block // planes, VB)  # bytes of a unit of a row
    blocks = max(chunk // block, 1)
    step, last_step = (row_step(bits, block, tokens, part, table) for part in (False, True))

    @inline
    def strip(  # type: ignore[no-untyped-def]
        w, h, wb, hb, last, x, xb, out, outb, ask, ask_h, ask_s, hop, hop_h, sb, group_size,
        nbytes,
    ):  # fmt: skip
        steps = nbytes // length
        pace, pace_s = STRIP * length * hop // wb, STRIP * planes * length * 2 // group_size
        for r in range(STRIP):
            begin, place = r * steps // STRIP, ask + r * hop
            high, scales = ask_h + r * hop_h, ask_s + r * sb
            for _ in range((r + 1) * steps // STRIP - begin):
                step(w, h, wb, hb, last, x, xb, out, outb, place, high, scales)
                w, h, x = w + length, h + length * high_bits // low_bits, x + planes * length
                out += blocks * VB
                place, high, scales = (
                    place + pace,
                    high + pace * high_bits // low_bits,
                    scales + pace_s,
                )
        if nbytes % length != 0:
            last_step(w, h, wb, hb, last, x, xb, out, outb, nbytes % length, 0, 0)

    return strip


def _make_parts(bits: int, tokens: int, vectors: int, grouped: int, table: bool) -> Any:
    """Functions for a strip of any block, for scales, and for zero points or offsets."""
    if grouped:
        only = _make_strip(bits, grouped, tokens, table)

        @inline
        def one_strip(block, *args):  # type: ignore[no-untyped-def]
            only(*args)

        def numbers(asks: bool) -> Any:
            halves, with_supers = (
                make(vectors, asks) for make in (make_read_halves, make_read_supers)
            )

            @inline
            def read_numbers(  # type: ignore[no-untyped-def]
                values, row, supers, skip, ub, each, group_size, rows, first, count, words, out, ask
            ):
                if supers == 0:
                    halves(values, row, rows, first, count, out, ask)
                else:
                    place = supers + skip
                    with_supers(
                        values, row, place, ub, each, group_size, rows, first, count, words, out,
                        ask,
                    )  # fmt: skip

            return read_numbers

        return one_strip, numbers(True), numbers(False)
    strip_32, strip_64, strip_128 = (_make_strip(bits, block, tokens) for block in (32, 64, 128))
    scales, zeros = make_read_halves(vectors, True), make_read_zeros(bits, vectors, True)

    @inline
    def strip(block, *args):  # type: ignore[no-untyped-def]
        if block == 32:
            strip_32(*args)
        elif block == 64:
            strip_64(*args)
        else:
            strip_128(*args)

    @inline
    def read_scales(  # type: ignore[no-untyped-def]
        values, row, supers, skip, ub, each, group_size, rows, first, count, words, out, ask
    ):
        scales(values, row, rows, first, count, out, ask)

    @inline
    def read_zeros(  # type: ignore[no-untyped-def]
        values, row, supers, skip, ub, each, group_size, rows, first, count, words, out, ask
    ):
        zeros(values, row, rows, first, count, words, out)

    return strip, read_scales, read_zeros


def _make_fold(
    bits: int, tokens: int, vectors: int, grouped: int, table: bool, halves: bool
) -> Any:
    """A function that adds the products of some groups' blocks to the sums of vectors of rows."""
    offsets = grouped != 0
    fold = fold_step(bits, vectors, tokens, False, table=table, halves=halves)
    # A table's levels have no zero points: one function is compiled for both.
    fold_points = (
        fold
        if table
        else fold_step(bits, vectors, tokens, not offsets, offsets=offsets, halves=halves)
    )
    scale_bytes = vectors * VB // (2 if halves else 1)
    point_bytes = scale_bytes if offsets else vectors * VB
    pace, rowb = _pace(vectors), vectors * _SUM_BYTES

    @inline
    def fold_groups(f, sums, middles, away, xb, s, p, points, groups, blocks, ask):  # type: ignore[no-untyped-def]
        for _ in range(groups):
            for _ in range(blocks):
                prefetch(ask)
                ask += pace
                if points != 0:
                    f = fold_points(f, sums, rowb, _SUM_BYTES, middles, away, xb, s, p)
                else:
                    f = fold(f, sums, rowb, _SUM_BYTES, middles, away, xb, s, p)
                sums, middles = sums + VB, middles + 4
            s, p = s + scale_bytes, p + point_bytes
        return f

    return fold_groups


def _pace(vectors: int) -> int:
    """Bytes asked for while a block's sums meet its scales."""
    return 2 * vectors * LANES


def _make_tokens(bits: int, tokens: int, grouped: int, table: bool) -> Any:
    """The kernel body for up to `tokens` tokens, which it computes side by side."""
    planes = layout.PLANES[bits]
    stored_bits, high_bits = layout.LOW_BITS[bits], layout.HIGH_BITS.get(bits, 0)
    zero_bits = 8 if bits == 3 else bits
    vectors = max(_CHAINS // tokens, 1) if NAME != "avx512" or tokens > 1 else 2
    run = vectors * LANES
    row_bytes = vectors * VB
    pace = _pace(vectors)
    smallest = grouped or 32
    part = _BLOCKS * smallest  # inputs that a strip reads at once
    points = _SCALES + max(SLAB // smallest, LANES) * row_bytes
    sums_at = points + max(SLAB // smallest, LANES) * row_bytes
    if sums_at + vectors * tokens * _SUM_BYTES > layout.SCRATCH_BYTES:
        raise ValueError("a run does not fit the scratch")
    strip, read_scales, read_zeros = _make_parts(bits, tokens, vectors, grouped, table)
    zero, store = zero_sums(vectors * tokens), store_sums(vectors * tokens)
    fold_halves = _make_fold(bits, tokens, vectors, grouped, table, True)
    # Numbers with super-scales, which grouped weights alone have, are float32.
    fold_floats = _make_fold(bits, tokens, vectors, grouped, table, grouped == 0)

    @inline
    def body(instr, tid, threads, count):  # type: ignore[no-untyped-def]
        """The rows of one thread, `count` tokens."""
        y = read_i64(instr + 8 * layout.MATMUL_Y)
        x = read_i64(instr + 8 * layout.MATMUL_X)
        weight = read_i64(instr + 8 * layout.MATMUL_QWEIGHT)
        high = read_i64(instr + 8 * layout.MATMUL_HIGH)
        scales = read_i64(instr + 8 * layout.MATMUL_SCALES)
        zeros = read_i64(instr + 8 * layout.MATMUL_ZEROS)
        bias = read_i64(instr + 8 * layout.MATMUL_BIAS)
        N = read_i64(instr + 8 * layout.MATMUL_N)
        K = read_i64(instr + 8 * layout.MATMUL_K)
        group_size = read_i64(instr + 8 * layout.MATMUL_GROUP) & 0xFFFFFFFF
        block = read_i64(instr + 8 * layout.MATMUL_GROUP) >> 32
        yb = 4 * read_i64(instr + 8 * layout.MATMUL_Y_STRIDE)
        scratch = read_i64(instr + 8 * layout.MATMUL_SCRATCH) + tid * layout.SCRATCH_BYTES
        epilogue = read_i64(instr + 8 * layout.MATMUL_EPILOGUE)
        factor, onto = f32_from_bits(epilogue), epilogue >> 32
        codes = layout.padded_codes(K, group_size, planes, VB)
        xb = layout.token_bytes(codes, block)
        x_middles = x + codes + layout.blocks_bytes(codes, block)
        to_scale = -layout.blocks_bytes(codes, block)
        G = (K + group_size - 1) // group_size
        inputs = G * group_size
        wb, hb, sb = inputs * stored_bits // 8, inputs * high_bits // 8, 2 * G
        zb, point_bits, supers, each = (G * zero_bits + 7) // 8, zero_bits, 0, 0
        if grouped:
            supers = read_i64(instr + 8 * layout.MATMUL_SUPERS)
            if supers != 0:
                sb, each = G, 4 if zeros != 0 else 2
            zb, point_bits = sb, sb // G * 8
        ub = inputs // layout.SUPER_GROUP * each

        units = (N + run - 1) // run
        for unit in range(tid * units // threads, (tid + 1) * units // threads):
            n = unit * run
            rows = N - n
            here = run if rows > run else rows
            for begin in range(0, inputs, part):
                width = inputs - begin if inputs - begin < part else part
                nbytes = width * stored_bits // 8
                n_next, next = (n + run, 0) if begin + width == inputs else (n, begin + part)
                # Whole rows are asked for in one steady stream: the memory must not wait while sums
                # meet the scales, nor be asked twice. Parts of rows: strip by strip.
                whole = nbytes == wb
                groups = width // group_size
                folding = width // block * pace + groups * vectors // LANES * LINE
                hop = wb - folding // run if whole and folding < nbytes * run else wb
                far = AHEAD_BYTES + STRIP * nbytes
                strips = (far // nbytes + STRIP - 1) // STRIP * STRIP
                for r in range(0, here, STRIP):
                    if whole:
                        ask = weight + n * wb + far + r * hop
                        ask_h = high + n * hb + (far + r * hop) * high_bits // stored_bits
                    else:
                        i, start = n + r + strips, begin
                        if r + strips >= here:
                            i, start = n_next + r + strips - here, next
                        ask = weight + i * wb + start * stored_bits // 8
                        ask_h = high + i * hb + start * high_bits // 8
                    w = weight + (n + r) * wb + begin * stored_bits // 8
                    h = high + (n + r) * hb + begin * high_bits // 8
                    last = rows - 1 - r
                    out = scratch + sums_at + r // LANES * _SUM_BYTES + 4 * (r % LANES)
                    outb = vectors * _SUM_BYTES
                    i, first = n_next + r, next // group_size
                    ask_s = scales + i * sb + sb // G * first
                    if zeros != 0:
                        for q in range(STRIP):
                            prefetch(zeros + (i + q) * zb + first * point_bits // 8)
                    strip(
                        block, w, h, wb, hb, last, x + begin, xb, out, outb, ask, ask_h, ask_s,
                        hop, hop * high_bits // stored_bits, sb, group_size, nbytes,
                    )  # fmt: skip
                sums = scratch + sums_at
                if whole:
                    ask = weight + n * wb + far + here * hop
                else:
                    ask = weight + (n_next + strips) * wb + next * stored_bits // 8
                for k in range(begin, begin + width, SLAB):
                    slab = inputs - k if inputs - k < SLAB else SLAB
                    first, groups = k // group_size, slab // group_size
                    s, p, words = scratch + _SCALES, scratch + points, scratch + _WORDS
                    read_scales(
                        scales + n * sb, sb, supers, n * ub, ub, each, group_size, rows, first,
                        groups, words, s, ask,
                    )  # fmt: skip
                    ask += groups * vectors // LANES * LINE
                    if zeros != 0:
                        read_zeros(
                            zeros + n * zb, zb, supers, n * ub + 2, ub, each, group_size, rows,
                            first, groups, words, p, 0,
                        )  # fmt: skip
                    f, middles = zero(), x_middles + 4 * (k // block)
                    blocks = group_size // block
                    if grouped and supers != 0:
                        f = fold_floats(
                            f, sums, middles, to_scale, xb, s, p, zeros, groups, blocks, ask
                        )
                    else:
                        f = fold_halves(
                            f, sums, middles, to_scale, xb, s, p, zeros, groups, blocks, ask
                        )
                    sums, ask = sums + groups * blocks * VB, ask + groups * blocks * pace
                    out, more, final = scratch + _WORDS, onto != 0 or k != 0, k + slab == inputs
                    store(f, out)
                    for t in range(count):
                        for v in range(vectors):
                            at = n + v * LANES
                            value = load_f32(out + (t * vectors + v) * VB)
                            finish(value, y + t * yb, bias, at, N - at, factor, more, final)

    return body


def make_rows(bits: int, grouped: int = 0, table: bool = False) -> Any:
    """The kernel body for weights of `bits` and up to ROW_TOKENS tokens.

    Args:
        bits: of the weights.
        grouped: inputs of a group where the last is a whole one and groups have offsets or
            super-scales in place of zero points; otherwise 0.
        table: codes of 4 bits choose levels of a table, whose address is in MATMUL_HIGH; `grouped`,
            without offsets.
    """
    one, two = (_make_tokens(bits, tokens, grouped, table) for tokens in (1, 2))
    most = _make_tokens(bits, ROW_TOKENS, grouped, table) if ROW_TOKENS > 2 else two

    @inline
    def rows(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        count = read_i64(ctx + 8 * CTX_TOKENS)
        if count == 1:
            one(instr, tid, threads, 1)
        elif count == 2:
            two(instr, tid, threads, count)
        elif count > 0:
            most(instr, tid, threads, count)

    return rows
