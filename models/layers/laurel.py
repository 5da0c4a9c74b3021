"""Attention beside a low-rank path, on the first of several residual streams.

    x = prediction of the first stream (`altup.py`)
    h = input_norm(x)
    lateral = h + laurel_norm(laurel_right(laurel_left(h)))
    x = (x + post_attention_norm(attention(h)) + lateral) / sqrt(2)

Source: arXiv 2411.07501; transformers `Gemma3nTextLaurelBlock`, `Gemma3nTextDecoderLayer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from edgetok.models.checks import check_integer
from edgetok.models.layers.altup import prediction
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.kind import Place, register
from edgetok.models.ops import AddScaled, Norm, Op


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Laurel(Attention):
    """See above; the other attributes are those of attention.

    Attributes:
        rank: values between laurel_left and laurel_right.
    """

    rank: int
    kind: ClassVar[str] = "laurel"

    def __post_init__(self) -> None:
        """Refuse what attention does, and a rank that is none."""
        Attention.__post_init__(self)
        check_integer("layer: ", "rank", self.rank, 1, 1 << 16)

    def before(self, place: Place) -> Iterator[Op]:
        """Predict all streams."""
        return prediction(place)

    def operations(self, place: Place) -> Iterator[Op]:
        """The low-rank path, attention, and their sum."""
        layer, size = place.layer, place.spec.hidden_size
        yield place.linear("laurel_left", place.source, "laurel", size, self.rank)
        yield place.linear("laurel_right", "laurel", "lateral", self.rank, size)
        yield Norm(
            layer=layer,
            weight=f"{place.prefix}laurel_norm",
            source="lateral",
            result="lateral",
            size=size,
            eps=place.spec.norm_eps,
        )
        yield AddScaled(layer=layer, value="lateral", source=place.source, size=size, scale=1.0)
        yield from Attention.operations(self, place)
        yield AddScaled(layer=layer, value="x", source="lateral", size=size, scale=1.0)
        yield AddScaled(layer=layer, value="x", source="x", size=size, scale=0.5**0.5 - 1)
