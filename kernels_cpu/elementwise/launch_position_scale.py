"""The instruction of a factor that grows with a token's position. No numba here."""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, double_bits, instruction

(
    GROWTH_X,
    GROWTH_POSITIONS,
    GROWTH_HEADS,
    GROWTH_HEAD_DIM,
    GROWTH_FACTOR,
    GROWTH_EVERY,
) = range(2, 8)


def position_scale(
    kernels: Addresses,
    *,
    x: int,
    positions: int,
    heads: int,
    head_dim: int,
    growth: float,
    every: int,
    wait: bool,
) -> Instruction:
    """x = (1 + growth * log(1 + floor(position / every))) * x, heads shared out as by `rope`.

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, heads, head_dim].
        positions: address of int32 [T].
        heads: heads a token.
        head_dim: dims of a head.
        growth: see above.
        every: see above, tokens.
        wait: see `instruction`.

    Raises:
        ShapeError: a size is below 1.
    """
    if heads < 1 or head_dim < 1 or every < 1:
        raise ShapeError(
            f"{heads} heads of {head_dim}, every {every} tokens: expected at least 1 each"
        )
    args = (x, positions, heads, head_dim, double_bits(growth), every)
    return instruction(kernels.address("position_scale"), *args, wait=wait)
