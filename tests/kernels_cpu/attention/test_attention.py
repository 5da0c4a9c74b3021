"""Cache and attention against NumPy in float64: every instruction set, slots in any order."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference
from edgetok.kernels_cpu.attention import launch
from edgetok.kernels_cpu.program import abi
from edgetok.kernels_cpu.program.tables import table
from edgetok.runtime.cpu.stored_rows import Keys, Values

MODULES = (
    "attention.kv_append",
    "attention.hadamard",
    "attention.int4",
    "attention.int6_int4",
    "attention.int8",
    "attention.float16",
    "attention.float32",
    "attention.merge",
)
RTOL = 1e-5
# Integer values take their softmax weights rounded to 14 bits of the largest.
WEIGHT_STEP = 1 / (2**14 - 1)


def round_int8(x, most=127):
    """Codes up to `most` and scales over the last axis, as the cache rounds."""
    absmax = np.abs(x).max(-1, keepdims=True)
    inverse = np.where(absmax > 0, np.float32(most) / np.where(absmax > 0, absmax, 1), 0)
    codes = np.rint(x * inverse.astype(np.float32)).astype(np.int8)
    return codes, (absmax * np.float32(1 / most)).astype(np.float32)


def rounded_evenly(x):
    """4 bits between the smallest and the largest of x and 0, nothing fitted."""
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    step = (high - low) / 15
    return np.rint((x - low) / step) * step + low


def call(address, *arguments):
    """Call a kernel; replaced where kernels are another process's."""
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(int(address))(*arguments)


def run_parts(guard, instructions, parts, tokens, threads):
    """Run instructions for each thread in turn; parts are given by their slots."""
    slots = np.zeros((len(parts), abi.PART_SLOTS), np.int64)
    for row, part in zip(slots, parts, strict=True):
        row[list(part)] = list(part.values())
    slots = guard(slots)
    ctx = guard(np.zeros(abi.CTX_SLOTS, np.int64))
    ctx[abi.CTX_TOKENS], ctx[abi.CTX_PARTS] = tokens, len(parts)
    ctx[abi.CTX_PART_TABLE] = slots.ctypes.data
    for instruction in guard(table(instructions)):
        for tid in reversed(range(threads)):
            call(instruction[0], instruction.ctypes.data, ctx.ctypes.data, tid, threads)


class Cache:
    """One layer's slots between guard pages, filled by the kernel in the order that is given."""

    def __init__(self, kernels, guard, bits, KH, D, slots):
        self.kernels, self.guard = kernels, guard
        self.bits, self.KH, self.D, self.slots = bits, KH, D, slots
        P = launch.padded_head_dim(D, bits)
        keys, values, *dtypes = {
            4: ((slots // 16, P // 8, 16, 4), (slots // 4, P // 2, 4), np.uint8, np.uint8),
            5: ((slots // 16, P // 16 * 3, 16, 4), (slots // 4, P // 2, 4), np.uint8, np.uint8),
            8: ((slots // 16, P // 4, 16, 4), (slots // 4, P, 4), np.uint8, np.int8),
            16: ((slots // 16, P, 16), (slots, P), np.float16, np.float16),
            32: ((slots // 16, P, 16), (slots, P), np.float32, np.float32),
        }[bits]
        self.keys = guard(np.zeros((KH, *keys), dtypes[0]))
        self.values = guard(np.zeros((KH, *values), dtypes[1]))
        assert self.keys.nbytes == KH * slots * launch.key_bytes(D, bits)
        assert self.values.nbytes == KH * slots * launch.value_bytes(D, bits)
        self.scales = guard(np.zeros((2, KH, slots), np.float32))
        self.positions = guard(np.full(slots, launch.EMPTY, np.int32))
        self.append = guard(np.zeros(slots, np.int32))
        self.records = guard(np.zeros((KH, launch.RECORD_SLOTS), np.int64))
        pages = -(-slots // launch.PAGE_SLOTS)
        self.pages = guard(np.zeros((KH, pages + 1, launch.PAGE_FIELDS), np.int64))
        self.place({})
        self.records[:, launch.REC_POSITIONS] = self.positions.ctypes.data
        self.records[:, launch.REC_APPEND] = self.append.ctypes.data
        for h in range(KH):
            self.records[h, launch.REC_PAGES] = self.pages[h].ctypes.data

    def arrays(self, h):
        """What pages hold of a head, each [slots, ...] of its units."""
        return self.keys[h], self.values[h], self.scales[0, h], self.scales[1, h]

    def place(self, moved):
        """Enter where each page's arrays are: here, or `moved[head, page]`."""
        for h in range(self.KH):
            for page in range(self.pages.shape[1] - 1):
                first = launch.PAGE_SLOTS * page
                self.pages[h, page] = [
                    part[first * len(part) // self.slots :].ctypes.data for part in self.arrays(h)
                ]
                if (h, page) in moved:
                    self.pages[h, page] = [part.ctypes.data for part in moved[h, page]]

    def run(self, instructions, tokens, threads, state=None):
        part = {abi.PART_RECORDS: self.records.ctypes.data, abi.PART_ROWS: tokens} | (state or {})
        run_parts(self.guard, instructions, [part], tokens, threads)

    def store(self, k, v, slots, positions, threads=1):
        k, v = self.guard(k), self.guard(v)
        self.append[: len(slots)] = slots
        self.positions[slots] = positions
        self.records[:, launch.REC_USED] = max(self.records[0, launch.REC_USED], max(slots) + 1)
        made = launch.kv_append(
            self.kernels,
            kv_bits=self.bits,
            k=k.ctypes.data,
            v=v.ctypes.data,
            layer=0,
            kv_heads=self.KH,
            head_dim=self.D,
            wait=False,
        )
        self.run([made], len(slots), threads)

    def read(self):
        """Keys and values [slots, KH, D] in float64, read by another road than the kernels'."""
        KH, slots = self.KH, self.slots
        if self.bits <= 8:
            keys = self.keys.transpose(1, 3, 0, 2, 4)  # 16 slots, then dims of a slot
            values = self.values.transpose(1, 3, 0, 2)
        else:
            keys, values = self.keys.transpose(1, 3, 0, 2), self.values.transpose(1, 0, 2)
        if self.bits == 4:
            keys = np.concatenate([keys & 15, keys >> 4], -1)
        if self.bits == 5:
            words = keys.reshape(*keys.shape[:3], -1, 3, 4)  # dims j, j + 4; j + 8, j + 12; all
            high = [words[..., i // 2, :] >> 4 * (i % 2) & 15 for i in range(4)]
            keys = [4 * high[i] + (words[..., 2, :] >> 2 * i & 3) for i in range(4)]
            keys = np.concatenate(keys, -1)
        if self.bits in (4, 5):
            values = values.reshape(*values.shape[:3], -1, 16)
            values = np.concatenate([values & 15, values >> 4], -1)
        keys = keys.reshape(slots, KH, -1).astype(np.float64)
        values = values.reshape(slots, KH, -1).astype(np.float64)
        if self.bits == 8:
            keys = (keys - 128) * self.scales[0].T[:, :, None].astype(np.float64)
            values *= self.scales[1].T[:, :, None].astype(np.float64)
        elif self.bits in (4, 5):

            def scaled(codes, which):
                words = self.scales[which].view(np.uint32).T[..., None]
                scale = (words << 16).view(np.float32).astype(np.float64)
                return codes * scale + (words & 0xFFFF0000).view(np.float32).astype(np.float64)

            values = scaled(values, 1)
            if self.bits == 5:
                keys = (keys - 32) * self.scales[0].T[:, :, None].astype(np.float64)
            else:
                keys = scaled(keys, 0)
        return keys[..., : self.D], values[..., : self.D]

    def attend(
        self,
        q,
        positions,
        *,
        threads=1,
        window=0,
        scale=0.3,
        cap=0.0,
        sinks=None,
        state=None,
    ):
        T, H, D = q.shape
        out = self.guard(np.full(q.shape, np.nan, np.float32))
        how = {"window": window, "scale": scale, "cap": cap, "sinks": sinks}
        made = attend_instructions(self, q, out, positions, threads, **how)
        chunks = launch.chunk_count(int(self.records[0, launch.REC_USED]))
        partials = self.guard(np.full(launch.partials_bytes(H, D, chunks), 0xFF, np.uint8))
        part = {abi.PART_PARTIALS: partials.ctypes.data, abi.PART_CHUNKS: chunks}
        self.run(made, T, threads, part | (state or {}))
        return out


def attend_instructions(
    cache, q, out, positions, threads, *, window=0, scale=0.3, cap=0.0, sinks=None
):
    _, H, D = q.shape
    guard = cache.guard
    positions = guard(np.ascontiguousarray(positions, np.int32))
    return launch.attention(
        cache.kernels,
        kv_bits=cache.bits,
        q=guard(q).ctypes.data,
        out=out.ctypes.data,
        layer=0,
        heads=H,
        kv_heads=cache.KH,
        head_dim=D,
        window=window,
        scale=scale,
        softcap=cap,
        positions=positions.ctypes.data,
        scratch=guard(np.full(threads * launch.scratch_bytes(D), 0xFF, np.uint8)).ctypes.data,
        sinks=0 if sinks is None else guard(sinks.astype(np.float32)).ctypes.data,
    )


def truth(cache, q, order, *, window=0, scale=0.3, cap=0.0, sinks=None):
    """The reference over slots put back into the order of their positions, and what may be off.

    Rounded weights are off by an even spread of a step each; the sum of S of them by four times
    its standard deviation at most.
    """
    k, v = cache.read()
    k, v = k[order], v[order]
    if cache.bits <= 8:
        codes, scales = round_int8(q)
        q = codes * scales.astype(np.float64)
    q = q.astype(np.float64)
    how = {"scale": scale, "window": window, "cap": cap, "sinks": sinks}
    expected = reference.attention(q, k, v, **how)
    allowed = RTOL * max(1.0, np.abs(expected).max())
    if cache.bits <= 8:
        # At 4 bits a code counts from the base, so up to the whole range is rounded.
        reach = 2 * np.abs(v).max() if cache.bits in (4, 5) else np.abs(v).max()
        largest = reference.attention_weights(q, k, **how).max(-1)
        step = WEIGHT_STEP * reach * np.sqrt(len(order) / 12)
        allowed = allowed + 4 * step * largest.T[:, :, None]
    return expected, allowed


def close(out, expected_allowed):
    expected, allowed = expected_allowed
    error = np.abs(out - expected)
    assert (error <= allowed).all(), (error / allowed).max()


def filled(kernels, guard, bits, H, KH, D, S, seed=0, slots=None, shuffle=True):
    rng = np.random.default_rng(seed)
    slots = slots or -(-S // launch.SLOT_TILE) * launch.SLOT_TILE
    cache = Cache(kernels, guard, bits, KH, D, slots)
    k = rng.standard_normal((S, KH, D)).astype(np.float32) * 2
    v = rng.standard_normal((S, KH, D)).astype(np.float32)
    order = rng.permutation(slots)[:S] if shuffle else np.arange(S)
    cut = S // 3
    for a, b in ((0, cut), (cut, S)):
        if b > a:
            cache.store(k[a:b], v[a:b], order[a:b], np.arange(a, b))
    return cache, k, v, order, rng


SHAPES = [(1, 1, 16), (4, 2, 24), (4, 1, 64), (7, 1, 64), (14, 2, 80), (4, 4, 128), (8, 2, 256)]


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("H", "KH", "D"), SHAPES)
def test_append_rounds_as_said(each_kernels, guard, bits, H, KH, D):
    cache, k, v, order, _ = filled(each_kernels, guard, bits, H, KH, D, 70)
    keys, values = cache.read()
    for stored, given in ((keys, k), (values, v)):
        if bits == 8 or (bits == 5 and given is k):
            codes, scales = round_int8(given, 127 if bits == 8 else 31)
            expected = codes * scales.astype(np.float64)
        elif bits in (4, 5):
            codes, scales, bases = reference.quantise_slots(given)
            expected = codes * scales.astype(np.float64) + bases.astype(np.float64)
            # Sums in another order round some scales and bases to the bfloat16 beside.
            allowed = 2.0**-7 * (15 * scales + np.abs(bases))
            assert (np.abs(stored[order] - expected) <= allowed).all()
            assert (stored[order] == expected).mean() > 0.9
            error = np.square(stored[order] - given).sum(-1)
            assert (error <= np.square(rounded_evenly(given) - given).sum(-1) * 1.01).all()
            continue
        else:
            expected = given.astype(np.float16 if bits == 16 else np.float32)
        np.testing.assert_allclose(stored[order], expected, rtol=1e-6, atol=0)
    assert np.count_nonzero(cache.positions != launch.EMPTY) == 70


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("H", "KH", "D"), SHAPES)
def test_attention(each_kernels, guard, bits, H, KH, D):
    for S, T in ((1, 1), (70, 1), (70, 5), (130, 67)):
        cache, _, _, order, rng = filled(each_kernels, guard, bits, H, KH, D, S)
        q = rng.standard_normal((T, H, D)).astype(np.float32)
        expected = truth(cache, q, order)
        for threads in (1, 2, 3):
            out = cache.attend(q, np.arange(S - T, S), threads=threads)
            close(out, expected)
            if threads == 1:
                first = out
            np.testing.assert_array_equal(out, first)  # bit for bit, however many threads


@pytest.mark.parametrize("bits", [4, 5, 8, 32])
@pytest.mark.parametrize(("window", "cap"), [(1, 0.0), (8, 0.0), (50, 3.0), (0, 2.0), (500, 0.0)])
def test_windows_and_caps(each_kernels, guard, bits, window, cap):
    H, KH, D, S = 4, 2, 64, 300
    cache, _, _, order, rng = filled(each_kernels, guard, bits, H, KH, D, S)
    for T in (1, 40):
        q = rng.standard_normal((T, H, D)).astype(np.float32)
        out = cache.attend(q, np.arange(S - T, S), threads=2, window=window, cap=cap)
        close(out, truth(cache, q, order, window=window, cap=cap))


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (8, 0.0), (0, 2.0)])
def test_sinks(each_kernels, guard, bits, window, cap):
    """Far below all scores, among them, and so far above that hardly anything is left."""
    H, KH, D, S = 4, 2, 64, 600
    cache, _, _, order, rng = filled(each_kernels, guard, bits, H, KH, D, S)
    how = {"window": window, "cap": cap, "sinks": np.array([-200.0, 0.5, 4.0, 60.0])}
    for T in (1, 40):
        q = rng.standard_normal((T, H, D)).astype(np.float32)
        expected = truth(cache, q, order, **how)
        for threads in (1, 3):
            mass = Mass(guard, cache, H, threads)
            out = cache.attend(
                q, np.arange(S - T, S), threads=threads, state=mass.state(keep=0.0), **how
            )
            close(out, expected)
            of_mass = mass_truth(cache, q, order, 0, **how)
            np.testing.assert_allclose(mass.found, of_mass, atol=6e-5)
            without = cache.attend(q, np.arange(S - T, S), threads=threads, **how)
            np.testing.assert_array_equal(out, without)  # bit for bit, counted or not


def one_token(rng, KH, D, S, loud_from):
    """Keys and values of S tokens; those from `loud_from` on are 50 times as large."""
    k = rng.standard_normal((S, KH, D)).astype(np.float32) * 2
    v = rng.standard_normal((S, KH, D)).astype(np.float32)
    k[loud_from:] *= 50
    v[loud_from:] *= 50
    return k, v


def stored(kernels, guard, bits, k, v, slots):
    cache = Cache(kernels, guard, bits, k.shape[1], k.shape[2], slots)
    cache.store(k, v, np.arange(len(k)), np.arange(len(k)))
    return cache


COMPANY = [
    (0, 0.0, 620),
    (0, 0.0, 255),
    (0, 2.0, 70),
    (300, 0.0, 620),
    (20, 3.0, 517),
    (1, 0.0, 64),
]


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("window", "cap", "p"), COMPANY)
def test_a_row_does_not_depend_on_its_company(each_kernels, guard, bits, window, cap, p):
    """Position p alone or among others, whatever lies behind it, in caches of any capacity."""
    H, KH, D, S = 6, 2, 24, 700
    rng = np.random.default_rng(p)
    k, v = one_token(rng, KH, D, S, p + 1)
    q = rng.standard_normal((S, H, D)).astype(np.float32)
    how = {"window": window, "cap": cap}
    short = stored(each_kernels, guard, bits, k[: p + 1], v[: p + 1], 704)
    expected = short.attend(q[p : p + 1], [p], **how)[0].tobytes()

    def check(cache, first, last, **more):
        out = cache.attend(q[first:last], np.arange(first, last), **how, **more)
        assert out[p - first].tobytes() == expected, (first, last, more)

    full = stored(each_kernels, guard, bits, k, v, 704)
    large = stored(each_kernels, guard, bits, k, v, 20_480)
    for cache in (short, full, large):
        ahead = 0 if cache is short else 20
        for first, last in ((p, p + 1), (p - 1, p + 1), (p - 39 + ahead, p + 1 + ahead)):
            for threads in (1, 3):
                check(cache, first, last, threads=threads)
        state = Mass(guard, cache, H, 2).state(keep=1.0)
        for first, last in ((p, p + 1), (p - 30, p + 1)):
            check(cache, first, last, threads=2, state=state)
    full.positions[p + 1 :] = launch.EMPTY  # truncated: what was stored stays where it was
    for used in (S, p + 1):
        full.records[:, launch.REC_USED] = used
        for first in (p, p - 1, p - 39):
            check(full, first, p + 1)


@pytest.mark.parametrize("bits", launch.KV_BITS)
def test_chunks_do_not_depend_on_what_comes_later(kernels, guard, bits):
    """One row in a deep cache, where chunks are longer than a block, alone and among others."""
    H, KH, D, S = 2, 1, 16, 34_000
    rng = np.random.default_rng(bits)
    k, v = one_token(rng, KH, D, S, S)
    q = rng.standard_normal((S, H, D)).astype(np.float32)
    full = stored(kernels, guard, bits, k, v, -(-S // 64) * 64)
    for p in (16_500, 33_500):
        short = stored(kernels, guard, bits, k[: p + 1], v[: p + 1], -(-(p + 1) // 64) * 64)
        expected = short.attend(q[p : p + 1], [p]).tobytes()
        for threads in (1, 2, 5):
            assert full.attend(q[p : p + 1], [p], threads=threads).tobytes() == expected
        rows = np.arange(p - 4, p + 5)
        assert full.attend(q[rows], rows)[4].tobytes() == expected


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize("D", [24, 64])
def test_a_stored_row_does_not_depend_on_its_company(each_kernels, guard, bits, D):
    """What is stored of a token, beside others and with any number of threads."""
    KH, S = 3, 40
    rng = np.random.default_rng(D)
    k, v = one_token(rng, KH, D, S, 17)
    alone = Cache(each_kernels, guard, bits, KH, D, 64)
    for t in range(S):
        alone.store(k[t : t + 1], v[t : t + 1], np.array([t]), [t])
    for threads in (1, 3):
        many = Cache(each_kernels, guard, bits, KH, D, 64)
        many.store(k, v, np.arange(S), np.arange(S), threads=threads)
        for name in ("keys", "values", "scales"):
            assert getattr(many, name).tobytes() == getattr(alone, name).tobytes(), name


def test_a_ring_of_slots(kernels, guard):
    """Older tokens overwritten: the window still sees all that it should."""
    H, KH, D, window, slots, S = 4, 2, 32, 40, 64, 200
    rng = np.random.default_rng(1)
    cache = Cache(kernels, guard, 32, KH, D, slots)
    k = rng.standard_normal((S, KH, D)).astype(np.float32)
    v = rng.standard_normal((S, KH, D)).astype(np.float32)
    q = rng.standard_normal((S, H, D)).astype(np.float32)
    for a in range(0, S, 20):
        positions = np.arange(a, min(a + 20, S))
        cache.store(k[positions], v[positions], positions % slots, positions)
        out = cache.attend(q[positions], positions, window=window)
        expected = reference.attention(
            q[positions].astype(np.float64),
            k[: positions[-1] + 1].astype(np.float64),
            v[: positions[-1] + 1].astype(np.float64),
            scale=0.3,
            window=window,
        )
        close(out, (expected, RTOL * max(1.0, np.abs(expected).max())))


def test_deep_caches_are_split(kernels, guard):
    """More chunks than one, and chunks longer than the shortest."""
    for slots in (2048, launch.FIRST_CHUNKS * 256 + 64):
        S = slots - 5
        cache, _, _, order, rng = filled(kernels, guard, 8, 4, 2, 16, S, slots=slots)
        q = rng.standard_normal((1, 4, 16)).astype(np.float32)
        expected = truth(cache, q, order)
        outs = [cache.attend(q, [S - 1], threads=n) for n in (1, 2, 4)]
        close(outs[0], expected)
        np.testing.assert_array_equal(outs[0], outs[1])
        np.testing.assert_array_equal(outs[0], outs[2])


def test_chunks_by_hand():
    expected = {1: 1, 256: 1, 257: 2, 16_384: 64, 16_385: 65, 32_768: 96, 32_769: 97, 2**20: 256}
    assert {slots: launch.chunk_count(slots) for slots in expected} == expected


def test_large_scores_do_not_overflow(each_kernels, guard):
    cache, _, _, order, rng = filled(each_kernels, guard, 32, 2, 1, 64, 100)
    q = rng.standard_normal((3, 2, 64)).astype(np.float32) * 1e4
    out = cache.attend(q, np.arange(97, 100))
    close(out, truth(cache, q, order))


def test_nothing_to_see_is_zero(kernels, guard):
    cache, *_ = filled(kernels, guard, 8, 2, 1, 16, 30)
    cache.positions[:] = launch.EMPTY
    for T in (1, 3):
        out = cache.attend(np.ones((T, 2, 16), np.float32), np.arange(T))
        np.testing.assert_array_equal(out, 0)


def test_float16_clamps_instead_of_overflowing(each_kernels, guard):
    cache = Cache(each_kernels, guard, 16, 1, 16, 64)
    k = np.full((1, 1, 16), 1e6, np.float32)
    cache.store(k, -k, np.array([3]), [0])
    keys, values = cache.read()
    assert (keys[3] == 65504).all()
    assert (values[3] == -65504).all()


def test_launchers_refuse(kernels):
    with pytest.raises(ShapeError, match="kv_bits is 2"):
        launch.kv_append(kernels, kv_bits=2, k=0, v=0, layer=0, kv_heads=1, head_dim=8, wait=False)
    with pytest.raises(ShapeError, match="3 heads"):
        launch.attention(
            kernels,
            kv_bits=8,
            q=0,
            out=0,
            layer=0,
            heads=3,
            kv_heads=2,
            head_dim=8,
            window=0,
            scale=1.0,
            softcap=0.0,
            positions=0,
            scratch=0,
        )


class Mass:
    """Arrays of attention mass behind a cache's records, and the state that asks for them."""

    def __init__(self, guard, cache, heads, threads):
        slots = launch.mass_slots(cache.slots)
        size = launch.mass_workspace_bytes(cache.slots, heads, cache.KH, threads)
        self.workspace = guard(np.full(size, 0xFF, np.uint8))
        self.found = guard(np.zeros((cache.KH, cache.slots), np.float32))
        self.slots = slots
        for h in range(cache.KH):
            cache.records[h, launch.REC_MASS] = self.found[h].ctypes.data

    def state(self, first=0, keep=0.0):
        return {
            abi.PART_MASS: self.workspace.ctypes.data,
            abi.PART_MASS_SLOTS: self.slots,
            abi.PART_MASS_FIRST: first,
            abi.PART_MASS_KEEP: int(np.float32(keep).view(np.int32)),
        }


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (70, 2.0)])
def test_parts_do_not_know_each_other(each_kernels, guard, bits, window, cap):
    """Rows of several caches in one run, of any number, with and without mass, stored and read."""
    H, KH, D = 40, 2, 24
    rng = np.random.default_rng(bits)
    rows, depths = (1, 5, 0, 1, 33, 1), (700, 40, 100, 64, 300, 1)
    keep = (True, False, False, False, True, False)  # mass
    how = {"window": window, "cap": cap}
    k, v = one_token(rng, KH, D, sum(rows), 3)
    q = rng.standard_normal((sum(rows), H, D)).astype(np.float32)
    firsts = np.cumsum((0, *rows))[:-1]
    at = np.concatenate([np.arange(d - r, d) for d, r in zip(depths, rows, strict=True)])

    def caches():
        made = []
        for i, (depth, count) in enumerate(zip(depths, rows, strict=True)):
            before = np.random.default_rng(i)
            cache = Cache(each_kernels, guard, bits, KH, D, 64 * (i + 12))
            if depth > count:
                held = np.arange(depth - count)
                cache.store(*one_token(before, KH, D, len(held), 9), held, held)
            cache.append[:count] = np.arange(depth - count, depth)
            cache.positions[depth - count : depth] = np.arange(depth - count, depth)
            cache.records[:, launch.REC_USED] = depth
            made.append(cache)
        return made

    alone, alone_mass = [], []
    for cache, first, count, kept in zip(caches(), firsts, rows, keep, strict=True):
        mass = Mass(guard, cache, H, 2) if kept else None
        mine = slice(first, first + count)
        if count:
            cache.store(k[mine], v[mine], cache.append[:count].copy(), at[mine])
            state = mass.state(keep=1.0) if kept else None
            alone.append(cache.attend(q[mine], at[mine], threads=2, state=state, **how))
        alone_mass.append(mass)
    for threads in (1, 2, 3):
        together, masses, parts = caches(), [], []
        for cache, first, count, kept in zip(together, firsts, rows, keep, strict=True):
            chunks = launch.chunk_count(int(cache.records[0, launch.REC_USED]))
            partials = guard(np.full(launch.partials_bytes(H, D, chunks), 0xFF, np.uint8))
            masses.append(Mass(guard, cache, H, threads) if kept else None)
            if kept and count == 1:  # one row needs less
                size = launch.mass_row_bytes(cache.slots, H)
                masses[-1].workspace = guard(np.full(size, 0xFF, np.uint8))
            parts.append(
                {
                    abi.PART_RECORDS: cache.records.ctypes.data,
                    abi.PART_FIRST: first,
                    abi.PART_ROWS: count,
                    abi.PART_PARTIALS: partials.ctypes.data,
                    abi.PART_CHUNKS: chunks,
                }
                | (masses[-1].state(keep=1.0) if kept else {})
            )
        out = guard(np.full(q.shape, np.nan, np.float32))
        append = launch.kv_append(
            each_kernels,
            kv_bits=bits,
            k=guard(k).ctypes.data,
            v=guard(v).ctypes.data,
            layer=0,
            kv_heads=KH,
            head_dim=D,
            wait=True,
        )
        made = attend_instructions(together[0], q, out, at, threads, **how)
        run_parts(guard, [append, *made], parts, len(q), threads)
        assert out.tobytes() == np.concatenate(alone).tobytes()
        for mass, before in zip(masses, alone_mass, strict=True):
            if mass is not None:
                assert mass.found.tobytes() == before.found.tobytes()


def mass_truth(cache, q, order, first, **how):
    k, _ = cache.read()
    if cache.bits <= 8:
        codes, scales = round_int8(q)
        q = codes * scales.astype(np.float64)
    weights = reference.attention_weights(q.astype(np.float64), k[order], scale=0.3, **how)
    mass = np.zeros((cache.KH, cache.slots))
    mass[:, order] = reference.attention_mass(weights, cache.KH, first)
    return mass


@pytest.mark.parametrize(
    ("bits", "H", "KH", "D", "S", "T", "first", "how"),
    [
        (8, 8, 2, 64, 70, 1, 0, {}),
        (32, 6, 2, 24, 700, 1, 0, {"window": 300}),
        (8, 4, 2, 64, 700, 67, 0, {}),
        (16, 4, 1, 64, 300, 90, 80, {"window": 50}),
        (4, 8, 2, 64, 700, 67, 30, {}),
        (5, 8, 2, 64, 700, 67, 30, {}),
        (32, 40, 1, 16, 600, 1, 0, {}),  # more query heads than a task takes
        (8, 40, 1, 16, 300, 21, 5, {"cap": 3.0}),
    ],
)
def test_mass(each_kernels, guard, bits, H, KH, D, S, T, first, how):
    cache, _, _, order, rng = filled(each_kernels, guard, bits, H, KH, D, S)
    q = rng.standard_normal((T, H, D)).astype(np.float32)
    positions = np.arange(S - T, S)
    plain = cache.attend(q, positions, **how)
    expected = mass_truth(cache, q, order, first, **how)
    assert expected.sum() == pytest.approx(H * (T - first))
    for threads in (1, 2, 3):
        mass = Mass(guard, cache, H, threads)
        mass.found[:, order] = 0.5
        for keep, before in ((0.5, 0.25), (1.0, None)):
            state = mass.state(first, keep)
            out = cache.attend(q, positions, threads=threads, state=state, **how)
            np.testing.assert_array_equal(out, plain)  # asking changes no bit of the result
            if before is not None:
                once = mass.found.copy()
                np.testing.assert_allclose(once[:, order], expected[:, order] + 0.25, atol=3e-5)
        np.testing.assert_allclose(mass.found, once + expected, atol=6e-5)
        if threads == 1:
            repeated = mass.found.copy()
        np.testing.assert_array_equal(mass.found, repeated)  # bit for bit


def test_mass_only_where_it_is_asked_for(kernels, guard):
    cache, _, _, order, rng = filled(kernels, guard, 8, 4, 2, 16, 100)
    mass = Mass(guard, cache, 4, 2)
    mass.found[:] = 7
    q = rng.standard_normal((3, 4, 16)).astype(np.float32)
    for T in (1, 3):
        cache.attend(q[:T], np.arange(100 - T, 100), threads=2)
    assert (mass.found == 7).all()  # no workspace: nothing is touched
    cache.records[1, launch.REC_MASS] = 0
    cache.attend(q[:1], [99], state=mass.state())
    assert (mass.found[1] == 7).all()
    np.testing.assert_allclose(mass.found[0], mass_truth(cache, q[:1], order, 0)[0], atol=1e-5)
    cache.attend(q[:1], [99], state=mass.state(first=1, keep=1.0))
    np.testing.assert_allclose(mass.found[0].sum(), 2, rtol=1e-5)  # its only token did not count


def test_a_stored_token_begins_without_mass(each_kernels, guard):
    for bits in launch.KV_BITS:
        cache, k, v, _, _ = filled(each_kernels, guard, bits, 2, 2, 16, 20)
        mass = Mass(guard, cache, 2, 1)
        mass.found[:] = 3
        cache.store(k[:2], v[:2], np.array([5, 40]), [20, 21])
        assert (mass.found[:, [5, 40]] == 0).all()
        assert (mass.found[:, 6:40] == 3).all()


@pytest.mark.parametrize("bits", launch.KV_BITS)
@pytest.mark.parametrize("D", [24, 64])
def test_numpy_reads_and_writes_the_same_slots(kernels, guard, bits, D):
    """What chooses and moves slots sees what the kernels stored, and stores what they would."""
    cache, k, v, order, _ = filled(kernels, guard, bits, 2, 1, D, 70)
    scales = cache.scales[:, 0] if bits <= 8 else (None, None)
    stored_keys = Keys(cache.keys.view(np.uint8).reshape(-1), scales[0], D, bits)
    stored_values = Values(cache.values.view(np.uint8).reshape(-1), scales[1], D, bits)
    keys, values = cache.read()
    plain = reference.hadamard(keys[:, 0]) if bits <= 8 else keys[:, 0]
    np.testing.assert_allclose(stored_keys.read(order), plain[order], atol=2e-6)
    np.testing.assert_allclose(stored_values.read(order), values[order, 0], atol=2e-6)
    before = [a.copy() for a in (cache.keys, cache.values, cache.scales)]
    given = reference.hadamard(k[:, 0]) if bits <= 8 else k[:, 0]  # rotated back inside
    for array in (cache.keys, cache.values, cache.scales):
        array[...] = 0
    stored_keys.write(order, given)
    stored_values.write(order, v[:, 0])
    again, also = cache.read()
    cache.keys[...], cache.values[...], cache.scales[...] = before
    # Rotated twice, a code may round the other way.
    step = {4: np.abs(keys).max() / 7, 5: np.abs(keys).max() / 30, 8: np.abs(keys).max() / 126}.get(
        bits, 1e-6
    )
    np.testing.assert_allclose(again[order], keys[order], atol=step)
    np.testing.assert_allclose(also[order], values[order], atol=1e-6)


@pytest.mark.parametrize("D", [16, 24, 64, 80, 128, 256])
def test_hadamard(each_kernels, guard, run, D):
    x = np.random.default_rng(0).standard_normal((5, 3, D)).astype(np.float32)
    expected = reference.hadamard(x.astype(np.float64))
    for threads in (1, 2):
        turned = guard(x)
        made = launch.hadamard(each_kernels, x=turned.ctypes.data, heads=3, head_dim=D, wait=False)
        run(each_kernels, table([made])[0], 5, threads)
        np.testing.assert_allclose(turned, expected, atol=2e-6)
    run(each_kernels, table([made])[0], 5)
    np.testing.assert_allclose(turned, x, atol=4e-6)  # its own inverse


@pytest.mark.parametrize("D", [24, 64, 80])
@pytest.mark.parametrize("group", [1, 3])
def test_hadamard_after_centre_and_factor(each_kernels, guard, run, D, group):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 6, D)).astype(np.float32)
    centre, factor = (rng.standard_normal((6 // group, D)).astype(np.float32) for _ in range(2))
    for with_centre in (False, True):
        moved = x - np.repeat(centre, group, axis=0) if with_centre else x
        expected = reference.hadamard(moved.astype(np.float64) * np.repeat(factor, group, axis=0))
        given, held = guard(x), (guard(centre), guard(factor))
        made = launch.hadamard(
            each_kernels, x=given.ctypes.data, heads=6, head_dim=D, group=group, wait=False,
            centre=held[0].ctypes.data if with_centre else 0, factor=held[1].ctypes.data,
        )  # fmt: skip
        run(each_kernels, table([made])[0], 5, 2)
        np.testing.assert_allclose(given, expected, atol=8e-6)


@pytest.mark.parametrize("bits", launch.KV_BITS)
def test_pages_may_be_anywhere(kernels, guard, bits):
    """Pages copied to places of their own, in any order: the same bits, one token and many."""
    rng = np.random.default_rng(7)
    KH, D, slots = 2, 40, 704  # the last page is shorter
    cache = Cache(kernels, guard, bits, KH, D, slots)
    k, v = rng.standard_normal((2, slots, KH, D)).astype(np.float32)
    for first in range(0, slots, 64):
        at = np.arange(first, first + 64)
        cache.store(k[at], v[at], at, at)
    q = rng.standard_normal((3, 2 * KH, D)).astype(np.float32)

    def results():
        many = cache.attend(q, np.array([300, 650, 703]), threads=2)
        return many, cache.attend(q[:1], np.array([690]), threads=2)

    before = results()
    moved = {}
    for h, page in rng.permutation([(h, p) for h in range(KH) for p in range(3)]).tolist():
        first, end = page * launch.PAGE_SLOTS, min((page + 1) * launch.PAGE_SLOTS, slots)
        moved[h, page] = [
            guard(np.ascontiguousarray(part[first * len(part) // slots : end * len(part) // slots]))
            for part in cache.arrays(h)
        ]
    cache.place(moved)
    for part in (cache.keys, cache.values, cache.scales):
        part.view(np.uint8)[:] = 255  # codes far out, scales not a number
    for found, expected in zip(results(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    # And what is appended goes to the page, not to where it was.
    new = rng.standard_normal((1, KH, D)).astype(np.float32)
    kept = [part.copy() for part in moved[0, 1]]
    cache.store(new, new, np.array([300]), np.array([300]))
    assert any((a != b).any() for a, b in zip(kept, moved[0, 1], strict=True))
    assert (cache.keys.view(np.uint8) == 255).all()
