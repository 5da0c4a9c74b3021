"""The gated feed-forward network with a norm of its inner values (arXiv 2310.11453)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from edgetok.models.layers.dense import dense_operations
from edgetok.models.layers.kind import FeedForward, Place, register
from edgetok.models.ops import Op


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class NormedDense(FeedForward):
    """down_proj(norm(act(gate_proj(h)) * up_proj(h))); sizes and activation are the decoder's."""

    kind: ClassVar[str] = "normed_dense"

    def operations(self, place: Place) -> Iterator[Op]:
        """Two products, the activation, the norm and the product back."""
        inner = place.spec.intermediate_size
        yield from dense_operations(place, inner, normed="ffn_sub_norm")
