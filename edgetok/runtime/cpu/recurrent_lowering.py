"""Operations that keep states as CPU instructions, and the rings that they keep them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgetok.errors import UnsupportedError
from edgetok.kernels_cpu.recurrent import launch
from edgetok.models.layers.gated_delta import CausalConv, DeltaGates, DeltaRule
from edgetok.models.layers.short_conv import Convolution, ShortConv
from edgetok.models.ops import Stateful

if TYPE_CHECKING:
    from edgetok.runtime.cpu.lowering import Instructions, Near, Target


def history_shape(op: Stateful) -> tuple[int, int]:
    """Rows and columns of an operation's ring.

    Raises:
        UnsupportedError: no kernel computes it.
    """
    if isinstance(op, Convolution):
        return launch.history_rows(op.taps), op.size
    if isinstance(op, DeltaRule):
        columns = launch.state_columns(op.value_heads, op.key_dim, op.value_dim)
        return launch.STATE_ROWS, columns
    raise UnsupportedError(f"the cpu backend keeps no states of {type(op).__name__}")


def short_conv(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """The convolution with gates."""
    op: ShortConv = group[0]
    return [_convolution(to, op, near, to.at(op.gate_in), to.at(op.gate_out))]


def causal_conv(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """The convolution with an activation."""
    op: CausalConv = group[0]
    return [_convolution(to, op, near, 0, 0)]


def _convolution(to: Target, op: Convolution, near: Near, gate_in: int, gate_out: int) -> Any:
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
