"""A dense network, behind which each layer gets an input of its own and a factor.

    x = x + down_proj(act(gate_proj(h)) * up_proj(h))
    x = x + per_layer_out_norm(per_layer_out(act(per_layer_gate(x)) * inputs[layer]))
    x = layer_scale * x

The inputs of all layers are made of the token's embedding once, before the first layer:

    context = per_layer_norm(per_layer_proj(x) / sqrt(hidden))
    inputs = (context + sqrt(size) * embed_per_layer[token]) / sqrt(2)

Source: transformers 5, `Gemma4TextModel.project_per_layer_inputs`, `Gemma4TextDecoderLayer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgetok.models.checks import check_integer
from edgetok.models.layers.dense import dense_operations
from edgetok.models.layers.kind import FeedForward, Place, register
from edgetok.models.ops import (
    PER_LAYER_TABLE,
    ActivationMul,
    AddScaled,
    Columns,
    Embed,
    Linear,
    Norm,
    Op,
    ScaleBy,
)

if TYPE_CHECKING:
    from edgetok.models.spec import DecoderSpec

_INPUTS = "layer_inputs"


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class DenseWithInput(FeedForward):
    """See above. There is no input of a layer's own where `per_layer_size` of the decoder is 0.

    Attributes:
        inner: inner values of the network; 0: the decoder's `intermediate_size`.
    """

    inner: int = 0
    kind: ClassVar[str] = "layer_input"

    def __post_init__(self) -> None:
        """Refuse a size that is none."""
        check_integer("layer: ", "inner", self.inner, 0, 1 << 22)

    def operations(self, place: Place) -> Iterator[Op]:
        """The network, the layer's input, the factor."""
        yield from dense_operations(place, self.inner or place.spec.intermediate_size)
        yield from input_and_factor(place)


def input_and_factor(place: Place) -> Iterator[Op]:
    """Return the operations behind a network: x plus what the layer's own input adds, scaled."""
    spec = place.spec
    if spec.per_layer_size:
        yield from own_input(place, "x")
        yield AddScaled(layer=place.layer, value="x", source="h", size=spec.hidden_size, scale=1.0)
    yield ScaleBy(
        layer=place.layer,
        weight=f"{place.prefix}layer_scale",
        value="x",
        size=spec.hidden_size,
    )


def own_input(place: Place, source: str) -> Iterator[Op]:
    """Return the operations from `source` to `h`, what a layer's own input adds."""
    spec, size = place.spec, place.spec.per_layer_size
    yield place.linear("per_layer_gate", source, "gate", spec.hidden_size, size)
    yield Columns(
        layer=place.layer,
        source=_INPUTS,
        result="up",
        first=place.layer * size,
        size=size,
        width=spec.num_layers * size,
    )
    yield ActivationMul(
        layer=place.layer, kind=spec.activation, gate="gate", up="up", result="gate", size=size
    )
    yield place.linear("per_layer_out", "gate", "h", size, spec.hidden_size)
    yield Norm(
        layer=place.layer,
        weight=f"{place.prefix}per_layer_out_norm",
        source="h",
        result="h",
        size=spec.hidden_size,
        eps=spec.norm_eps,
    )


def input_operations(spec: DecoderSpec) -> Iterator[Op]:
    """Return the operations from a token's embedding `x` to the inputs of all layers."""
    size, width = spec.per_layer_size, spec.num_layers * spec.per_layer_size
    yield Embed(
        weight=PER_LAYER_TABLE,
        result=_INPUTS,
        rows=spec.vocab_size,
        size=width,
        scale=(size / 2) ** 0.5,
    )
    yield Linear(
        weight="per_layer_proj",
        source="x",
        result="layer_contexts",
        inputs=spec.hidden_size,
        outputs=width,
        scale=spec.hidden_size**-0.5,
    )
    yield Norm(
        weight="per_layer_norm",
        source="layer_contexts",
        result="layer_contexts",
        size=size,
        heads=spec.num_layers,
        eps=spec.norm_eps,
    )
    yield AddScaled(value=_INPUTS, source="layer_contexts", size=width, scale=0.5**0.5)
