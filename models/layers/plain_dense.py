"""The feed-forward network without a gate (arXiv 1706.03762)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, get_args

from edgetok.models.checks import check_choice
from edgetok.models.layers.kind import FeedForward, Place, register
from edgetok.models.ops import Activate, Op, Ungated


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class PlainDense(FeedForward):
    """down_proj(act(up_proj(h))); its size is the decoder's.

    Attributes:
        activation: see `ops.Activate`.
    """

    activation: Ungated
    kind: ClassVar[str] = "plain_dense"

    def __post_init__(self) -> None:
        """Refuse an activation that there is not."""
        check_choice("plain_dense: ", "activation", self.activation, get_args(Ungated))

    def operations(self, place: Place) -> Iterator[Op]:
        """A product, the activation and the product back."""
        spec, inner = place.spec, place.spec.intermediate_size
        yield place.linear("up_proj", place.source, "up", spec.hidden_size, inner, spec.mlp_bias)
        yield Activate(layer=place.layer, kind=self.activation, value="up", size=inner)
        yield from place.residual("down_proj", "up", inner, spec.mlp_bias)
