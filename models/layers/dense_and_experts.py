"""A dense network and experts side by side, each behind norms of its own.

    n = x / rms(x)
    d = post_dense_norm(down_proj(act(gate_proj(h)) * up_proj(h)))
    e = post_experts_norm(experts of pre_experts_norm(x))
    x = x + post_mlp_norm(d + e)

The router reads the residual stream too, not what the experts read:

    r = (router_norm * n) router^T / sqrt(hidden)

The shares of the chosen experts are normed and multiplied by a factor of each expert
(`layers/experts.py`). Behind it come the layer's own input and a factor (`layers/layer_input.py`).

Source: transformers 5, `Gemma4TextDecoderLayer`, `Gemma4TextRouter`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from edgetok.models.checks import check_integer
from edgetok.models.layers.dense import inner_operations
from edgetok.models.layers.experts import Experts
from edgetok.models.layers.kind import FeedForward, Place, register
from edgetok.models.layers.layer_input import input_and_factor
from edgetok.models.ops import AddScaled, Norm, Op


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class DenseAndExperts(FeedForward):
    """See above.

    Attributes:
        experts: how many there are.
        top: how many a token gets.
        size: size of an expert's hidden layer.
        inner: inner values of the dense network; 0: the decoder's `intermediate_size`.
    """

    experts: int
    top: int
    size: int
    inner: int = 0
    kind: ClassVar[str] = "dense_and_experts"

    def __post_init__(self) -> None:
        """Refuse numbers that no kernel takes."""
        check_integer("dense_and_experts: ", "inner", self.inner, 0, 1 << 22)
        self._experts()

    def _experts(self) -> Experts:
        return Experts(experts=self.experts, top=self.top, size=self.size)

    def operations(self, place: Place) -> Iterator[Op]:
        """The dense network, the router, the experts, their sum, the layer's input, the factor."""
        spec, inner = place.spec, self.inner or place.spec.intermediate_size
        yield from inner_operations(place, inner)
        yield place.linear("down_proj", "gate", "dense", inner, spec.hidden_size, spec.mlp_bias)
        yield _norm(place, "post_dense_norm", "dense", "dense")
        experts, own = self._experts(), dataclasses.replace(place, source="experts_in")
        yield _norm(place, "router_norm", "x", "router_in")
        router = place.linear("router", "router_in", "routed", spec.hidden_size, self.experts)
        yield dataclasses.replace(router, kept=True, scale=spec.hidden_size**-0.5)
        yield _norm(place, "pre_experts_norm", "x", own.source)
        yield from experts.chosen_operations(own, f"{place.prefix}router_scale.weight")
        yield experts.mixed(own, "h")
        yield _norm(place, "post_experts_norm", "h", "h")
        yield AddScaled(
            layer=place.layer, value="h", source="dense", size=spec.hidden_size, scale=1.0
        )
        yield from place.add("h")
        yield from input_and_factor(place)


def _norm(place: Place, name: str, source: str, result: str) -> Norm:
    spec = place.spec
    return Norm(
        layer=place.layer,
        weight=place.prefix + name,
        source=source,
        result=result,
        size=spec.hidden_size,
        eps=spec.norm_eps,
    )
