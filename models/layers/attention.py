"""Attention with rotary embeddings, its heads in groups that share keys and values.

Source: arXiv 1706.03762; groups arXiv 2305.13245; rotation arXiv 2104.09864; the gate arXiv
2505.06708.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgetok.errors import ArtefactError
from edgetok.models.checks import check_choice, check_integer
from edgetok.models.layers.kind import Mixer, Place, register
from edgetok.models.ops import ActivationMul, Attend, Norm, Op, Queries, Rope, Store

if TYPE_CHECKING:
    from edgetok.models.spec import DecoderSpec


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(Mixer):
    """o_proj(attention(q_proj(h), k_proj(h), v_proj(h))); sizes are the decoder's.

    Attributes:
        window: a token attends to itself and the `window - 1` tokens before it; 0 is all of them.
        rope: index into `DecoderSpec.ropes`; -1 leaves queries and keys as they are.
        gated: whether the result is multiplied by sigmoid(attn_gate(h)) before o_proj.
    """

    window: int = 0
    rope: int = 0
    gated: bool = False
    kind: ClassVar[str] = "attention"

    def __post_init__(self) -> None:
        """Refuse values that are not a window or not an index."""
        check_integer("layer: ", "window", self.window, 0, 1 << 28)
        check_integer("layer: ", "rope", self.rope, -1, 1 << 12)
        check_choice("layer: ", "gated", self.gated, (True, False))

    def check(self, where: str, spec: DecoderSpec) -> None:
        """Refuse a rope that the decoder does not have."""
        if self.rope >= len(spec.ropes):
            raise ArtefactError(f"{where} names rope {self.rope} of {len(spec.ropes)}")

    def operations(self, place: Place) -> Iterator[Op]:
        """Project, norm and rotate; store keys and values; attend; project back."""
        spec, layer, dim = place.spec, place.layer, place.spec.head_dim
        heads = {"q": spec.num_heads, "k": spec.num_kv_heads, "v": spec.num_kv_heads}
        for which, count in heads.items():
            yield place.linear(
                f"{which}_proj", place.source, which, spec.hidden_size, count * dim, spec.qkv_bias
            )
        width = spec.num_heads * dim
        if self.gated:
            yield place.linear(
                "attn_gate", place.source, "attn_gate", spec.hidden_size, width, spec.qkv_bias
            )
        if spec.qk_norm != "none":
            for which in "qk":
                by_head = spec.qk_norm == "head"
                yield Norm(
                    layer=layer,
                    weight=f"{place.prefix}{which}_norm",
                    source=which,
                    result=which,
                    size=dim if by_head else heads[which] * dim,
                    heads=heads[which] if by_head else None,
                    eps=spec.norm_eps,
                )
        yield Queries(layer=layer, source="q", heads=spec.num_heads, head_dim=dim)
        if self.rope >= 0:
            for which in "qk":
                yield Rope(
                    layer=layer, value=which, heads=heads[which], head_dim=dim, rope=self.rope
                )
        constants = f"{place.prefix}keys"
        yield Store(
            layer=layer,
            keys="k",
            values="v",
            heads=spec.num_kv_heads,
            head_dim=dim,
            constants=constants,
        )
        yield Attend(
            layer=layer,
            queries="q",
            values="v",
            result="mixed",
            heads=spec.num_heads,
            kv_heads=spec.num_kv_heads,
            head_dim=dim,
            window=self.window,
            scale=spec.attn_scale,
            softcap=spec.attn_softcap,
            constants=constants,
        )
        if self.gated:
            yield ActivationMul(
                layer=layer,
                kind="sigmoid",
                gate="attn_gate",
                up="mixed",
                result="mixed",
                size=width,
            )
        yield from place.residual("o_proj", "mixed", width, spec.o_bias)
