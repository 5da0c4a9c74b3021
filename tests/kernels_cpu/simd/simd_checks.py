"""Checks of the SIMD operations, run in a process of its own for one instruction set.

    python simd_checks.py avx2

Numba targets that instruction set and this process runs the code, so the machine must have it.
"""

from __future__ import annotations

import os
import sys

from edgetok.kernels_cpu.simd import target as build_target
from edgetok.kernels_cpu.simd.isa import ISAS

ISA = ISAS[sys.argv[1]]
os.environ["NUMBA_CPU_NAME"] = ISA.cpu or "generic"
os.environ["NUMBA_CPU_FEATURES"] = ISA.features
build_target.select(build_target.Target.here(ISA))

import numpy as np  # noqa: E402
from llvmlite import ir  # noqa: E402
from numba import njit, types  # noqa: E402

from edgetok.kernels_cpu.linear import code_orders as linear  # noqa: E402
from edgetok.kernels_cpu.linear import integer_sums as sums  # noqa: E402
from edgetok.kernels_cpu.linear.row_steps import STRIP  # noqa: E402
from edgetok.kernels_cpu.linear.transposing import (  # noqa: E402
    transpose_halves,
    transpose_pieces,
    transpose_words,
)
from edgetok.kernels_cpu.simd import emit as simd_emit  # noqa: E402
from edgetok.kernels_cpu.simd import memory  # noqa: E402
from edgetok.kernels_cpu.simd import ops as simd  # noqa: E402
from edgetok.kernels_cpu.simd.composing import number  # noqa: E402

VB, LANES, op = simd_emit.VB, simd_emit.LANES, simd_emit.op
RNG = np.random.default_rng(0)


def address(array):
    return array.ctypes.data


def halves_widen():
    """Every float16 there is."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    load, scalar = memory.load_f16, memory.read_f16

    @njit
    def run(source, out, one, count):
        for i in range(0, count, LANES):
            memory.store_f32(out + 4 * i, load(source + 2 * i))
            for k in range(LANES):
                memory.write_f32(one + 4 * (i + k), scalar(source + 2 * (i + k)))

    out, one = np.empty(65536, np.float32), np.empty(65536, np.float32)
    run(address(every), address(out), address(one), 65536)
    truth = every.astype(np.float32)
    np.testing.assert_array_equal(out, truth)
    np.testing.assert_array_equal(one, truth)
    finite = ~np.isnan(truth)
    np.testing.assert_array_equal(out.view(np.uint32)[finite], truth.view(np.uint32)[finite])


def floats_narrow():
    """Every float16, what lies between two of them, and what is beyond them all."""
    every = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    every[-1] = 65536
    between = (every[:-1] + every[1:]) / 2
    near = [np.nextafter(between, np.float32(s)) for s in (0, np.inf)]
    x = np.concatenate([every, between, *near, [65519.9, 65520, 1e30, np.inf, 1e-10, np.nan]])
    x = np.concatenate([x, -x]).astype(np.float32)
    x = np.pad(x, (0, -len(x) % LANES))

    @njit
    def run(source, out, one, count):
        for i in range(0, count, LANES):
            memory.store_f16(out + 2 * i, memory.load_f32(source + 4 * i))
            for k in range(LANES):
                memory.write_f16(one + 2 * (i + k), memory.read_f32(source + 4 * (i + k)))

    out, one = np.empty(len(x), np.float16), np.empty(len(x), np.float16)
    run(address(x), address(out), address(one), len(x))
    with np.errstate(over="ignore"):
        truth = x.astype(np.float16)
    np.testing.assert_array_equal(out, truth)
    np.testing.assert_array_equal(one, truth)


def dot_products():
    """Random bytes, and the ones that overflow 16 bits first."""
    corners_u = np.repeat(np.array([0, 1, 127, 128, 254, 255], np.uint8), 6)
    corners_s = np.tile(np.array([-128, -127, -1, 0, 1, 127], np.int8), 6)

    @njit
    def run(u, s, acc, out, small):
        a = memory.load_i32(acc)
        if small:
            v = simd.dot_u7s8(a, memory.load_u8(u), memory.load_u8(s))
        else:
            v = simd.dot_u8s8(a, memory.load_u8(u), memory.load_u8(s))
        memory.store_f32(out, simd.i32_as_f32(v))

    for small in (False, True):
        for case in range(len(corners_u) + 50):
            if case < len(corners_u):
                u = np.full(VB, corners_u[case], np.uint8)
                s = np.full(VB, corners_s[case], np.int8)
            else:
                u = RNG.integers(0, 256, VB).astype(np.uint8)
                s = RNG.integers(-128, 128, VB).astype(np.int8)
            if small:
                u = u & 127
            acc = RNG.integers(-(2**30), 2**30, LANES).astype(np.int32)
            out = np.empty(LANES, np.int32)
            run(address(u), address(s), address(acc), address(out), small)
            products = u.astype(np.int32) * s.astype(np.int32)
            np.testing.assert_array_equal(out, acc + products.reshape(LANES, 4).sum(1))


def bit_fields():
    packed = RNG.integers(0, 256, VB).astype(np.uint8)
    out = np.empty(VB, np.uint8)
    for bits, fields in simd.FIELD.items():
        for i, field in enumerate(fields):

            @njit
            def run(source, out, field=field):
                memory.store_u8(out, field(memory.load_u8(source)))

            run(address(packed), address(out))
            np.testing.assert_array_equal(out, packed >> (bits * i) & ((1 << bits) - 1))


def high_bits():
    high = RNG.integers(0, 256, VB // 2).astype(np.uint8)
    bits = (high[:, None] >> np.arange(8, dtype=np.uint8)) & 1
    codes = bits.reshape(VB, 4) * 4
    for i, bit in enumerate(linear.HIGH_BIT):
        for count in (VB // 2, VB // 4, 0):

            @njit
            def run(source, count, out, whole, bit=bit):
                v = linear.load_high(source) if whole else linear.load_high_first(source, count)
                memory.store_u8(out, bit(v))

            out = np.empty(VB, np.uint8)
            run(address(high), count, address(out), count == VB // 2)
            np.testing.assert_array_equal(out[: 2 * count], codes[: 2 * count, i])
            assert not out[2 * count :].any()


def orders():
    x, y = np.arange(VB, dtype=np.uint8), np.arange(100, 100 + VB).astype(np.uint8)
    both = np.concatenate([x, y])

    @njit
    def run(x, y, even, odd):
        a, b = memory.load_u8(x), memory.load_u8(y)
        memory.store_u8(even, linear.even_bytes(a, b))
        memory.store_u8(odd, linear.odd_bytes(a, b))

    even, odd = (np.empty(VB, np.uint8) for _ in range(2))
    run(*map(address, (x, y, even, odd)))
    np.testing.assert_array_equal(even, both[::2])
    np.testing.assert_array_equal(odd, both[1::2])


def transposes():
    words = RNG.integers(0, 2**31, (LANES, LANES)).astype(np.int32)
    out = np.empty((LANES, LANES), np.int32)

    @njit
    def run(source, stride, last, nbytes, out):
        transpose_words(source, stride, last, nbytes, out)

    run(address(words), VB, LANES - 1, VB, address(out))
    np.testing.assert_array_equal(out, words.T)
    run(address(words), VB, 1, VB // 2, address(out))
    expected = words[np.minimum(np.arange(LANES), 1)].T.copy()
    expected[LANES // 2 :] = 0
    np.testing.assert_array_equal(out, expected)


def transposes_of_few_columns():
    """Rows lie further apart than what is read of them; nothing is written but the columns."""

    def call(transpose, source, out):
        @njit
        def run(source, stride, out):
            transpose(source, stride, out)

        run(address(source), source.strides[0], address(out))

    for rows in (LANES, 2 * LANES, 4 * LANES):
        halves = RNG.integers(0, 2**16, (rows, 11)).astype(np.uint16)
        out = np.full(8 * rows + 1, 7, np.uint16)
        call(transpose_halves(rows), halves, out)
        np.testing.assert_array_equal(out[:-1].reshape(8, rows), halves[:, :8].T)
        assert out[-1] == 7
    for count in (1, 2):
        words = RNG.integers(0, 2**32, (LANES, 3)).astype(np.uint32)
        out = np.full(count * LANES + 1, 7, np.uint32)
        call(transpose_pieces(4 * count), words, out)
        np.testing.assert_array_equal(out[:-1].reshape(count, LANES), words[:, :count].T)
        assert out[-1] == 7


def strip_sums():
    """Integers of blocks of lanes of four rows, in 16 bits too where a target begins with them."""

    def make(width, bound):
        @op(types.void, *[types.int64] * 2)
        def run(b, source, out):
            rows = [
                sums.Sum(memory.load_u8.emit(b, b.add(source, number(r * VB))), bound)
                for r in range(STRIP)
            ]
            kind = I16 if bound else simd_emit.I32.ll
            rows = [sums.Sum(b.bitcast(row.value, kind), bound) for row in rows]
            for i, value in enumerate(sums.strip_sums(b, rows, width)):
                simd_emit._store(b, b.add(out, number(16 * i)), value)

        @njit
        def call(source, out):
            run(source, out)

        return call

    I16 = ir.VectorType(ir.IntType(16), VB // 2)
    own = sums.NAME
    widths = [width for width in (2, 4, 8, 16) if width <= LANES]
    for bound in (0, 7000, 30000) if ISA.name == "avx2" else (0,):
        kind, most = (np.int16, bound) if bound else (np.int32, 1 << 24)
        rows = RNG.integers(-most, most + 1, (STRIP, VB // kind().nbytes)).astype(kind)
        rows[:, : LANES // 2] = most
        for width in widths:
            truth = rows.astype(np.int64).reshape(STRIP, LANES // width, -1).sum(2)
            for sums.NAME in (own, "neon"):  # Arm's moves, too, are plain ones of LLVM's
                out = np.empty((LANES // width, STRIP), np.int32)
                make(width, bound)(address(rows), address(out))
                np.testing.assert_array_equal(out, truth.T)
    sums.NAME = own


def rounding():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -127, 4194303, 0.49999997], np.float32)
    x = np.resize(x, LANES * 9)
    out = np.empty(len(x), np.int32)

    @njit
    def run(source, out, count):
        for i in range(0, count, LANES):
            rounded = simd.round_i32(memory.load_f32(source + 4 * i))
            memory.store_f32(out + 4 * i, simd.i32_as_f32(rounded))

    run(address(x), address(out), len(x))
    np.testing.assert_array_equal(out, np.rint(x).astype(np.int32))


CHECKS = (
    halves_widen,
    floats_narrow,
    dot_products,
    bit_fields,
    high_bits,
    orders,
    transposes,
    transposes_of_few_columns,
    strip_sums,
    rounding,
)

if __name__ == "__main__":
    assert ISA.vector_bytes == VB, "built for another instruction set"
    for check in CHECKS:
        check()
        print(check.__name__)
