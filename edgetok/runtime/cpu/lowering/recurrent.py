"""Operations that keep states as CPU instructions, and the rings that they keep them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetok.errors import UnsupportedError
from edgetok.kernels_cpu.recurrent import launch
from edgetok.models.layers.gated_delta import CausalConv, DeltaGates, DeltaRule
from edgetok.models.layers.mamba2 import StateSpace, StateSteps
from edgetok.models.layers.short_conv import Convolution, ShortConv
from edgetok.models.ops import MatrixState, Stateful
from edgetok.runtime.cpu.lowering.target import Instructions, Near, Target


def history_shape(op: Stateful) -> tuple[int, int]:
    """Rows and columns of an operation's ring.

    Raises:
        UnsupportedError: no kernel computes it.
    """
    if isinstance(op, Convolution):
        return launch.history_rows(op.taps), op.size
    if isinstance(op, MatrixState):
        return launch.STATE_ROWS, launch.state_columns(*op.state_shape)
    raise UnsupportedError(f"the cpu backend keeps no states of {type(op).__name__}")


def short_conv(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """The convolution with gates."""
    op: ShortConv = group[0]
    return [_convolution(to, op, near, gate_in=to.at(op.gate_in), gate_out=to.at(op.gate_out))]


def causal_conv(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """The convolution with an activation."""
    op: CausalConv = group[0]
    return [_convolution(to, op, near, bias=to.weight(op.bias) if op.bias else 0)]


def _convolution(
    to: Target, op: Convolution, near: Near, *, gate_in: int = 0, gate_out: int = 0, bias: int = 0
) -> Any:
    return launch.short_conv(
        to.kernels,
        gate_in=gate_in,
        gate_out=gate_out,
        value=to.at(op.value),
        weight=to.weight(f"{op.weight}.weight"),
        size=op.size,
        taps=op.taps,
        state=op.state,
        wait=near.wait,
        bias=bias,
    )


def delta_gates(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """The gates of a delta net."""
    op: DeltaGates = group[0]
    return [
        launch.delta_gates(
            to.kernels,
            beta=to.at(op.beta),
            decay=to.at(op.decay),
            log_rate=to.weight(op.log_rate),
            bias=to.weight(op.bias),
            heads=op.heads,
            wait=near.wait,
        )
    ]


def delta_rule(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """The recurrence of a delta net."""
    op: DeltaRule = group[0]
    return [
        launch.delta_rule(
            to.kernels,
            source=to.at(op.source),
            beta=to.at(op.beta),
            decay=to.at(op.decay),
            result=to.at(op.result),
            key_heads=op.key_heads,
            value_heads=op.value_heads,
            key_dim=op.key_dim,
            value_dim=op.value_dim,
            state=op.state,
            wait=near.wait,
        )
    ]


def state_steps(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """The step sizes of Mamba2."""
    op: StateSteps = group[0]
    return [
        launch.state_steps(
            to.kernels,
            value=to.at(op.value),
            bias=to.weight(op.bias),
            heads=op.heads,
            wait=near.wait,
        )
    ]


def state_space(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """The recurrence of Mamba2."""
    op: StateSpace = group[0]
    return [
        launch.state_space(
            to.kernels,
            source=to.at(op.source),
            steps=to.at(op.steps),
            result=to.at(op.result),
            log_rate=to.weight(op.log_rate),
            skip=to.weight(op.skip),
            heads=op.heads,
            groups=op.groups,
            head_dim=op.head_dim,
            state_dim=op.state_dim,
            state=op.state,
            wait=near.wait,
        )
    ]
