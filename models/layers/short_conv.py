"""The gated short convolution of LFM2.

For each channel, with b, c and x of one token and `taps` weights w, the last for the token itself:

    u = b * x
    y = out_proj(c * (w[taps - 1] * u + w[taps - 2] * u of the token before + ...))

What is before the first token counts as 0. Later tokens need the last `taps - 1` values of u.
Source: transformers `Lfm2ShortConv`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from edgetok.models.checks import check_integer
from edgetok.models.layers.kind import Mixer, Place, register
from edgetok.models.ops import Op, Shape, Stateful

MOST_TAPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution(Stateful):
    """A causal convolution, channel by channel; its kinds say what is around it.

    Attributes:
        weight: [size, 1, taps]; the last tap is the token's own.
        taps: tokens that a result depends on.
    """

    weight: str
    value: str
    size: int
    taps: int
    STATE: ClassVar[int] = 0
    READS: ClassVar[tuple[str, ...]] = ("value",)
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size",)

    @property
    def kept_tokens(self) -> int:
        """See `Stateful`."""
        return self.taps - 1

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {f"{self.weight}.weight": (self.size, 1, self.taps)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConv(Convolution):
    """value = gate_out * causal_convolution(gate_in * value)."""

    gate_in: str
    gate_out: str
    READS: ClassVar[tuple[str, ...]] = ("gate_in", "gate_out", "value")
    SCALES_WITH: ClassVar[str | None] = "gate_out"


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolution(Mixer):
    """out_proj(c * convolution(b * x)), where b, c and x are projections; as wide as the decoder.

    Attributes:
        taps: tokens that a result depends on.
    """

    taps: int
    kind: ClassVar[str] = "short_conv"
    STATEFUL: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse sizes that no kernel has."""
        check_integer("short_conv: ", "taps", self.taps, 2, MOST_TAPS)

    def operations(self, place: Place) -> Iterator[Op]:
        """Project, gate and convolve, project back."""
        size = place.spec.hidden_size
        for which in ("b", "c", "x"):
            yield place.linear(f"{which}_proj", place.source, f"conv_{which}", size, size)
        yield ShortConv(
            layer=place.layer,
            weight=f"{place.prefix}conv",
            gate_in="conv_b",
            gate_out="conv_c",
            value="conv_x",
            size=size,
            taps=self.taps,
        )
        yield from place.residual("out_proj", "conv_x", size)
