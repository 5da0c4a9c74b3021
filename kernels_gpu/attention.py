"""Attention over the slots of the KV cache: softmax(softcap(scale * q k^T)) v, causal or windowed.

The query rows (token and head) of one KV head are computed together, so that keys and values are
read once for all heads that share them; the softmax is computed online over tiles of slots (arXiv
1805.02867, 2205.14135). Queries and probabilities are float16 on tensor cores, sums are float32.
Slots of 4 and 8 bits hold rotated keys and values (`kv_append.py`), and queries come rotated: the
result is rotated back.

Of one token the slots are shared out too (split-K, "flash decoding"): each program leaves its sums,
its maximum and its sum of exponentials, and `attention_merge` adds them up. How many slots are used
is read on the device, so that one captured graph serves every length.

`attention_mass` adds the probability that slots received to an array, for caches that keep the
tokens that are attended to.
"""

from __future__ import annotations

import torch
import triton.language as tl

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.activation import softcap
from edgetok.kernels_gpu.hadamard import hadamard
from edgetok.kernels_gpu.jit import PLANES, check, jit, launch, next_power, plane_stride
from edgetok.kernels_gpu.kv_append import Slots, load_codes, load_scales

MAX_SPLITS = 64


@jit
def _load_queries(  # type: ignore[no-untyped-def]
    q, row, rows, head, group, H, D, dims
):
    """Rows [R, BLOCK] of a KV head: tokens, and for each its heads. Not yet scaled."""
    t = (row // group).to(tl.int64)
    at = (t * H + head * group + row % group) * D
    live = (row < rows)[:, None] & (dims < D)[None, :]
    return tl.load(q + at[:, None] + dims[None, :], mask=live, other=0)


@jit
def _scores(  # type: ignore[no-untyped-def]
    queries, keys, key_scales, positions, slot, live, base, low, high, width, dims, scale, cap,
    KV_BITS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """Scores [R, S] in units of log 2; minus infinity where a row does not see a slot."""
    both = live[None, :] & (dims < width)[:, None]
    k = load_codes(keys, (base + slot)[None, :], dims[:, None], width, both, KV_BITS)
    s = tl.dot(queries, k.to(tl.float16))
    if KV_BITS != 16:
        key_scale, key_base = load_scales(key_scales, base + slot, live, KV_BITS)
        s *= key_scale[None, :]
        if KV_BITS == 4:
            s += tl.sum(queries.to(tl.float32), axis=1)[:, None] * key_base[None, :]
    s *= scale
    if cap is not None:
        s = softcap(s, cap)
    s *= 1.4426950408889634  # log2(e)
    at = slot
    if OWN:
        at = base + slot
    where = tl.load(positions + at, mask=live, other=2147483647)
    seen = (where[None, :] <= high[:, None]) & (where[None, :] >= low[:, None])
    return tl.where(seen, s, float("-inf"))


@jit
def _row_range(token_positions, row, rows, group, window):  # type: ignore[no-untyped-def]
    """First and last position that each row sees; rows past the end see nothing."""
    high = tl.load(token_positions + row // group, mask=row < rows, other=-1)
    low = tl.where(window > 0, tl.maximum(high - window + 1, 0), 0)
    return low, high


@jit
def _attention(  # type: ignore[no-untyped-def]
    q, keys, values, key_scales, value_scales, positions, starts, used, token_positions,
    out, lse, partials, T, H, KH, D, S, used_stride, width, window, scale, cap,
    KV_BITS: tl.constexpr, ROTATION: tl.constexpr, OWN: tl.constexpr, SPLITS: tl.constexpr,
    ORDERED: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = H // KH
    rows = T * group
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    split = tl.program_id(2)
    dims = tl.arange(0, BLOCK)
    base = tl.load(starts + head).to(tl.int64)
    queries = _load_queries(q, row, rows, head, group, H, D, dims)
    # Scaled to at most 1, so that no query leaves the range of float16.
    largest = tl.max(tl.abs(queries), axis=1)
    largest = tl.where(largest > 1e-30, largest, 1.0)
    queries = (queries / largest[:, None]).to(tl.float16)
    row_scale = (largest * scale)[:, None]
    low, high = _row_range(token_positions, row, rows, group, window)
    end = tl.load(used + head * used_stride)
    begin = 0
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(end, TILE), SPLITS) * TILE
        begin = split * share
        end = tl.minimum(end, begin + share)
    if ORDERED:  # slot i holds position i: only those between what the rows see
        end = tl.minimum(end, tl.max(high, axis=0) + 1)
        lowest = tl.min(tl.where(row < rows, low, 2147483647), axis=0)
        begin = tl.maximum(begin, lowest // TILE * TILE)
    top = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(begin, end, TILE):
        slot = first + tl.arange(0, TILE)
        live = slot < end
        s = _scores(
            queries, keys, key_scales, positions, slot, live, base, low, high, width, dims,
            row_scale, cap, KV_BITS, OWN,
        )  # fmt: skip
        new = tl.maximum(top, tl.max(s, axis=1))
        keep = tl.exp2(top - new)
        p = tl.exp2(s - new[:, None])
        total = total * keep + tl.sum(p, axis=1)
        both = live[:, None] & (dims < width)[None, :]
        v = load_codes(values, (base + slot)[:, None], dims[None, :], width, both, KV_BITS)
        if KV_BITS != 16:
            value_scale, value_base = load_scales(value_scales, base + slot, live, KV_BITS)
            v = v.to(tl.float32) * value_scale[:, None] + value_base[:, None]
            v = tl.minimum(tl.maximum(v, -65504.0), 65504.0)
        acc = tl.dot(p.to(tl.float16), v.to(tl.float16), acc * keep[:, None])
        top = new
    live_rows = row < rows
    if SPLITS > 1:
        at = ((head * group + row) * SPLITS + split) * (BLOCK + 2)
        tl.store(partials + at[:, None] + 2 + dims[None, :], acc, mask=live_rows[:, None])
        tl.store(partials + at, top, mask=live_rows)
        tl.store(partials + at + 1, total, mask=live_rows)
    else:
        safe = tl.where(total > 0, total, 1.0)
        acc = hadamard(acc / safe[:, None], ROTATION, ROWS, BLOCK)
        t = (row // group).to(tl.int64)
        n = (head * group + row % group)[:, None] * D + dims[None, :]
        at = (t[:, None] * 8 + n % 8) * S + n // 8
        tl.store(out + at, acc, mask=live_rows[:, None] & (dims < D)[None, :])
        if lse is not None:
            tl.store(lse + t * H + head * group + row % group, top + tl.log2(safe), mask=live_rows)


@jit
def _attention_merge(  # type: ignore[no-untyped-def]
    partials, out, lse, D, S,
    ROTATION: tl.constexpr, SPLITS: tl.constexpr, SPLITS_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    split = tl.arange(0, SPLITS_BLOCK)
    dims = tl.arange(0, BLOCK)
    live = split < SPLITS
    at = partials + (head * SPLITS + split) * (BLOCK + 2)
    top = tl.load(at, mask=live, other=-1e30)
    total = tl.load(at + 1, mask=live, other=0)
    highest = tl.max(top, axis=0)
    share = tl.exp2(top - highest)
    acc = tl.load(at[:, None] + 2 + dims[None, :], mask=live[:, None], other=0)
    every = tl.sum(total * share, axis=0)
    safe = tl.where(every > 0, every, 1.0)
    result = tl.sum(acc * share[:, None], axis=0) / safe
    result = hadamard(result[None, :], ROTATION, 1, BLOCK)
    n = (head * D + dims)[None, :]
    tl.store(out + n % 8 * S + n // 8, result, mask=(dims < D)[None, :])
    if lse is not None:
        tl.store(lse + head, highest + tl.log2(safe))


@jit
def _attention_mass(  # type: ignore[no-untyped-def]
    q, keys, key_scales, positions, starts, used, token_positions, lse, mass,
    T, H, KH, D, used_stride, width, window, scale, cap, first_token, keep,
    KV_BITS: tl.constexpr, OWN: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = H // KH
    rows = T * group
    head = tl.program_id(1)
    base = tl.load(starts + head).to(tl.int64)
    slot = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = slot < tl.load(used + head * used_stride)
    dims = tl.arange(0, BLOCK)
    mine = tl.zeros((TILE,), tl.float32)
    for first in range(first_token * group, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        queries = _load_queries(q, row, rows, head, group, H, D, dims)
        largest = tl.max(tl.abs(queries), axis=1)
        largest = tl.where(largest > 1e-30, largest, 1.0)
        low, high = _row_range(token_positions, row, rows, group, window)
        s = _scores(
            (queries / largest[:, None]).to(tl.float16), keys, key_scales, positions, slot, live,
            base, low, high, width, dims, (largest * scale)[:, None], cap, KV_BITS, OWN,
        )  # fmt: skip
        at = (row // group).to(tl.int64) * H + head * group + row % group
        every = tl.load(lse + at, mask=row < rows, other=0)
        mine += tl.sum(tl.exp2(s - every[:, None]), axis=0)
    old = tl.load(mass + base + slot, mask=live, other=0)
    tl.store(mass + base + slot, old * keep + mine, mask=live)


def attention(
    q: torch.Tensor,
    cache: Slots,
    out: torch.Tensor,
    *,
    token_positions: torch.Tensor,
    window: int,
    scale: float,
    softcap: float = 0.0,
    ordered: bool = False,
    partials: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> None:
    """softmax(softcap(scale * q k^T)) v over the slots that each query may see.

    A query at position p sees slots with positions p - window + 1 .. p, all up to p where window is
    0; one that sees none gets zeros.

    Args:
        q: float32 [T, H, D], as `rope_append` left them.
        cache: the layer's slots, those of the queries included.
        out: float32 [T, 8, plane_stride(H * D)], in plane order.
        token_positions: int32 [T], of the queries.
        window: see above.
        scale: scale of the products.
        softcap: c tanh(x / c) of the scaled products; 0 is none.
        ordered: slot i holds position i or nothing, so that slots no query sees are passed over.
        partials: float32 [H, splits, block + 2] from `partials_shape` to share one token's slots
            out; None for not.
        lse: float32 [T, H], gets log2 of each row's sum of exponentials, for `attention_mass`.

    Raises:
        ShapeError: arrays do not go together.
    """
    T, H, KH, D = _check_queries(q, cache, token_positions, lse)
    S, block = plane_stride(H * D), max(16, next_power(cache.width))
    check("out", out, torch.float32, T, PLANES, S)
    splits = 1
    if partials is not None:
        check("partials", partials, torch.float32, H, -1, block + 2)
        splits = partials.shape[1]
        if T != 1 or splits > MAX_SPLITS or not partials.is_contiguous():
            raise ShapeError(f"{splits} splits of {T} tokens, expected at most {MAX_SPLITS} of one")
    rows = T * (H // KH)
    ROWS = 16 if rows <= 16 else 64
    tile = 64 if block <= 128 else 32
    # So that registers suffice (seen in the code for compute capability 9.0).
    warps = 8 if ROWS * block * (2 if cache.bits == 4 else 1) > 8192 else 4
    launch(
        _attention, (-(-rows // ROWS), KH, splits), q, cache.keys, cache.values, cache.key_scales,
        cache.value_scales, cache.positions, cache.starts, cache.used, token_positions, out, lse,
        partials, T, H, KH, D, S, cache.used_stride, cache.width, int(window), float(scale),
        softcap or None, KV_BITS=cache.bits, ROTATION=cache.rotation_log, OWN=cache.own_positions,
        SPLITS=splits, ORDERED=ordered, ROWS=ROWS, TILE=tile, BLOCK=block, warps=warps,
    )  # fmt: skip
    if splits > 1:
        launch(
            _attention_merge, (H,), partials, out, lse, D, S,
            ROTATION=cache.rotation_log, SPLITS=splits,
            SPLITS_BLOCK=next_power(splits), BLOCK=block,
        )  # fmt: skip


def attention_mass(
    q: torch.Tensor,
    cache: Slots,
    lse: torch.Tensor,
    *,
    token_positions: torch.Tensor,
    window: int,
    scale: float,
    softcap: float = 0.0,
    first: int = 0,
    keep: float = 1.0,
) -> None:
    """mass[s] = keep * mass[s] + sum over tokens t >= first and the head's rows of p[t, s].

    Args:
        q: as for `attention`, like all that is not named here.
        cache: likewise; its `mass` is what changes, up to what is used of each head.
        lse: what `attention` gave.
        token_positions: as above.
        window: as above.
        scale: as above.
        softcap: as above.
        first: tokens before this one do not count.
        keep: 1 for a running sum, 0 for these tokens alone.

    Raises:
        ShapeError: arrays do not go together.
    """
    T, H, KH, D = _check_queries(q, cache, token_positions, lse)
    if cache.mass is None or not 0 <= first < T:
        raise ShapeError(f"no mass is kept, or it is of tokens {first}..{T - 1}")
    block = max(16, next_power(cache.width))
    launch(
        _attention_mass, (-(-cache.span // 64), KH), q, cache.keys, cache.key_scales,
        cache.positions, cache.starts, cache.used, token_positions, lse, cache.mass, T, H, KH, D,
        cache.used_stride, cache.width, int(window), float(scale), softcap or None, first,
        float(keep), KV_BITS=cache.bits, OWN=cache.own_positions, ROWS=16, TILE=64, BLOCK=block,
    )  # fmt: skip


def partials_shape(heads: int, head_dim: int, splits: int) -> tuple[int, int, int]:
    """Shape of `partials` for one token."""
    width = -(-head_dim // 16) * 16
    return heads, splits, max(16, next_power(width)) + 2


def _check_queries(
    q: torch.Tensor, cache: Slots, token_positions: torch.Tensor, lse: torch.Tensor | None
) -> tuple[int, int, int, int]:
    T, H, D = q.shape
    check("q", q, torch.float32, -1, -1, cache.head_dim)
    check("token_positions", token_positions, torch.int32, T)
    if lse is not None:
        check("lse", lse, torch.float32, T, H)
    if H % cache.kv_heads or not q.is_contiguous():
        raise ShapeError(f"{H} heads, expected a multiple of {cache.kv_heads} key heads")
    return T, H, cache.kv_heads, D
