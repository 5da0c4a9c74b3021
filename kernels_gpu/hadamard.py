"""The Walsh-Hadamard transform of each head's dims, for caches of 4 and 8 bits, as on the CPU.

    x = H x / sqrt(n), H[i, j] = (-1)^(number of bits that i and j share)

over blocks of n = 2^log dims. It is its own inverse and leaves products of two rotated vectors as
they are (arXiv 2404.00456). Kernels that hold a head's values rotate them as they store them.
"""

from __future__ import annotations

import triton.language as tl

from edgetok.kernels_gpu.jit import jit


def hadamard_log(head_dim: int) -> int:
    """Return the logarithm of the largest power of two that divides head_dim."""
    return (head_dim & -head_dim).bit_length() - 1


@jit
def hadamard(  # type: ignore[no-untyped-def]
    x, LOG: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Turn float32 x [ROWS, BLOCK] along its rows; as it is at LOG = 0."""
    dims = tl.broadcast_to(tl.arange(0, BLOCK)[None, :], (ROWS, BLOCK))
    for bit in tl.static_range(LOG):
        partner = tl.gather(x, dims ^ (1 << bit), 1)
        x = tl.where((dims & (1 << bit)) != 0, partner - x, x + partner)
    scale: tl.constexpr = 0.5 ** (LOG / 2)
    return x * scale
