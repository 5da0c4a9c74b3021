"""y = x W^T with the artefact's 2, 3, 4 and 8 bits, and with floats.

    y[t, n] = sum_k x[t, k] * (code[n, k] - zero[n, k // g]) * scale[n, k // g]

One token (`_rows`) is bound by memory: a program takes some rows and keeps one partial sum for
every word of its tile, in float32, from weights and inputs that are exact; the input's norm is
taken in passing, since every program reads the whole input anyhow:

    y = W (x * weight) / sqrt(mean(x^2) + eps)

More tokens (`_tiles`) are bound by arithmetic: weights become float16 and are multiplied on tensor
cores with inputs from `norm.to_half`; sums are float32. Float32 inputs give float32 products.

Both end alike (`_finish`): bias, a gate, a factor, a cap, added to what is there, in plane order.
Layouts: `jit.py`, `linear.py`, `codes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.activation import KINDS, activate, softcap
from edgetok.kernels_gpu.codes import code, load_words, load_zeros, middle, spread, unshift
from edgetok.kernels_gpu.jit import PLANES, check, jit, launch, next_power, plane_stride
from edgetok.kernels_gpu.linear import Linear
from edgetok.kernels_gpu.tuning import RowConfig, TileConfig, row_config, tile_config


@jit
def _row_products(  # type: ignore[no-untyped-def]
    x, norm, weight, high, levels, scales, zeros, rows, live_rows, G, S,
    BITS: tl.constexpr, GROUP_WORDS: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Sums [BN] of one token, and the sum of its squares where there is a norm."""
    BG: tl.constexpr = BW // GROUP_WORDS
    words = G * GROUP_WORDS
    acc = tl.zeros((BN, BW), tl.float32)
    squares = tl.zeros((BW,), tl.float32)
    for g0 in range(0, G, BG):
        word = g0 * GROUP_WORDS + tl.arange(0, BW)
        live = word < words
        both = live_rows[:, None] & live[None, :]
        part = tl.zeros((BN, BW), tl.float32)
        total = tl.zeros((BW,), tl.float32)
        if BITS != 16:
            q, h = load_words(weight, high, rows[:, None] * words + word[None, :], both, BITS)
        for p in tl.static_range(8):
            xp = tl.load(x + p * S + word, mask=live, other=0)
            if norm is not None:
                squares += xp * xp
                xp *= tl.load(norm + p * S + word, mask=live, other=0)
            if BITS == 16:
                w = tl.load(
                    weight + (rows[:, None] * 8 + p) * S + word[None, :], mask=both, other=0
                )
                part += xp[None, :] * w.to(tl.float32)
            else:
                total += xp
                part += (xp * unshift(levels, p, BITS))[None, :] * code(q, h, levels, p, BITS)
        if BITS == 16:
            acc += part
        else:
            group = g0 + tl.arange(0, BG)
            some = live_rows[:, None] & (group < G)[None, :]
            scale = tl.load(scales + rows[:, None] * G + group[None, :], mask=some, other=0)
            scale = spread(scale.to(tl.float32), BN, BG, GROUP_WORDS)
            if zeros is not None:
                zero = spread(load_zeros(zeros, rows, group, G, some, BITS), BN, BG, GROUP_WORDS)
                acc += (part - zero * total[None, :]) * scale
            else:
                acc += (part - total[None, :] * middle(levels, BITS)) * scale
    return tl.sum(acc, axis=1), tl.sum(squares, axis=0)


@jit
def _rows(  # type: ignore[no-untyped-def]
    x, norm, weight, high, levels, scales, zeros, bias, y, N, G, S, K, eps, factor, cap, y_stride,
    BITS: tl.constexpr, GROUP_WORDS: tl.constexpr, GATE: tl.constexpr, ADD: tl.constexpr,
    TO_PLANES: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    live = n < N
    rows = n.to(tl.int64)
    out, squares = _row_products(
        x, norm, weight, high, levels, scales, zeros, rows, live, G, S, BITS, GROUP_WORDS, BN, BW
    )  # fmt: skip
    inverse = 1.0
    if norm is not None:
        inverse = 1.0 / tl.sqrt(squares / K + eps)
        out *= inverse
    if bias is not None:
        out += tl.load(bias + n, mask=live, other=0)
    if GATE != 0:
        up, squares = _row_products(
            x, norm, weight, high, levels, scales, zeros, rows + N, live, G, S,
            BITS, GROUP_WORDS, BN, BW,
        )  # fmt: skip
        up *= inverse
        if bias is not None:
            up += tl.load(bias + N + n, mask=live, other=0)
        out = activate(out, GATE) * up
    out *= factor
    if cap is not None:
        out = softcap(out, cap)
    at = y + n
    if TO_PLANES:
        at = y + (n % 8) * y_stride + n // 8
    if ADD:
        out += tl.load(at, mask=live, other=0)
    tl.store(at, out, mask=live)


@jit
def _tile_products(  # type: ignore[no-untyped-def]
    x, weight, high, levels, scales, zeros, rows, live_rows, t, live_t, G, S,
    BITS: tl.constexpr, GROUP_WORDS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Sums [BN, BM]; weights stand left, where tensor cores take them from registers."""
    BG: tl.constexpr = BW // GROUP_WORDS
    words = G * GROUP_WORDS
    kind = x.dtype.element_ty
    acc = tl.zeros((BN, BM), tl.float32)
    for g0 in range(0, G, BG):
        word = g0 * GROUP_WORDS + tl.arange(0, BW)
        live = word < words
        both = live_rows[:, None] & live[None, :]
        if BITS != 16:
            q, h = load_words(weight, high, rows[:, None] * words + word[None, :], both, BITS)
            group = g0 + tl.arange(0, BG)
            some = live_rows[:, None] & (group < G)[None, :]
            scale = tl.load(scales + rows[:, None] * G + group[None, :], mask=some, other=0)
            scale = spread(scale.to(tl.float32), BN, BG, GROUP_WORDS)
            if zeros is not None:
                zero = spread(load_zeros(zeros, rows, group, G, some, BITS), BN, BG, GROUP_WORDS)
            else:
                zero = tl.full((BN, BW), 1.0, tl.float32) * middle(levels, BITS)
        for p in tl.static_range(8):
            xp = tl.load(
                x + (t[None, :] * 8 + p) * S + word[:, None],
                mask=live_t[None, :] & live[:, None],
                other=0,
            )
            if BITS == 16:
                w = tl.load(
                    weight + (rows[:, None] * 8 + p) * S + word[None, :], mask=both, other=0
                )
            else:
                w = (code(q, h, levels, p, BITS) * unshift(levels, p, BITS) - zero) * scale
            acc = tl.dot(w.to(kind), xp, acc, input_precision="ieee")
    return acc


@jit
def _tiles(  # type: ignore[no-untyped-def]
    x, x_scale, weight, high, levels, scales, zeros, bias, y, T, N, G, S, factor, cap, token_stride,
    y_stride,
    BITS: tl.constexpr, GROUP_WORDS: tl.constexpr, GATE: tl.constexpr, ADD: tl.constexpr,
    TO_PLANES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    live, live_t = n < N, m < T
    rows, t = n.to(tl.int64), m.to(tl.int64)
    out = _tile_products(
        x, weight, high, levels, scales, zeros, rows, live, t, live_t, G, S,
        BITS, GROUP_WORDS, BM, BN, BW,
    )  # fmt: skip
    row_scale = tl.load(x_scale + t, mask=live_t, other=0)[None, :]
    out *= row_scale
    if bias is not None:
        out += tl.load(bias + n, mask=live, other=0)[:, None]
    if GATE != 0:
        up = _tile_products(
            x, weight, high, levels, scales, zeros, rows + N, live, t, live_t, G, S,
            BITS, GROUP_WORDS, BM, BN, BW,
        )  # fmt: skip
        up *= row_scale
        if bias is not None:
            up += tl.load(bias + N + n, mask=live, other=0)[:, None]
        out = activate(out, GATE) * up
    out *= factor
    if cap is not None:
        out = softcap(out, cap)
    at = n[:, None] + t[None, :] * token_stride
    if TO_PLANES:
        at = (n % 8)[:, None] * y_stride + (n // 8)[:, None] + t[None, :] * token_stride
    both = live[:, None] & live_t[None, :]
    if ADD:
        out += tl.load(y + at, mask=both, other=0)
    tl.store(y + at, out, mask=both)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """The operation on the sums: y (+)= softcap(factor * f(sums + bias)).

    Attributes:
        gate: activation of the first half of the rows, which then multiplies the second half;
            "" for none.
        factor: see above.
        cap: cap of `softcap`; 0 is none.
        add: to what y holds.
        planes: y is in plane order.
    """

    gate: str = ""
    factor: float = 1.0
    cap: float = 0.0
    add: bool = False
    planes: bool = False


PLAIN = Epilogue()


def matmul_nbits(
    x: torch.Tensor,
    linear: Linear,
    y: torch.Tensor,
    epilogue: Epilogue = PLAIN,
    *,
    x_scale: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    config: RowConfig | TileConfig | None = None,
) -> None:
    """Multiply one token (without `x_scale`) or many.

    Args:
        x: [T, 8, plane_stride(K)]: float32 with T = 1; with `x_scale` float16 or float32.
        linear: N rows; with a gate 2 N.
        y: float32 [T, N] or in plane order [T, 8, plane_stride(N)].
        epilogue: what happens to the sums.
        x_scale: float32 [T], what each token's inputs were divided by.
        norm: float32 [8, plane_stride(K)]: weight of the RMS norm of x; T = 1 only.
        eps: epsilon of the norm.
        config: tile sizes; None for those of `tuning.py`.

    Raises:
        ShapeError: arrays do not go together.
    """
    T, S = len(x), linear.stride
    N = linear.N
    if epilogue.gate:
        if epilogue.gate not in KINDS or N % 2:
            raise ShapeError(f"a gate {epilogue.gate!r} over {N} rows")
        N //= 2
    if x_scale is None:
        check("x", x, torch.float32, 1, PLANES, S)
    else:
        check("x", x, (torch.float16, torch.float32), -1, PLANES, S)
        check("x_scale", x_scale, torch.float32, T)
        if norm is not None:
            raise ShapeError("inputs that have a scale are normed already")
    if norm is not None:
        check("norm", norm, torch.float32, PLANES, S)
    y_stride = plane_stride(N)
    if epilogue.planes:
        check("y", y, torch.float32, T, PLANES, y_stride)
    else:
        check("y", y, torch.float32, T, N)
    if not x.is_contiguous():
        raise ShapeError(f"x has strides {x.stride()}, expected tokens one after the other")
    constants = {
        "BITS": linear.bits,
        "GROUP_WORDS": linear.group_words,
        "GATE": KINDS.get(epilogue.gate, 0),
        "ADD": epilogue.add,
        "TO_PLANES": epilogue.planes,
    }
    weights = (
        linear.weight, linear.high, linear.levels, linear.scales, linear.zeros, linear.bias,
    )  # fmt: skip
    if x_scale is None:
        row = (
            config if isinstance(config, RowConfig) else row_config(linear, x.device.type != "cpu")
        )
        launch(
            _rows, (-(-N // row.rows),), x, norm, *weights, y, N, linear.groups, S, linear.K,
            float(eps), float(epilogue.factor), epilogue.cap or None, y_stride,
            **constants, BN=row.rows, BW=max(row.words, linear.group_words), warps=row.warps,
        )  # fmt: skip
        return
    tile = (
        config if isinstance(config, TileConfig) else tile_config(linear, T, x.device.type != "cpu")
    )
    launch(
        _tiles, (-(-N // tile.rows), -(-T // tile.tokens)), x, x_scale, *weights, y, T, N,
        linear.groups, S, float(epilogue.factor), epilogue.cap or None, y.stride(0), y_stride,
        **constants, BM=min(tile.tokens, max(16, next_power(T))), BN=tile.rows,
        BW=max(tile.words, linear.group_words), warps=tile.warps,
    )  # fmt: skip
