"""Queries, keys and values of new tokens: norm, rotation, and where they go.

    norm:  x / sqrt(mean(x^2) + eps) * weight over a head's dims, where there is a weight
    rope:  (a, b) = (x[i], x[i + R / 2]);  x[i] = a cos - b sin;  x[i + R / 2] = b cos + a sin

for i < R / 2 of each head (arXiv 2104.09864, in the order of Hugging Face checkpoints); dims from R
on stay. One launch does all heads: queries go to their array, keys and values into the slots of the
cache (`kv_append.py`).
"""

from __future__ import annotations

import torch
import triton.language as tl

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.jit import check, jit, launch, next_power
from edgetok.kernels_gpu.kv_append import Slots, store_slot


@jit
def _head(  # type: ignore[no-untyped-def]
    x, norm, cos, sin, dims, D, R, eps, ROPE: tl.constexpr
):
    """One head's values, normed and turned; zero behind its end."""
    live = dims < D
    v = tl.load(x + dims, mask=live, other=0)
    other = tl.where(dims < R // 2, dims + R // 2, dims - R // 2)
    turns = dims < R
    w = tl.load(x + other, mask=turns, other=0)
    if norm is not None:
        inverse = 1.0 / tl.sqrt(tl.sum(v * v, axis=0) / D + eps)
        v *= inverse * tl.load(norm + dims, mask=live, other=0)
        w *= inverse * tl.load(norm + other, mask=turns, other=0)
    if ROPE:
        pair = tl.where(dims < R // 2, dims, other)
        c = tl.load(cos + pair, mask=turns, other=1)
        s = tl.load(sin + pair, mask=turns, other=0)
        s = tl.where(dims < R // 2, -s, s)
        v = tl.where(turns, v * c + w * s, v)
    return v


@jit
def _rope_append(  # type: ignore[no-untyped-def]
    qkv, q, q_norm, k_norm, cos, sin, token_positions, token_slots,
    keys, values, key_scales, value_scales, positions,
    H, KH, D, R, eps, row_stride, slots, width,
    ROPE: tl.constexpr, KV_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK)
    x = qkv + t * row_stride + head * D
    cos_t, sin_t = cos + t * (R // 2), sin + t * (R // 2)
    if head < H:
        v = _head(x, q_norm, cos_t, sin_t, dims, D, R, eps, ROPE)
        tl.store(q + (t * H + head) * D + dims, v, mask=dims < D)
    else:
        slot = tl.load(token_slots + t).to(tl.int64)
        if head < H + KH:
            if head == H:
                tl.store(positions + slot, tl.load(token_positions + t))
            v = _head(x, k_norm, cos_t, sin_t, dims, D, R, eps, ROPE)
            at = (head - H) * slots + slot
            store_slot(keys, key_scales, at, v, dims, width, KV_BITS)
        else:
            v = tl.load(x + dims, mask=dims < D, other=0)
            at = (head - H - KH) * slots + slot
            store_slot(values, value_scales, at, v, dims, width, KV_BITS)


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
) -> None:
    """Norm and turn queries and keys; store keys and values.

    Args:
        qkv: float32 [T, (H + 2 KH) D]: queries, keys and values of each token.
        q: float32 [T, H, D], gets the queries.
        cache: the layer's slots.
        token_positions: int32 [T].
        token_slots: int32 [T], the slot of each token; the caller has checked their range.
        rope: cos and sin, float32 [T, R / 2] each; None to leave queries and keys as they are.
        norms: float32 [D] each for queries and keys, or None.
        eps: of the norms.

    Raises:
        ShapeError: arrays do not go together.
    """
    T, H, D = q.shape
    KH = cache.kv_heads
    check("q", q, torch.float32, -1, -1, cache.head_dim)
    check("qkv", qkv, torch.float32, T, (H + 2 * KH) * D)
    check("token_positions", token_positions, torch.int32, T)
    check("token_slots", token_slots, torch.int32, T)
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
            raise ShapeError(f"{2 * half} of {D} dims turn")
    cos, sin = rope if rope is not None else (q, q)
    q_norm, k_norm = norms if norms is not None else (None, None)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            check(name, weight, torch.float32, D)
    launch(
        _rope_append, (T, H + 2 * KH), qkv, q, q_norm, k_norm, cos, sin, token_positions,
        token_slots, cache.keys, cache.values, cache.key_scales, cache.value_scales,
        cache.positions, H, KH, D, 2 * half, float(eps), qkv.stride(0), cache.slots, cache.width,
        ROPE=rope is not None, KV_BITS=cache.bits, BLOCK=next_power(cache.width), warps=1,
    )  # fmt: skip
