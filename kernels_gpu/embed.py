"""Rows of an embedding table: x[t] = scale * table[tokens[t]], in plane order.

Quantised tables are read in the artefact's layout; each value is (code - zero) * scale, exact in
float32 before the last factor.
"""

from __future__ import annotations

import torch
import triton.language as tl

from edgetok.kernels_gpu.codes import code, load_words, load_zeros, middle, unshift
from edgetok.kernels_gpu.jit import PLANES, check, jit, launch
from edgetok.kernels_gpu.linear import Linear


@jit
def _embed(  # type: ignore[no-untyped-def]
    tokens, weight, high, levels, scales, zeros, x, N, G, S, K, factor,
    BITS: tl.constexpr, GROUP_WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(tokens + t).to(tl.int64)
    # Nothing is read for a token that the table does not have.
    words = tl.where((row >= 0) & (row < N), G * GROUP_WORDS, 0)
    live = word < words
    if BITS != 16:
        q, h = load_words(
            weight, high, (row * (G * GROUP_WORDS) + word)[None, :], live[None, :], BITS
        )
        group = word // GROUP_WORDS
        scale = tl.load(scales + row * G + group, mask=live, other=0).to(tl.float32)[None, :]
        if zeros is not None:
            rows = row + tl.zeros((1,), tl.int64)
            zero = load_zeros(zeros, rows, group, G, live[None, :], BITS)
        else:
            zero = tl.full((1, BLOCK), 1.0, tl.float32) * middle(levels, BITS)
    for p in tl.static_range(8):
        inside = live & (8 * word + p < K)
        if BITS == 16:
            at = weight + (row * 8 + p) * S + word
            v = tl.load(at, mask=inside, other=0).to(tl.float32)[None, :]
        else:
            v = (code(q, h, levels, p, BITS) * unshift(levels, p, BITS) - zero) * scale
        v = tl.where(inside[None, :], v * factor, 0.0)
        tl.store(x + ((t * 8 + p) * S + word)[None, :], v, mask=(word < S)[None, :])


def embed(tokens: torch.Tensor, table: Linear, x: torch.Tensor, scale: float = 1.0) -> None:
    """Look up rows; a token that is not in the table gives zeros.

    Args:
        tokens: int32 [T].
        table: N tokens of K values.
        x: float32 [T, 8, plane_stride(K)].
        scale: multiplies every value.

    Raises:
        ShapeError: arrays do not go together.
    """
    T, S = len(tokens), table.stride
    check("tokens", tokens, torch.int32, -1)
    check("x", x, torch.float32, T, PLANES, S)
    launch(
        _embed, (T, -(-S // 128)), tokens, table.weight, table.high, table.levels, table.scales,
        table.zeros, x, table.N, table.groups, S, table.K, float(scale),
        BITS=table.bits, GROUP_WORDS=table.group_words, BLOCK=128,
    )  # fmt: skip
