"""The instruction that keeps a part's last queries for a cache that chooses what to forget.

No numba here. The queries are taken before their rotation, so that they can be turned to any
position later.
"""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, instruction

KEEP_Q, KEEP_LAYER, KEEP_HEADS, KEEP_HEAD_DIM = range(2, 6)


def keep_queries(
    kernels: Addresses, *, q: int, layer: int, heads: int, head_dim: int
) -> Instruction:
    """Copy each part's last queries into the ring that it names.

    Heads are shared out as by `rms_norm` over heads and by `rope`, so nothing waits on either side.

    Args:
        kernels: the loaded kernels.
        q: address of float32 [T, H, D].
        layer: which layer's ring.
        heads: H.
        head_dim: D.

    Raises:
        ShapeError: a size is below 1.
    """
    if heads < 1 or head_dim < 1 or layer < 0:
        raise ShapeError(f"layer {layer}, {heads} heads of {head_dim}, expected at least 1 each")
    return instruction(kernels.address("keep_queries"), q, layer, heads, head_dim)
