"""An initialisation that already looks things up, so that training need not discover how.

In-context recall rests on two heads in succession: one that carries the previous token's content
to each position, one that looks for the position whose previous token equals the current token
and says what stands there. From random weights they had not appeared after 3 M tokens here, so
they are put in place before the first step; every weight is trained from there on.

    layer 0, heads 0, 1: attend 1 and 2 tokens back, by position alone
        q.k = sum_i w cos(theta_i (s - t + n)),  from a constant in every embedding
    layer 1, heads 0, 1: content(t) . previous content(s); heads 2, 3: the same over two tokens
        in the slowest RoPE pairs, which hardly turn within the context
    layer 1 values are written back as they came, which the tied output reads as their token
"""

from __future__ import annotations

import torch
from model import Decoder
from torch import Tensor

_CONSTANT = 0.32  # in residual dimension 0 of every token
_STD = 0.04  # of the content, in dimensions 1..159
_CONTENT, _PREVIOUS, _BEFORE = slice(1, 160), slice(160, 208), slice(208, 256)
_CODE = 48  # dimensions of the code that is carried back
_FAST = 14  # RoPE pairs that say where; the slow ones, from _SLOW on, say what
_SLOW = 18
_SHARP_WHERE, _SHARP_WHAT = 1.0, 2.2
_COPY_GAIN = 0.07


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0].T


@torch.no_grad()
def install(model: Decoder, seed: int = 0) -> None:
    """Write the two layers' heads and the embedding in place."""
    c = model.c
    d, h, kh = c.head_dim, c.num_attention_heads, c.num_key_value_heads
    g = torch.Generator().manual_seed(seed)
    model.embed.zero_()
    model.embed[:, 0] = _CONSTANT
    content = model.embed[:, _CONTENT]
    content.copy_(torch.randn(content.shape, generator=g) * _STD)
    theta = c.rope_theta ** (-torch.arange(0, d, 2).float() / d)
    code = _orthonormal(_CODE, 159, g)
    first, second = model.layers[0], model.layers[1]

    def rows(head: int) -> slice:
        return slice(head * d, (head + 1) * d)

    # Layer 0: where.
    qkv, out = first.qkv.weight, first.out.weight
    half = d // 2
    for back, to in ((1, _PREVIOUS), (2, _BEFORE)):
        head = back - 1
        q = torch.zeros(d, c.hidden_size)
        q[:_FAST, 0] = (theta[:_FAST] * back).cos() * _SHARP_WHERE
        q[half : half + _FAST, 0] = -(theta[:_FAST] * back).sin() * _SHARP_WHERE
        qkv[rows(head)] = q
        out[:, rows(head)] = 0
        out[to, head * d : head * d + _CODE] = torch.eye(_CODE) * _STD
    k = torch.zeros(d, c.hidden_size)
    k[:_FAST, 0] = _SHARP_WHERE
    qkv[rows(h)] = k
    v = torch.zeros(d, c.hidden_size)
    v[:_CODE, _CONTENT] = code
    qkv[rows(h + kh)] = v

    # Layer 1: what. Slow pairs give 2 * (32 - 18) = 28 dimensions to match in.
    qkv, out = second.qkv.weight, second.out.weight
    slow = [*range(_SLOW, half), *range(half + _SLOW, d)]
    for group in range(2):
        q, k = torch.zeros(d, c.hidden_size), torch.zeros(d, c.hidden_size)
        for n, row in enumerate(slow):
            if group == 0 or n % 2:
                q[row, _CONTENT] = code[n]
                k[row, _PREVIOUS.start + n] = 1.0
            else:
                q[row, _PREVIOUS.start + n] = 1.0
                k[row, _BEFORE.start + n] = 1.0
        for head in (2 * group, 2 * group + 1):
            qkv[rows(head)] = q * _SHARP_WHAT
        qkv[rows(h + group)] = k * _SHARP_WHAT
        v = torch.zeros(d, c.hidden_size)
        v[:, _CONTENT] = _orthonormal(d, 159, g)
        qkv[rows(h + kh + group)] = v
        for head in (2 * group, 2 * group + 1):
            out[:, rows(head)] = v.T * _COPY_GAIN / 2
