"""Instructions of recurrent mixers, and the memory that they need in a cache. No numba here."""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, float_bits, instruction

(
    CONV_GATE_IN,
    CONV_GATE_OUT,
    CONV_VALUE,
    CONV_WEIGHT,
    CONV_SIZE,
    CONV_TAPS,
    CONV_ROWS,
    CONV_STATE,
    CONV_BIAS,
) = range(2, 11)

(
    GATES_BETA,
    GATES_DECAY,
    GATES_LOG_RATE,
    GATES_BIAS,
    GATES_HEADS,
) = range(2, 7)
(
    DELTA_SOURCE,
    DELTA_BETA,
    DELTA_DECAY,
    DELTA_RESULT,
    DELTA_KEY_HEADS,
    DELTA_VALUE_HEADS,
    DELTA_KEY_DIM,
    DELTA_VALUE_DIM,
    DELTA_SCALE,
    DELTA_ROWS,
    DELTA_STATE,
) = range(2, 13)
STEPS_VALUE, STEPS_BIAS, STEPS_HEADS = range(2, 5)
(
    SPACE_SOURCE,
    SPACE_STEPS,
    SPACE_RESULT,
    SPACE_LOG_RATE,
    SPACE_SKIP,
    SPACE_HEADS,
    SPACE_GROUPS,
    SPACE_HEAD_DIM,
    SPACE_STATE_DIM,
    SPACE_ROWS,
    SPACE_STATE,
) = range(2, 13)

MOST_TAPS = 8  # a kernel keeps them, and as many rows, in variables

# Rows of a convolution's history beside those that the next token needs: so many tokens can be
# taken back at any time. A draft has up to 15.
_SPARE_ROWS = 32

# States behind so many of the latest tokens are in a cache: all but one can be taken back at once.
# Each is as large as the keys and values of hundreds of tokens.
STATE_ROWS = 4
STATE_TILE = 32  # columns of a state that lie together, row by row, so that they stay in L1


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
    state: int,
    wait: bool,
    bias: int = 0,
) -> Instruction:
    """value = gate_out * causal_convolution(gate_in * value), channel by channel.

    Without gates, value = silu(causal_convolution(value) + bias). What is convolved is kept in the
    cache's history, float32 [history_rows(taps), size], that of token t in row
    t % history_rows(taps).

    Args:
        kernels: the loaded kernels.
        gate_in: address of [T, size]; 0 for no gates.
        gate_out: likewise.
        value: address of [T, size].
        weight: address of [size, taps], the last of a token's own; memory for a vector follows.
        size: channels.
        taps: tokens that a result depends on.
        state: index in the table of states (`PART_STATES`).
        wait: see `instruction`.
        bias: address of [size]; 0 for none. Not with gates.

    Raises:
        ShapeError: a number is out of range, or one gate is missing.
    """
    if size < 1 or not 2 <= taps <= MOST_TAPS or state < 0:
        raise ShapeError(f"{size} channels, {taps} taps, state {state}: out of range")
    if (gate_in == 0) != (gate_out == 0):
        raise ShapeError("one gate of a convolution, expected both or none")
    if gate_in and bias:
        raise ShapeError("gates and a bias of a convolution, expected gates alone")
    args = (gate_in, gate_out, value, weight, size, taps, history_rows(taps), state, bias)
    return instruction(kernels.address("short_conv"), *args, wait=wait)


def delta_gates(
    kernels: Addresses,
    *,
    beta: int,
    decay: int,
    log_rate: int,
    bias: int,
    heads: int,
    wait: bool,
) -> Instruction:
    """beta = sigmoid(beta), decay = -exp(log_rate) * softplus(decay + bias).

    Args:
        kernels: the loaded kernels.
        beta: address of [T, heads].
        decay: likewise.
        log_rate: address of [heads].
        bias: likewise.
        heads: see above.
        wait: see `instruction`.

    Raises:
        ShapeError: there are no heads.
    """
    if heads < 1:
        raise ShapeError(f"heads is {heads}, expected at least 1")
    args = (beta, decay, log_rate, bias, heads)
    return instruction(kernels.address("delta_gates"), *args, wait=wait)


def state_columns(value_heads: int, key_dim: int, value_dim: int) -> int:
    """Return the float32 of a state [value_heads, tiles, key_dim, STATE_TILE]."""
    return value_heads * -(-value_dim // STATE_TILE) * key_dim * STATE_TILE


def delta_rule(
    kernels: Addresses,
    *,
    source: int,
    beta: int,
    decay: int,
    result: int,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    state: int,
    wait: bool,
) -> Instruction:
    """Run the gated delta rule over each part's rows; see `recurrent/gated_delta.py`.

    The state behind token t is row t % STATE_ROWS of the cache's ring, float32
    [STATE_ROWS, state_columns].

    Args:
        kernels: the loaded kernels.
        source: address of [T, 2 * key_heads * key_dim + value_heads * value_dim]: q, k and v.
        beta: address of [T, value_heads].
        decay: likewise; logarithms.
        result: address of [T, value_heads * value_dim].
        key_heads: heads of q and k.
        value_heads: heads of v, a multiple of them.
        key_dim: of a head of q and k.
        value_dim: of a head of v.
        state: index in the table of states (`PART_STATES`).
        wait: see `instruction`.

    Raises:
        ShapeError: a number is out of range.
    """
    sizes = (key_heads, value_heads, key_dim, value_dim)
    if min(sizes) < 1 or value_heads % key_heads or state < 0:
        raise ShapeError(
            f"{key_heads} and {value_heads} heads of {key_dim} and {value_dim}, state {state}: out "
            "of range"
        )
    args = (source, beta, decay, result, *sizes, float_bits(key_dim**-0.5), STATE_ROWS, state)
    return instruction(kernels.address("delta_rule"), *args, wait=wait)


def state_steps(
    kernels: Addresses, *, value: int, bias: int, heads: int, wait: bool
) -> Instruction:
    """value = softplus(value + bias).

    Args:
        kernels: the loaded kernels.
        value: address of [T, heads].
        bias: address of [heads].
        heads: see above.
        wait: see `instruction`.

    Raises:
        ShapeError: there are no heads.
    """
    if heads < 1:
        raise ShapeError(f"heads is {heads}, expected at least 1")
    return instruction(kernels.address("state_steps"), value, bias, heads, wait=wait)


def state_space(
    kernels: Addresses,
    *,
    source: int,
    steps: int,
    result: int,
    log_rate: int,
    skip: int,
    heads: int,
    groups: int,
    head_dim: int,
    state_dim: int,
    state: int,
    wait: bool,
) -> Instruction:
    """Run Mamba2's recurrence over each part's rows; see `recurrent/state_space.py`.

    The state behind token t is row t % STATE_ROWS of the cache's ring, float32
    [STATE_ROWS, state_columns(heads, state_dim, head_dim)].

    Args:
        kernels: the loaded kernels.
        source: address of [T, heads * head_dim + 2 * groups * state_dim]: x, B and C.
        steps: address of [T, heads].
        result: address of [T, heads * head_dim].
        log_rate: address of [heads].
        skip: likewise.
        heads: of x.
        groups: of B and C, a divisor of the heads.
        head_dim: of a head of x.
        state_dim: of a group of B and C.
        state: index in the table of states (`PART_STATES`).
        wait: see `instruction`.

    Raises:
        ShapeError: a number is out of range.
    """
    sizes = (heads, groups, head_dim, state_dim)
    if min(sizes) < 1 or heads % groups or state < 0:
        raise ShapeError(
            f"{heads} heads of {head_dim}, {groups} groups of {state_dim}, state {state}: out of "
            "range"
        )
    args = (source, steps, result, log_rate, skip, *sizes, STATE_ROWS, state)
    return instruction(kernels.address("state_space"), *args, wait=wait)
