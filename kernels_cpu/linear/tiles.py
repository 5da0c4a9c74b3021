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

The truth: `reference.matmul_nbits_int8`.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.layout import SLAB
from edgetok.kernels_cpu.linear.scales import finish, make_read_scales, make_read_zeros
from edgetok.kernels_cpu.linear.tile_steps import (
    ROW_BYTES,
    RUN,
    STEPS,
    WIDTHS,
    IntegerTile,
    R,
    T,
    integer_tile,
    transpose_words,
    unpack_rows,
    unpack_words,
)
from edgetok.kernels_cpu.program.abi import CTX_TOKENS
from edgetok.kernels_cpu.simd.emit import LANES, NAME, VB, inline
from edgetok.kernels_cpu.simd.memory import f32_from_bits, load_f32, prefetch, read_i64

# A slab is 128 KB of unpacked weights with vectors of 64 bytes. They come from the L2 cache fast
# enough, and most rows are one slab, so that y is written once (Zen 5, November 2026).
_BLOCKS = max(SLAB // 32, LANES)  # room for scales of so many groups
# Up to so many tokens meet pieces of so many inputs.
_FEW_TOKENS = 64
_PIECE = 512

_LINE = 64  # bytes that a prefetch brings
_BATCH = 8  # groups between requests to the memory

# Regions of a thread's scratch.
_WORDS = 0  # a chunk's words, transposed
_HIGHS = LANES * VB
_SCALES = 2 * LANES * VB
_ZEROS = _SCALES + _BLOCKS * ROW_BYTES
_OUT = _ZEROS + _BLOCKS * ROW_BYTES
_KEEP = _OUT + T * ROW_BYTES
_SUMS = _KEEP + T * ROW_BYTES
_UNPACKED = _SUMS + (_FEW_TOKENS + T) * ROW_BYTES
if _UNPACKED + SLAB * RUN > layout.SCRATCH_BYTES:
    raise ValueError("a tile does not fit the scratch")


@inline
def finish_tile(out, tokens, y, yb, bias, n, N, factor, onto, final):  # type: ignore[no-untyped-def]
    """Epilogue of `tokens` tokens of a tile in `out`."""
    for r in range(R):
        first = n + r * LANES
        for t in range(tokens):
            value = load_f32(out + t * ROW_BYTES + r * VB)
            finish(value, y + t * yb, bias, first, N - first, factor, onto, final)


def make_tiles(bits: int) -> Any:
    """The kernel body for weights of `bits` and int8 activations of many tokens."""
    planes = layout.PLANES[bits]
    three, eight = bits == 3, bits == 8
    # AVX2 adds more products of 4 bits in 16 bits where no zero points have been added to codes.
    pointed = eight or (NAME == "avx2" and bits == 4)
    stored_bits = 2 if three else bits
    zero_bits = 8 if three else bits
    unpack, unpack_shifted = unpack_words(bits, False), unpack_words(bits, True)
    whole, whole_shifted = unpack_rows(bits, False), unpack_rows(bits, True)
    read_scales, read_zeros = make_read_scales(R), make_read_zeros(bits, R, pointed)
    # So many times 32 inputs share a chunk of a token (or 32 inputs are several chunks, of 8 bits),
    # and begin so many bytes apart.
    together = max(planes * VB // 32, 1)
    apart, chunk = VB // together, max(planes * VB, 32)

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
            out = scratch + _UNPACKED + r * VB
            begin = 0
            if last >= LANES - 1:
                begin = nbytes // VB * VB
                units = 0
                for start in range(0, begin, VB):
                    at, at_h = w + skip * wb + start, h + skip * hb + start // 2
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
                if three:
                    transpose_words(h + skip * hb + start // 2, hb, last, left // 2, highs)
                for j in range(left // 4):
                    word, high, by = words + j * VB, highs + (j >> 1) * VB, (j & 1) << 4
                    if shifts != 0:
                        g = (start + 4 * j) * (8 // stored_bits) // group_size
                        unpack_shifted(word, high, by, shifts + g * ROW_BYTES + r * VB, out)
                    else:
                        unpack(word, high, by, 0, out)
                    out += planes * ROW_BYTES

    @inline
    def ask_for(w, h, s, z, codes, groups):  # type: ignore[no-untyped-def]
        """Prefetch one row's next piece, and where a slab begins its scales and zero points."""
        for i in range(0, codes * stored_bits // 8, _LINE):
            prefetch(w + i)
        if three:
            for i in range(0, codes // 8, _LINE):
                prefetch(h + i)
        for i in range(0, 2 * groups, _LINE):
            prefetch(s + i)
        if groups != 0:
            prefetch(z)

    def make_meet(width: int) -> Any:
        """A function for up to `width` tokens and a piece of a tile's weights."""
        # Variants apart, or the sums would change registers from block to block.
        plain = make_sums(integer_tile(bits, width, shifted=not pointed, points=False), False)
        if not pointed:
            return plain
        other = make_sums(integer_tile(bits, width, shifted=False, points=True), True)

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
            unit = k // 32
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
                if block == 4 * STEPS:  # which is a group
                    for _ in range(count):
                        a = x + unit // together * chunk + unit % together * apart
                        f = short_block(f, starts, u, a, s, b, xb, middles, points)
                        u, unit = u + STEPS * ROW_BYTES, unit + 1
                        b, starts, middles = b + 4, starts + 4, middles + 4
                        s, points = s + ROW_BYTES, points + ROW_BYTES
                else:
                    for _ in range(count):
                        for _ in range(group_size // block):
                            acc = start(starts, xb)
                            for _ in range(block // (4 * STEPS)):
                                a = x + unit // together * chunk + unit % together * apart
                                acc = dot(acc, u, a, xb)
                                u, unit = u + STEPS * ROW_BYTES, unit + 1
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
        wb, hb, sb = inputs * stored_bits // 8, inputs // 8, 2 * G
        zb = (G * zero_bits + 7) // 8
        out = scratch + _OUT
        shifted = zeros != 0 and not pointed
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
                    read_scales(scales + n * sb, sb, rows, first, many, scratch + _SCALES)
                    if zeros != 0:
                        read_zeros(
                            zeros + n * zb, zb, rows, first, many, scratch + _WORDS,
                            scratch + _ZEROS,
                        )  # fmt: skip
                group = (k % SLAB) // group_size * ROW_BYTES  # of scratch
                unpack_piece(
                    weight + n * wb + k * stored_bits // 8, wb, high + n * hb + k // 8, hb, rows,
                    width * stored_bits // 8, group_size,
                    scratch + _ZEROS + group if shifted else 0, scratch,
                )  # fmt: skip
                # While tokens meet this piece, the next one comes from memory, row by row.
                ahead, row = (0, n + RUN) if final else (k + width, n)
                left = inputs - ahead if inputs - ahead < longest else longest
                slab = 0
                if end:
                    slab = inputs - ahead if inputs - ahead < SLAB else SLAB
                    slab //= group_size
                points = scratch + _ZEROS + group if zeros != 0 else 0
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
                    sums = scratch + _SUMS + t * ROW_BYTES if few else out
                    asked, credit = meet(
                        count, points, scratch + _KEEP, sums, begin, out if end else sums,
                        x + t * xb, k, xb, codes, starts, scratch + _SCALES + group,
                        scratch + _UNPACKED, groups, group_size, block, asked, credit, price, left,
                        weight + row * wb + ahead * stored_bits // 8, wb,
                        high + row * hb + ahead // 8, hb,
                        scales + row * sb + 2 * (ahead // group_size), sb, slab,
                        zeros + row * zb, zb,
                    )  # fmt: skip
                    if end:
                        more = onto != 0 or k >= SLAB
                        finish_tile(out, count, y + t * yb, yb, bias, n, N, factor, more, final)

    return tiles
