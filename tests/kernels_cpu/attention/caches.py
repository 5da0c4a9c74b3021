"""A cache of the attention kernels' own layout, run by hand, and the truth about it in NumPy."""

from __future__ import annotations

import ctypes

import numpy as np

from edgetok.kernels_cpu import reference
from edgetok.kernels_cpu.attention import launch
from edgetok.kernels_cpu.program import abi
from edgetok.kernels_cpu.program.tables import table

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
        """Arrays of a head that pages hold, each [slots, ...] of its units."""
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


def truth(cache, q, order, *, window=0, scale=0.3, cap=0.0, sinks=None, rest=None):
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
    how = {"scale": scale, "window": window, "cap": cap, "sinks": sinks, "rest": rest}
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


def one_token(rng, KH, D, S, loud_from):
    """Keys and values of S tokens; those from `loud_from` on are 50 times as large."""
    k = rng.standard_normal((S, KH, D)).astype(np.float32) * 2
    v = rng.standard_normal((S, KH, D)).astype(np.float32)
    k[loud_from:] *= 50
    v[loud_from:] *= 50
    return k, v


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


def mass_truth(cache, q, order, first, **how):
    k, _ = cache.read()
    if cache.bits <= 8:
        codes, scales = round_int8(q)
        q = codes * scales.astype(np.float64)
    weights = reference.attention_weights(q.astype(np.float64), k[order], scale=0.3, **how)
    mass = np.zeros((cache.KH, cache.slots))
    mass[:, order] = reference.attention_mass(weights, cache.KH, first)
    return mass
