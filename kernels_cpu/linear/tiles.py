"""Products with several tokens, tile by tile: prefill, and many sequences at once.

A tile is RUN rows (R vectors, a lane is a row) by a piece of their inputs. Its weights are unpacked
once into scratch, four inputs of a row to a lane, and then meet all tokens, up to T at a time in
registers, while the next tile's are asked for:

    acc[row, t] = start[t, block] + sum_k dot4(u[row, k], a[t, k])         int32, exact
    f[row, t]  += float(acc) * w_scale[row, group] * a_scale[t, block]     float32

Without zero points u = code and start = -middle * sum(a). With them u = code + offset - zero is
unsigned, offset = 2^bits and start = -offset * sum(a), so that they cost nothing here. Where bytes
have no room for that (8 bits, and 4 bits on AVX2): float(acc) - (zero - middle) * sum(a), whose
terms are integers below 2^24, is as exact. The sums of SLAB inputs are added to y.

A few tokens meet pieces that the L1 cache holds, and their sums wait in scratch between pieces;
many tokens meet a slab at a time, and only the L2 cache holds it.

The truth: `reference_linear.matmul_nbits_int8`.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.layout import SLAB
from edgetok.kernels_cpu.linear.scales import (
    finish,
    make_read_numbers,
    make_read_scales,
    make_read_zeros,
)
from edgetok.kernels_cpu.linear.tile_matrices import words_together
from edgetok.kernels_cpu.linear.tile_shape import ROW_BYTES, RUN, STEPS, WIDTHS, R, T
from edgetok.kernels_cpu.linear.tile_steps import IntegerTile, integer_tile
from edgetok.kernels_cpu.linear.tile_unpack import unpack_rows, unpack_words
from edgetok.kernels_cpu.linear.transposing import transpose_words
from edgetok.kernels_cpu.program.abi import CTX_TOKENS
from edgetok.kernels_cpu.simd.emit import LANES, NAME, VB, inline
from edgetok.kernels_cpu.simd.memory import f32_from_bits, load_f32, prefetch, read_i64

# A slab is 128 KB of unpacked weights with vectors of 64 bytes. They come from the L2 cache fast
# enough, and most rows are one slab, so that y is written once (Zen 5, November 2026).
# Up to so many tokens meet pieces of so many inputs.
_FEW_TOKENS = 64
_PIECE = 512

_LINE = 64  # bytes that a prefetch brings
_BATCH = 8  # groups between requests to the memory

# Regions of a thread's scratch.
_WORDS = 0  # a chunk's words, transposed
_HIGHS = LANES * VB
_SCALES = 2 * LANES * VB


@inline
def finish_tile(out, tokens, y, yb, bias, n, N, factor, onto, final):  # type: ignore[no-untyped-def]
    """Epilogue of `tokens` tokens of a tile in `out`."""
    for r in range(R):
        first = n + r * LANES
        for t in range(tokens):
            value = load_f32(out + t * ROW_BYTES + r * VB)
            finish(value, y + t * yb, bias, first, N - first, factor, onto, final)


def _make_readers(bits: int, grouped: int, points: bool) -> Any:
    """Functions for scales, and for zero points or offsets."""
    if grouped:
        numbers = make_read_numbers(R)

        @inline
        def read_numbers(  # type: ignore[no-untyped-def]
            values, row, supers, skip, ub, each, group_size, rows, first, count, words, out
        ):
            place = supers + skip if supers != 0 else 0
            numbers(values, row, place, ub, each, group_size, rows, first, count, words, out)

        return read_numbers, read_numbers
    scales, zeros = make_read_scales(R), make_read_zeros(bits, R, points)

    @inline
    def read_scales(  # type: ignore[no-untyped-def]
        values, row, supers, skip, ub, each, group_size, rows, first, count, words, out
    ):
        scales(values, row, rows, first, count, words, out)

    @inline
    def read_zeros(  # type: ignore[no-untyped-def]
        values, row, supers, skip, ub, each, group_size, rows, first, count, words, out
    ):
        zeros(values, row, rows, first, count, words, out)

    return read_scales, read_zeros


def make_tiles(bits: int, grouped: int = 0, table: bool = False) -> Any:
    """The kernel body for weights of `bits` and int8 activations of many tokens.

    Args:
        bits: of the weights.
        grouped: as for `rows.make_rows`.
        table: likewise.
    """
    planes = layout.PLANES[bits]
    planar, eight = bits in layout.HIGH_BITS, bits == 8
    smallest = grouped or 32
    steps = STEPS if smallest == 32 else smallest // 4  # of four inputs, in one operation
    many_groups = max(SLAB // smallest, LANES)
    zeros_at = _SCALES + many_groups * ROW_BYTES
    out_at = zeros_at + many_groups * ROW_BYTES
    keep_at = out_at + T * ROW_BYTES
    sums_at = keep_at + T * ROW_BYTES
    unpacked_at = sums_at + (_FEW_TOKENS + T) * ROW_BYTES
    if unpacked_at + SLAB * RUN > layout.SCRATCH_BYTES:
        raise ValueError("a tile does not fit the scratch")
    # Zero points meet sums, not codes. AVX2 adds more products of 4 bits in 16 bits so.
    pointed = (eight or grouped != 0 or (NAME == "avx2" and bits == 4)) and not table
    stored_bits, high_bits = layout.LOW_BITS[bits], layout.HIGH_BITS.get(bits, 0)
    part_of = stored_bits // max(high_bits, 1)
    zero_bits = 8 if bits == 3 else bits
    at_once = words_together(planes, steps)
    unpack, whole = (make(bits, False, table, at_once) for make in (unpack_words, unpack_rows))
    unpack_shifted, whole_shifted = unpack, whole  # no zero points
    if not table:
        unpack_shifted, whole_shifted = (
            make(bits, True, table, at_once) for make in (unpack_words, unpack_rows)
        )
    read_scales, read_zeros = _make_readers(bits, grouped, pointed)
    # So many times 4 * steps inputs share a chunk of a token (or they are several chunks, of 8
    # bits), and begin so many bytes apart.
    together = max(planes * VB // (4 * steps), 1)
    apart, chunk = VB // together, max(planes * VB, 4 * steps)

    @inline
    def unpack_piece(w, wb, h, hb, rows, nbytes, group_size, shifts, scratch):  # type: ignore[no-untyped-def]
        """`nbytes` of packed codes of RUN rows to u; shifts: where to find them, by group, or 0."""
        words, highs = scratch + _WORDS, scratch + _HIGHS
        halvings = 0
        while group_size > 32 << halvings:
            halvings += 1
        for r in range(R):
            last = rows - 1 - r * LANES
            if last < 0:
                last = 0
            skip = r * LANES if rows > r * LANES else 0
            out = scratch + unpacked_at + r * VB
            begin = 0
            if last >= LANES - 1:
                begin = nbytes // VB * VB
                units = 0
                for start in range(0, begin, VB):
                    at = w + skip * wb + start
                    at_h = h + skip * hb + start * high_bits // stored_bits
                    if shifts != 0:
                        whole_shifted(at, wb, at_h, hb, shifts + r * VB, halvings, units, out)
                    else:
                        whole(at, wb, at_h, hb, 0, 0, 0, out)
                    units += planes * VB // 32
                    out += planes * LANES * ROW_BYTES
            for start in range(begin, nbytes, VB):
                left = nbytes - start
                if left > VB:
                    left = VB
                transpose_words(w + skip * wb + start, wb, last, left, words)
                if planar:
                    at = h + skip * hb + start // part_of
                    transpose_words(at, hb, last, left // part_of, highs)
                for j in range(0, left // 4, at_once):
                    word, high = words + j * VB, h if table else highs + j // part_of * VB
                    by = j % part_of * (32 // part_of)
                    if shifts != 0:
                        g = (start + 4 * j) * (8 // stored_bits) // group_size
                        unpack_shifted(word, high, by, shifts + g * ROW_BYTES + r * VB, out)
                    else:
                        unpack(word, high, by, 0, out)
                    out += at_once * planes * ROW_BYTES

    @inline
    def ask_for(w, h, s, z, codes, groups):  # type: ignore[no-untyped-def]
        """Prefetch one row's next piece, and where a slab begins its scales and zero points."""
        for i in range(0, codes * stored_bits // 8, _LINE):
            prefetch(w + i)
        if planar:
            for i in range(0, codes * high_bits // 8, _LINE):
                prefetch(h + i)
        for i in range(0, 2 * groups, _LINE):
            prefetch(s + i)
        if groups != 0:
            prefetch(z)

    def make_meet(width: int) -> Any:
        """A function for up to `width` tokens and a piece of a tile's weights."""
        # Variants apart, or the sums would change registers from block to block.
        shifted = not (pointed or table)
        tile = integer_tile(bits, width, shifted, points=False, steps=steps, table=table)
        plain = make_sums(tile, False)
        if not pointed:
            return plain
        tile = integer_tile(bits, width, False, points=True, steps=steps, offsets=grouped != 0)
        other = make_sums(tile, True)

        @inline
        def meet(points, *args):  # type: ignore[no-untyped-def]
            if points != 0:
                return other(points, *args)
            return plain(points, *args)

        return meet

    def make_sums(tile: IntegerTile, zeros: bool) -> Any:
        """The same where zero points are, or are not, subtracted from sums."""
        start, dot, fold, block_sum = tile.start, tile.dot, tile.fold, tile.block
        zero, load, store = tile.zero, tile.load, tile.store

        @inline
        def plain(f, acc, scales, b, xb, middles, points):  # type: ignore[no-untyped-def]
            return fold(f, acc, scales, b, xb)

        @inline
        def with_points(f, acc, scales, b, xb, middles, points):  # type: ignore[no-untyped-def]
            return fold(f, acc, scales, b, xb, middles, points)

        @inline
        def plain_block(f, starts, u, a, scales, b, xb, middles, points):  # type: ignore[no-untyped-def]
            return block_sum(f, starts, u, a, scales, b, xb)

        @inline
        def pointed_block(f, starts, u, a, scales, b, xb, middles, points):  # type: ignore[no-untyped-def]
            return block_sum(f, starts, u, a, scales, b, xb, middles, points)

        folded = with_points if zeros else plain
        short_block = pointed_block if zeros else plain_block

        @inline
        def meet(  # type: ignore[no-untyped-def]
            points, keep, sums, begin, out, x, k, xb, codes, starts, s, u, groups, group_size,
            block, asked, credit, price, left, w, wb, h, hb, scales, sb, slab, zeros, zb,
        ):  # fmt: skip
            """Sums of a piece, from zero or from `sums`, to `out`; asks for rows meanwhile."""
            f = zero(keep) if begin else load(sums, keep)
            unit = k // (4 * steps)
            b = x + codes + 4 * (k // block)
            middles, starts = b + layout.blocks_bytes(codes, block), b + starts
            for g in range(0, groups, _BATCH):
                count = groups - g if groups - g < _BATCH else _BATCH
                credit += RUN * count
                while credit >= price:
                    credit -= price
                    ask_for(
                        w + asked * wb, h + asked * hb, scales + asked * sb, zeros + asked * zb,
                        left, slab,
                    )  # fmt: skip
                    asked += 1
                if block == 4 * steps:  # which is a group
                    for _ in range(count):
                        a = x + unit // together * chunk + unit % together * apart
                        f = short_block(f, starts, u, a, s, b, xb, middles, points)
                        u, unit = u + steps * ROW_BYTES, unit + 1
                        b, starts, middles = b + 4, starts + 4, middles + 4
                        s, points = s + ROW_BYTES, points + ROW_BYTES
                else:
                    for _ in range(count):
                        for _ in range(group_size // block):
                            acc = start(starts, xb)
                            for _ in range(block // (4 * steps)):
                                a = x + unit // together * chunk + unit % together * apart
                                acc = dot(acc, u, a, xb)
                                u, unit = u + steps * ROW_BYTES, unit + 1
                            f = folded(f, acc, s, b, xb, middles, points)
                            b, starts, middles = b + 4, starts + 4, middles + 4
                        s, points = s + ROW_BYTES, points + ROW_BYTES
            store(f, out)
            return asked, credit

        return meet

    def choose(widths: tuple[int, ...]) -> Any:
        """A function for a register tile of as many tokens as are left, at most the widest's."""
        widest = make_meet(widths[-1])
        if len(widths) == 1:

            @inline
            def only(rest, *args):  # type: ignore[no-untyped-def]
                return widest(*args)

            return only
        narrower, room = choose(widths[:-1]), widths[-2]

        @inline
        def meet(rest, *args):  # type: ignore[no-untyped-def]
            if rest > room:
                return widest(*args)
            return narrower(rest, *args)

        return meet

    meet = choose(WIDTHS)

    @inline
    def tiles(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        """The tiles of one thread, all tokens."""
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
        tokens = read_i64(ctx + 8 * CTX_TOKENS)
        codes = layout.padded_codes(K, group_size, planes, VB)
        xb = layout.token_bytes(codes, block)
        G = (K + group_size - 1) // group_size
        inputs = G * group_size
        wb, hb, sb = inputs * stored_bits // 8, inputs * high_bits // 8, 2 * G
        zb, supers, each = (G * zero_bits + 7) // 8, 0, 0
        if grouped:
            supers = read_i64(instr + 8 * layout.MATMUL_SUPERS)
            if supers != 0:
                sb, each = G, 4 if zeros != 0 else 2
            zb = sb
        ub = inputs // layout.SUPER_GROUP * each
        out = scratch + out_at
        shifted = zeros != 0 and not pointed and not table
        starts = layout.blocks_bytes(codes, block) * (2 if shifted else 1)
        few = tokens <= _FEW_TOKENS
        longest = _PIECE if few else SLAB

        units = (N + RUN - 1) // RUN
        for tile in range(tid * units // threads, (tid + 1) * units // threads):
            n = tile * RUN
            rows = N - n
            for k in range(0, inputs, longest):
                width = inputs - k if inputs - k < longest else longest
                begin, final = k % SLAB == 0, k + width == inputs
                end = final or (k + width) % SLAB == 0
                first, groups = k // group_size, width // group_size
                if begin:
                    many = inputs - k if inputs - k < SLAB else SLAB
                    many //= group_size
                    read_scales(
                        scales + n * sb, sb, supers, n * ub, ub, each, group_size, rows, first,
                        many, scratch + _WORDS, scratch + _SCALES,
                    )  # fmt: skip
                    if zeros != 0:
                        read_zeros(
                            zeros + n * zb, zb, supers, n * ub + 2, ub, each, group_size, rows,
                            first, many, scratch + _WORDS, scratch + zeros_at,
                        )  # fmt: skip
                group = (k % SLAB) // group_size * ROW_BYTES  # of scratch
                unpack_piece(
                    weight + n * wb + k * stored_bits // 8, wb,
                    high + n * hb + k * high_bits // 8, hb, rows,
                    width * stored_bits // 8, group_size,
                    scratch + zeros_at + group if shifted else 0, scratch,
                )  # fmt: skip
                # While tokens meet this piece, the next one comes from memory, row by row.
                ahead, row = (0, n + RUN) if final else (k + width, n)
                left = inputs - ahead if inputs - ahead < longest else longest
                slab = 0
                if end:
                    slab = inputs - ahead if inputs - ahead < SLAB else SLAB
                    slab //= group_size
                points = scratch + zeros_at + group if zeros != 0 else 0
                asked, credit = 0, 0
                # The last rows must have come when the piece begins: all are asked for in half the
                # time (Zen 3: 6 % less from memory than in the whole of it).
                price = ((tokens + T - 1) // T * groups + 1) // 2
                for t in range(0, tokens, T):
                    count = tokens - t
                    if count > T:
                        count = T
                    if end:
                        for i in range(count):  # where y's rows begin in one set of the L1 cache
                            for j in range(0, ROW_BYTES, _LINE):
                                prefetch(y + (t + i) * yb + 4 * n + j)
                    sums = scratch + sums_at + t * ROW_BYTES if few else out
                    asked, credit = meet(
                        count, points, scratch + keep_at, sums, begin, out if end else sums,
                        x + t * xb, k, xb, codes, starts, scratch + _SCALES + group,
                        scratch + unpacked_at, groups, group_size, block, asked, credit, price,
                        left,
                        weight + row * wb + ahead * stored_bits // 8, wb,
                        high + row * hb + ahead * high_bits // 8, hb,
                        scales + row * sb + sb // G * (ahead // group_size), sb, slab,
                        zeros + row * zb, zb,
                    )  # fmt: skip
                    if end:
                        more = onto != 0 or k >= SLAB
                        finish_tile(out, count, y + t * yb, yb, bias, n, N, factor, more, final)

    return tiles
