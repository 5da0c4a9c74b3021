"""The gated feed-forward network (arXiv 2002.05202)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from edgetok.models.layers.kind import FeedForward, Place, register
from edgetok.models.ops import ActivationMul, Norm, Op, Sparsify


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Dense(FeedForward):
    """down_proj(act(gate_proj(h)) * up_proj(h)); sizes and activation are the decoder's."""

    kind: ClassVar[str] = "dense"

    def operations(self, place: Place) -> Iterator[Op]:
        """Two products, the activation and the product back."""
        return dense_operations(place, place.spec.intermediate_size)


def dense_operations(
    place: Place, inner: int, *, normed: str = "", spread: float | None = None
) -> Iterator[Op]:
    """Return the operations of a network with so many inner values, into the residual stream.

    Args: see `inner_operations`.
    """
    yield from inner_operations(place, inner, normed=normed, spread=spread)
    yield from place.residual("down_proj", "gate", inner, place.spec.mlp_bias)


def inner_operations(
    place: Place, inner: int, *, normed: str = "", spread: float | None = None
) -> Iterator[Op]:
    """Return the operations to a network's inner values `gate`.

    Args:
        place: where in the decoder.
        inner: how many.
        normed: the norm of inner values before down_proj; none without a name.
        spread: that of `Sparsify`, which makes most gates 0; None: they stay as they are.
    """
    spec = place.spec
    for which in ("gate", "up"):
        yield place.linear(
            f"{which}_proj", place.source, which, spec.hidden_size, inner, spec.mlp_bias
        )
    if spread is not None:
        yield Sparsify(layer=place.layer, value="gate", size=inner, spread=spread)
    yield ActivationMul(
        layer=place.layer,
        kind=spec.activation,
        gate="gate",
        up="up",
        result="gate",
        size=inner,
    )
    if normed:
        yield Norm(
            layer=place.layer,
            weight=place.prefix + normed,
            source="gate",
            result="gate",
            size=inner,
            eps=spec.norm_eps,
        )
