"""The gated delta net: linear attention whose memory of each head is a matrix.

With q, k, v, z, b and a projected from one token, and the short convolution and SiLU applied to
q, k and v channel by channel, for each head of values with state S, a matrix [key_dim, value_dim]:

    q, k = q / sqrt(sum(q^2) + 1e-6) / sqrt(key_dim), k / sqrt(sum(k^2) + 1e-6)
    beta = sigmoid(b),  decay = -exp(A_log) * softplus(a + dt_bias)
    S = exp(decay) * S
    S = S + outer(k, beta * (v - k S))
    y = q S
    result = out_proj(norm(y) * silu(z))

S is 0 before the first token. `value_heads / key_heads` heads of values share q and k.

Sources: arXiv 2412.06464, section 3; transformers `Qwen3NextGatedDeltaNet`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from edgetok.errors import ArtefactError
from edgetok.models.checks import check_integer
from edgetok.models.layers.kind import Mixer, Place, register
from edgetok.models.layers.short_conv import MOST_TAPS, Convolution
from edgetok.models.ops import ActivationMul, MatrixState, Norm, Op, Shape

NORM_EPS = 1e-6  # added to the sum of a head's squares


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalConv(Convolution):
    """value = silu(causal_convolution(value) + bias).

    Attributes:
        bias: name of a tensor [size]; "" for none.
    """

    bias: str = ""

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        weight: dict[str, Shape] = {f"{self.weight}.weight": (self.size, 1, self.taps)}
        return weight | ({self.bias: (self.size,)} if self.bias else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaGates(Op):
    """beta = sigmoid(beta); decay = -exp(log_rate) * softplus(decay + bias), for each head.

    Attributes:
        log_rate: name of a tensor [heads].
        bias: likewise.
    """

    beta: str
    decay: str
    log_rate: str
    bias: str
    heads: int
    READS: ClassVar[tuple[str, ...]] = ("beta", "decay")
    WRITES: ClassVar[tuple[str, ...]] = ("beta", "decay")
    COLUMNS: ClassVar[tuple[str, ...]] = ("heads",)

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {self.log_rate: (self.heads,), self.bias: (self.heads,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRule(MatrixState):
    """The recurrence over each head's state. See above.

    Attributes:
        source: q of all heads, then k, then v:
            [2 * key_heads * key_dim + value_heads * value_dim].
        beta: factor of each head of values.
        decay: likewise; its exponential multiplies the state.
        result: [value_heads * value_dim].
    """

    source: str
    beta: str
    decay: str
    result: str
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    READS: ClassVar[tuple[str, ...]] = ("source", "beta", "decay")
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("value_heads", "value_dim")

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """See `MatrixState`."""
        return self.value_heads, self.key_dim, self.value_dim

    @property
    def query_scale(self) -> float:
        """See `MatrixState`."""
        return float(self.key_dim**-0.5)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNet(Mixer):
    """The mixer above.

    Attributes:
        key_heads: heads of queries and keys.
        value_heads: heads of values, a multiple of them.
        key_dim: dims of a head of queries and keys.
        value_dim: dims of a head of values.
        taps: number of taps of the convolution.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    kind: ClassVar[str] = "gated_delta"
    STATEFUL: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse sizes that no kernel has."""
        where = "gated_delta: "
        for name in ("key_heads", "value_heads", "key_dim", "value_dim"):
            check_integer(where, name, getattr(self, name), 1, 1 << 12)
        check_integer(where, "taps", self.taps, 2, MOST_TAPS)
        if self.value_heads % self.key_heads:
            raise ArtefactError(
                f"spec: {where}value_heads {self.value_heads} is not a multiple of key_heads "
                f"{self.key_heads}"
            )

    @property
    def convolved(self) -> int:
        """Channels of q, k and v together."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def operations(self, place: Place) -> Iterator[Op]:
        """Project, convolve, gate, recur, norm, gate again, project back."""
        spec, layer, hidden = place.spec, place.layer, place.spec.hidden_size
        heads, width = self.value_heads, self.value_heads * self.value_dim
        yield place.linear("delta_qkv", place.source, "delta_qkv", hidden, self.convolved)
        yield place.linear("delta_z", place.source, "delta_z", hidden, width)
        for which in "ba":
            gate = place.linear(f"delta_{which}", place.source, f"delta_{which}", hidden, heads)
            yield dataclasses.replace(gate, kept=True)
        yield CausalConv(
            layer=layer,
            weight=f"{place.prefix}delta_conv",
            value="delta_qkv",
            size=self.convolved,
            taps=self.taps,
        )
        yield DeltaGates(
            layer=layer,
            beta="delta_b",
            decay="delta_a",
            log_rate=f"{place.prefix}delta_log_rate.weight",
            bias=f"{place.prefix}delta_dt.weight",
            heads=heads,
        )
        yield DeltaRule(
            layer=layer,
            source="delta_qkv",
            beta="delta_b",
            decay="delta_a",
            result="delta_y",
            key_heads=self.key_heads,
            value_heads=heads,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
        )
        yield Norm(
            layer=layer,
            weight=f"{place.prefix}delta_norm",
            source="delta_y",
            result="delta_y",
            size=self.value_dim,
            heads=heads,
            eps=spec.norm_eps,
        )
        yield ActivationMul(
            layer=layer, kind="silu", gate="delta_z", up="delta_y", result="delta_y", size=width
        )
        yield from place.residual("delta_out", "delta_y", width)
