"""Several residual streams, of which a layer computes the first and predicts and corrects all.

With n streams s and x the first of them, a layer computes (arXiv 2301.13310; the coefficients are
those of transformers' `Gemma3nTextAltUp`):

    m = tanh(altup_router(altup_norm(x)) / hidden)                          n numbers
    p[j] = s[j] + sum over i of altup_predict(m)[n j + i] s[i]              the predictions
    a = the layer's mixer and network on p[0]
    m = tanh(altup_router(altup_norm(a)) / hidden)
    s[j] = p[j] + (1 + altup_correct(m)[j]) (a - p[0])
    s[j] += the layer's own input, gated by altup_scale s[0]                for j > 0 alone

Before the layers s[0] is the embedding and s[j] = sized(altup_proj[j](s[0])), behind them x is the
mean of s[0] and sized(altup_unembed[j](s[j])). A sized value has the root mean square of s[0].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgetok.errors import ArtefactError
from edgetok.models.checks import check_choice, check_integer, check_number
from edgetok.models.layers.dense import dense_operations
from edgetok.models.layers.kind import FeedForward, Place, register
from edgetok.models.layers.layer_input import own_input
from edgetok.models.ops import AddScaled, Columns, Linear, Norm, Op, Shape, SoftCap

if TYPE_CHECKING:
    from edgetok.models.spec import DecoderSpec

MOST_STREAMS = 8
_OTHERS, _PREDICTIONS = "streams", "predictions"
_SIZED_EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class MixStreams(Op):
    """result[j] = s[j] + sum over i of coefs[streams * j + i] * s[i], of s = value, *others.

    Attributes:
        others: all streams but the first, beside each other.
        result: all streams, beside each other.
        streams: how many there are.
        size: columns of each.
    """

    value: str
    others: str
    coefs: str
    result: str
    streams: int
    size: int
    READS: ClassVar[tuple[str, ...]] = ("value", "others", "coefs")
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("streams", "size")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectStreams(Op):
    """s[j] = source[j] + (1 + coefs[j]) * (value - source[0]); value, *others = s.

    Attributes:
        source: the predictions of all streams, beside each other.
        result: scale * s[0].
        scale: name of a tensor [size]; "": result is s[0].
    """

    value: str
    source: str
    coefs: str
    others: str
    result: str
    scale: str
    streams: int
    size: int
    READS: ClassVar[tuple[str, ...]] = ("value", "source", "coefs")
    WRITES: ClassVar[tuple[str, ...]] = ("value", "others", "result")

    @property
    def writes(self) -> dict[str, int]:
        """Return the columns of each value that it writes."""
        others = (self.streams - 1) * self.size
        return {self.value: self.size, self.others: others, self.result: self.size}

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {self.scale: (self.size,)} if self.scale else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchSize(Op):
    """value[j] *= sqrt(mean(like^2) / max(mean(value[j]^2), eps)), `count` times `size` columns.

    Attributes:
        like: has `size` columns.
    """

    value: str
    like: str
    count: int
    size: int
    eps: float
    READS: ClassVar[tuple[str, ...]] = ("value", "like")
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("count", "size")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddEach(Op):
    """value[j] += source, for `count` times `size` columns."""

    value: str
    source: str
    count: int
    size: int
    READS: ClassVar[tuple[str, ...]] = ("value", "source")
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("count", "size")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class AltUp(FeedForward):
    """A dense network, the correction of all streams, and the layer's own input; see above.

    Attributes:
        inner: inner values of the network; 0: the decoder's `intermediate_size`.
        sparse: whether most gates become 0, those below mean + spread * deviation.
        spread: see above.
        scaled: whether altup_scale is there.
    """

    inner: int = 0
    sparse: bool = False
    spread: float = 0.0
    scaled: bool = True
    kind: ClassVar[str] = "altup"

    def __post_init__(self) -> None:
        """Refuse a size that is none."""
        check_integer("layer: ", "inner", self.inner, 0, 1 << 22)
        check_number("layer: ", "spread", self.spread, -10.0, 10.0)
        for name in ("sparse", "scaled"):
            check_choice("layer: ", name, getattr(self, name), (True, False))

    def check(self, where: str, spec: DecoderSpec) -> None:
        """Refuse a decoder of one stream, or without inputs of a layer's own.

        Raises:
            ArtefactError: it begins with `where`.
        """
        if spec.streams < 2 or not spec.per_layer_size:
            raise ArtefactError(
                f"{where}: altup of {spec.streams} streams and inputs of {spec.per_layer_size} "
                "values, expected at least 2 and 1"
            )

    def operations(self, place: Place) -> Iterator[Op]:
        """The network, the correction, the layer's own input."""
        spec, layer = place.spec, place.layer
        spread = self.spread if self.sparse else None
        inner = self.inner or spec.intermediate_size
        yield from dense_operations(place, inner, spread=spread)
        yield from coefficients(place, "altup_correct", spec.streams)
        yield CorrectStreams(
            layer=layer,
            value="x",
            source=_PREDICTIONS,
            coefs="coefs",
            others=_OTHERS,
            result="h",
            scale=f"{place.prefix}altup_scale.weight" if self.scaled else "",
            streams=spec.streams,
            size=spec.hidden_size,
        )
        yield from own_input(place, "h")
        yield AddEach(
            layer=layer,
            value=_OTHERS,
            source="h",
            count=spec.streams - 1,
            size=spec.hidden_size,
        )


def coefficients(place: Place, module: str, count: int) -> Iterator[Op]:
    """Return the operations from `x` to `coefs`, `count` numbers of it."""
    spec, layer = place.spec, place.layer
    yield Norm(
        layer=layer,
        weight=f"{place.prefix}altup_norm",
        source="x",
        result="h",
        size=spec.hidden_size,
        eps=spec.norm_eps,
    )
    router = place.linear("altup_router", "h", "modalities", spec.hidden_size, spec.streams)
    yield dataclasses.replace(router, kept=True, scale=1 / spec.hidden_size)
    yield SoftCap(layer=layer, value="modalities", size=spec.streams, limit=1.0)
    linear = place.linear(module, "modalities", "coefs", spec.streams, count)
    yield dataclasses.replace(linear, kept=True)


def prediction(place: Place) -> Iterator[Op]:
    """Return the operations from all streams to their predictions, of which x is the first."""
    spec, layer, size = place.spec, place.layer, place.spec.hidden_size
    yield from coefficients(place, "altup_predict", spec.streams**2)
    yield MixStreams(
        layer=layer,
        value="x",
        others=_OTHERS,
        coefs="coefs",
        result=_PREDICTIONS,
        streams=spec.streams,
        size=size,
    )
    width = spec.streams * size
    yield Columns(layer=layer, source=_PREDICTIONS, result="x", first=0, size=size, width=width)


def streams_operations(spec: DecoderSpec) -> Iterator[Op]:
    """Return the operations from the embedding `x` to the other streams."""
    count, size = spec.streams - 1, spec.hidden_size
    yield Linear(weight="altup_proj", source="x", result=_OTHERS, inputs=size, outputs=count * size)
    yield MatchSize(value=_OTHERS, like="x", count=count, size=size, eps=_SIZED_EPS)


def joining_operations(spec: DecoderSpec) -> Iterator[Op]:
    """Return the operations from all streams to their mean, `x`."""
    count, size = spec.streams - 1, spec.hidden_size
    for i in range(count):
        result = "unembedded" if i else "joined"
        yield Columns(source=_OTHERS, result="h", first=i * size, size=size, width=count * size)
        yield Linear(
            weight=f"altup_unembed_{i}", source="h", result=result, inputs=size, outputs=size
        )
        yield MatchSize(value=result, like="x", count=1, size=size, eps=_SIZED_EPS)
        if i:
            yield AddScaled(value="joined", source=result, size=size, scale=1.0)
    yield AddScaled(value="x", source="joined", size=size, scale=1.0)
    yield AddScaled(value="x", source="x", size=size, scale=1 / spec.streams - 1)
