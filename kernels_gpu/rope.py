"""Queries, keys and values of new tokens: norm, rotation, and where they go.

    norm:  x / sqrt(mean(x^2) + eps) * weight over a head's dims, where there is a weight
    rope:  (a, b) = (x[i], x[i + R / 2]);  x[i] = a cos - b sin;  x[i + R / 2] = b cos + a sin

for i < R / 2 of each head (arXiv 2104.09864, in the order of Hugging Face checkpoints); dims from R
on stay. One launch does all heads: queries go to their array, keys and values into the slots of the
cache (`kv_append.py`); for slots of 4 and 8 bits all three are rotated by `hadamard` last, keys and
queries changed by the cache's constants before.
"""

from __future__ import annotations

import torch
import triton.language as tl

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.hadamard import hadamard
from edgetok.kernels_gpu.jit import check, jit, launch, next_power
from edgetok.kernels_gpu.kv_append import Slots, store_slots


@jit
def _head(  # type: ignore[no-untyped-def]
    x, norm, cos, sin, live_rows, dims, D, R, eps, ROPE: tl.constexpr
):
    """One head's values of some tokens, normed and rotated; zero behind its end."""
    live = live_rows & (dims < D)
    v = tl.load(x + dims, mask=live, other=0)
    other = tl.where(dims < R // 2, dims + R // 2, dims - R // 2)
    turns = live_rows & (dims < R)
    w = tl.load(x + other, mask=turns, other=0)
    if norm is not None:
        inverse = 1.0 / tl.sqrt(tl.sum(v * v, axis=1) / D + eps)[:, None]
        v *= inverse * tl.load(norm + dims, mask=dims < D, other=0)
        w *= inverse * tl.load(norm + other, mask=dims < R, other=0)
    rotated = v
    if ROPE:
        pair = tl.where(dims < R // 2, dims, other)
        c = tl.load(cos + pair, mask=turns, other=1)
        s = tl.load(sin + pair, mask=turns, other=0)
        s = tl.where(dims < R // 2, -s, s)
        rotated = tl.where(turns, v * c + w * s, v)
    return v, rotated


@jit
def _rope_append(  # type: ignore[no-untyped-def]
    qkv, q, q_norm, k_norm, cos, sin, token_positions, token_slots,
    keys, values, key_scales, value_scales, positions, starts, mass, queries, query_row,
    centre, factor, query_factor,
    T, H, KH, D, R, eps, row_stride, slot_stride, width, W,
    ROPE: tl.constexpr, KV_BITS: tl.constexpr, ROTATION: tl.constexpr, OWN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    live = token < T
    live_rows, t = live[:, None], token[:, None].to(tl.int64)
    dims = tl.arange(0, BLOCK)[None, :]
    x = qkv + t * row_stride + head * D
    cos_t, sin_t = cos + t * (R // 2), sin + t * (R // 2)
    if head < H:
        plain, v = _head(x, q_norm, cos_t, sin_t, live_rows, dims, D, R, eps, ROPE)
        if query_factor is not None:
            v *= tl.load(query_factor + head // (H // KH) * D + dims, mask=dims < D, other=0)
        v = hadamard(v, ROTATION, ROWS, BLOCK)
        tl.store(q + (t * H + head) * D + dims, v, mask=live_rows & (dims < D))
        if queries is not None:
            row = (tl.load(query_row) + t) % W
            kept = live_rows & (t + W >= T) & (dims < D)
            tl.store(queries + (row * H + head) * D + dims, plain, mask=kept)
    else:
        mine = (head - H) % KH
        slot = tl.load(token_slots + mine * slot_stride + token, mask=live, other=0).to(tl.int64)
        at = tl.load(starts + mine) + slot
        if head < H + KH:
            where = tl.load(token_positions + token, mask=live, other=0)
            if OWN:
                tl.store(positions + at, where, mask=live)
            elif head == H:
                tl.store(positions + slot, where, mask=live)
            if mass is not None:
                tl.store(mass + at, 0.0, mask=live)
            plain, v = _head(x, k_norm, cos_t, sin_t, live_rows, dims, D, R, eps, ROPE)
            if factor is not None:
                v -= tl.load(centre + mine * D + dims, mask=dims < D, other=0)
                v *= tl.load(factor + mine * D + dims, mask=dims < D, other=0)
            v = hadamard(v, ROTATION, ROWS, BLOCK)
            store_slots(keys, key_scales, at, live, v, D, width, KV_BITS, ROWS, BLOCK)
        else:
            v = tl.load(x + dims, mask=live_rows & (dims < D), other=0)
            v = hadamard(v, ROTATION, ROWS, BLOCK)
            store_slots(values, value_scales, at, live, v, D, width, KV_BITS, ROWS, BLOCK)


def rope_append(
    qkv: torch.Tensor,
    q: torch.Tensor,
    cache: Slots,
    *,
    token_positions: torch.Tensor,
    token_slots: torch.Tensor,
    rope: tuple[torch.Tensor, torch.Tensor] | None,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
    query_row: torch.Tensor | None = None,
) -> None:
    """Norm and rotate queries and keys; store keys and values.

    What `cache.mass` has of the slots becomes 0; the last tokens' queries are kept, normed but not
    rotated, in `cache.queries`, row by row around.

    Args:
        qkv: float32 [T, (H + 2 KH) D]: queries, keys and values of each token.
        q: float32 [T, H, D], gets the queries as `attention` takes them.
        cache: the layer's slots.
        token_positions: int32 [T].
        token_slots: int32 [KH, T], or [1, T] for all heads: the slot of each token, counted in the
            head's range; the caller has checked it.
        rope: cos and sin, float32 [T, R / 2] each; None to leave queries and keys as they are.
        norms: float32 [D] each for queries and keys, or None.
        eps: epsilon of the norms.
        query_row: int32 [1], of `cache.queries` for the first token; None where it is.

    Raises:
        ShapeError: arrays do not go together.
    """
    T, H, D = q.shape
    KH = cache.kv_heads
    check("q", q, torch.float32, -1, -1, cache.head_dim)
    check("qkv", qkv, torch.float32, T, (H + 2 * KH) * D)
    check("token_positions", token_positions, torch.int32, T)
    check("token_slots", token_slots, torch.int32, 1 if len(token_slots) == 1 else KH, T)
    if cache.queries is not None:
        check("queries", cache.queries, torch.float32, -1, H, D)
        if query_row is None:
            raise ShapeError("queries are kept, but no row is given for them")
        check("query_row", query_row, torch.int32, 1)
    if H % KH or not q.is_contiguous():
        raise ShapeError(f"{H} heads with strides {q.stride()}, expected a multiple of {KH}")
    half = 0
    if rope is not None:
        half = rope[0].shape[1]
        for name, part in zip(("cos", "sin"), rope, strict=True):
            check(name, part, torch.float32, T, half)
            if not part.is_contiguous():
                raise ShapeError(f"rows of {name} must follow each other")
        if 2 * half > D:
            raise ShapeError(f"{2 * half} of {D} dims rotate")
    cos, sin = rope if rope is not None else (q, q)
    q_norm, k_norm = norms if norms is not None else (None, None)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            check(name, weight, torch.float32, D)
    ROWS = 1 if T == 1 else 16
    known = cache.constants
    constants: tuple[torch.Tensor | None, ...] = (None, None, None)
    if known is not None:
        constants = known.centre, known.factor, known.query_factor
    launch(
        _rope_append, (-(-T // ROWS), H + 2 * KH), qkv, q, q_norm, k_norm, cos, sin,
        token_positions, token_slots, cache.keys, cache.values, cache.key_scales,
        cache.value_scales, cache.positions, cache.starts, cache.mass, cache.queries, query_row,
        *constants, T, H, KH, D, 2 * half, float(eps), qkv.stride(0),
        token_slots.stride(0) if len(token_slots) > 1 else 0, cache.width,
        1 if cache.queries is None else len(cache.queries),
        ROPE=rope is not None, KV_BITS=cache.bits, ROTATION=cache.rotation_log,
        OWN=cache.own_positions,
        ROWS=ROWS, BLOCK=next_power(cache.width), warps=1 if T == 1 else 4,
    )  # fmt: skip
