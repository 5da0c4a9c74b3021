"""The Mamba2 mixer: a state space model whose decay is one number a head and token.

With z, x, B, C and dt projected from one token, and the short convolution and SiLU applied to x, B
and C channel by channel, for each head with state S, a matrix [state_dim, head_dim]:

    step = softplus(dt + dt_bias)
    S = exp(-exp(A_log) * step) * S + outer(B, step * x)
    y = C S + D * x
    result = out_proj(norm(y * silu(z)))

S is 0 before the first token. `heads / groups` heads share B and C. The norm is over all heads.

Sources: arXiv 2405.21060, sections 5 and 7; transformers `GraniteMoeHybridMambaLayer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from edgetok.errors import ArtefactError
from edgetok.models.checks import check_choice, check_integer
from edgetok.models.layers.gated_delta import CausalConv
from edgetok.models.layers.kind import Mixer, Place, register
from edgetok.models.layers.short_conv import MOST_TAPS
from edgetok.models.ops import ActivationMul, MatrixState, Norm, Op, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSteps(Op):
    """value = softplus(value + bias), for each head.

    Attributes:
        bias: name of a tensor [heads].
    """

    value: str
    bias: str
    heads: int
    READS: ClassVar[tuple[str, ...]] = ("value",)
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("heads",)

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {self.bias: (self.heads,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpace(MatrixState):
    """The recurrence over each head's state. See above.

    Attributes:
        source: x of all heads, then B of all groups, then C:
            [heads * head_dim + 2 * groups * state_dim].
        steps: step sizes of each head.
        log_rate: name of a tensor [heads]: `A_log`.
        skip: likewise: `D`.
        result: [heads * head_dim].
    """

    source: str
    steps: str
    result: str
    log_rate: str
    skip: str
    heads: int
    groups: int
    head_dim: int
    state_dim: int
    READS: ClassVar[tuple[str, ...]] = ("source", "steps")
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("heads", "head_dim")

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {self.log_rate: (self.heads,), self.skip: (self.heads,)}

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """See `MatrixState`."""
        return self.heads, self.state_dim, self.head_dim


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2(Mixer):
    """The mixer above.

    Attributes:
        heads: number of heads of x and z.
        groups: number of groups of B and C, a divisor of the heads.
        head_dim: dims of a head of x and z.
        state_dim: dims of a group of B and C.
        taps: number of taps of the convolution.
        conv_bias: whether the convolution has a bias.
        bias: whether the projections have biases.
    """

    heads: int
    groups: int
    head_dim: int
    state_dim: int
    taps: int
    conv_bias: bool = True
    bias: bool = False
    kind: ClassVar[str] = "mamba2"
    STATEFUL: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse sizes that no kernel has."""
        where = "mamba2: "
        for name in ("heads", "groups", "head_dim", "state_dim"):
            check_integer(where, name, getattr(self, name), 1, 1 << 12)
        check_integer(where, "taps", self.taps, 2, MOST_TAPS)
        for name in ("conv_bias", "bias"):
            check_choice(where, name, getattr(self, name), (True, False))
        if self.heads % self.groups:
            raise ArtefactError(
                f"spec: {where}heads {self.heads} is not a multiple of groups {self.groups}"
            )

    @property
    def convolved(self) -> int:
        """Channels of x, B and C together."""
        return self.heads * self.head_dim + 2 * self.groups * self.state_dim

    def operations(self, place: Place) -> Iterator[Op]:
        """Project, convolve, recur, gate, norm, project back."""
        spec, layer, hidden = place.spec, place.layer, place.spec.hidden_size
        width = self.heads * self.head_dim
        for which, outputs in (("z", width), ("xbc", self.convolved), ("dt", self.heads)):
            name = f"mamba_{which}"
            linear = place.linear(name, place.source, name, hidden, outputs, self.bias)
            yield dataclasses.replace(linear, kept=which == "dt")
        yield CausalConv(
            layer=layer,
            weight=f"{place.prefix}mamba_conv",
            value="mamba_xbc",
            size=self.convolved,
            taps=self.taps,
            bias=f"{place.prefix}mamba_conv_bias.weight" if self.conv_bias else "",
        )
        yield StateSteps(
            layer=layer,
            value="mamba_dt",
            bias=f"{place.prefix}mamba_dt_bias.weight",
            heads=self.heads,
        )
        yield StateSpace(
            layer=layer,
            source="mamba_xbc",
            steps="mamba_dt",
            result="mamba_y",
            log_rate=f"{place.prefix}mamba_log_rate.weight",
            skip=f"{place.prefix}mamba_skip.weight",
            heads=self.heads,
            groups=self.groups,
            head_dim=self.head_dim,
            state_dim=self.state_dim,
        )
        yield ActivationMul(
            layer=layer, kind="silu", gate="mamba_z", up="mamba_y", result="mamba_y", size=width
        )
        yield Norm(
            layer=layer,
            weight=f"{place.prefix}mamba_norm",
            source="mamba_y",
            result="mamba_y",
            size=width,
            eps=spec.norm_eps,
        )
        yield from place.residual("mamba_out", "mamba_y", width, self.bias)
