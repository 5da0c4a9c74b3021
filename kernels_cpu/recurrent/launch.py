"""Instructions of recurrent mixers, and the memory that they need in a cache. No numba here."""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, instruction

(
    CONV_GATE_IN,
    CONV_GATE_OUT,
    CONV_VALUE,
    CONV_WEIGHT,
    CONV_SIZE,
    CONV_TAPS,
    CONV_ROWS,
    CONV_LAYER,
) = range(2, 10)

MOST_TAPS = 4  # a kernel keeps them, and as many rows, in registers

# Rows of a convolution's history beside those that the next token needs: so many tokens can be
# taken back at any time. A draft has up to 15.
_SPARE_ROWS = 32


def history_rows(taps: int) -> int:
    """Return how many of the latest tokens a convolution's history holds."""
    return taps - 1 + _SPARE_ROWS


def short_conv(
    kernels: Addresses,
    *,
    gate_in: int,
    gate_out: int,
    value: int,
    weight: int,
    size: int,
    taps: int,
    layer: int,
    wait: bool,
) -> Instruction:
    """value = gate_out * causal_convolution(gate_in * value), channel by channel.

    What is convolved is kept in the cache's history of the layer, float32 [history_rows(taps),
    size], that of token t in row t % history_rows(taps).

    Args:
        kernels: the loaded kernels.
        gate_in: address of [T, size].
        gate_out: likewise.
        value: likewise.
        weight: address of [size, taps], the last of a token's own; memory for a vector follows.
        size: channels.
        taps: tokens that a result depends on.
        layer: index in the table of states (`PART_STATES`).
        wait: see `instruction`.

    Raises:
        ShapeError: a number is out of range.
    """
    if size < 1 or not 2 <= taps <= MOST_TAPS or layer < 0:
        raise ShapeError(f"{size} channels, {taps} taps, layer {layer}: out of range")
    args = (gate_in, gate_out, value, weight, size, taps, history_rows(taps), layer)
    return instruction(kernels.address("short_conv"), *args, wait=wait)
