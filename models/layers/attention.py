"""Attention with rotary embeddings, its heads in groups that share keys and values.

Source: arXiv 1706.03762; groups arXiv 2305.13245; rotation arXiv 2104.09864; the gate arXiv
2505.06708; sinks as parameters arXiv 2508.10925; queries that grow: arXiv 2501.19399, transformers
5 `get_llama_4_attn_scale`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from edgetok.errors import ArtefactError
from edgetok.models.checks import check_choice, check_integer, check_number
from edgetok.models.layers.kind import Mixer, Place, register
from edgetok.models.ops import (
    ActivationMul,
    Attend,
    Norm,
    Op,
    PositionScale,
    Queries,
    Rope,
    ScaleColumns,
    SigmoidScale,
    Store,
)

if TYPE_CHECKING:
    from edgetok.models.spec import DecoderSpec


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(Mixer):
    """o_proj(attention(q_proj(h), k_proj(h), v_proj(h))); sizes are the decoder's, or its own.

    Attributes:
        window: a token attends to itself and the `window - 1` tokens before it; 0 is all of them.
        rope: index into `DecoderSpec.ropes`; -1 leaves queries and keys as they are.
        gated: whether the result is multiplied by sigmoid(attn_gate(h)) before o_proj.
        gated_heads: likewise, but attn_gate has one number for each head.
        kv_heads: heads of keys and values; 0: the decoder's.
        head_dim: dims of a head; 0: the decoder's.
        v_norm: whether each head's values are divided by their root mean square.
        keys_as_values: whether values are keys as k_proj gives them; there is no v_proj then.
        shares: the earlier layer whose keys and values it looks at, with its window; -1: its own.
        sinks: whether each head has a score of a value of zeros, a parameter.
        sub_norm: whether the result of all heads is normed before o_proj (arXiv 2310.11453).
        normed_behind_rope: whether the decoder's norms of each head's queries and keys follow the
            rotation. Lengths do not change by it, so that queries get the weights of both and
            stored keys none: those can still be rotated to other positions.
        growth: queries are multiplied by 1 + growth * log(1 + floor(position / growth_tokens)).
        growth_tokens: see above; not used without growth.
    """

    window: int = 0
    rope: int = 0
    gated: bool = False
    kv_heads: int = 0
    head_dim: int = 0
    v_norm: bool = False
    keys_as_values: bool = False
    shares: int = -1
    sinks: bool = False
    sub_norm: bool = False
    gated_heads: bool = False
    growth: float = 0.0
    growth_tokens: int = 0
    normed_behind_rope: bool = False
    kind: ClassVar[str] = "attention"
    RARE: ClassVar[frozenset[str]] = frozenset(
        {"sub_norm", "gated_heads", "growth", "growth_tokens", "normed_behind_rope"}
    )

    def __post_init__(self) -> None:
        """Refuse values that are not a window or not an index."""
        check_integer("layer: ", "window", self.window, 0, 1 << 28)
        check_integer("layer: ", "rope", self.rope, -1, 1 << 12)
        check_integer("layer: ", "kv_heads", self.kv_heads, 0, 1 << 12)
        check_integer("layer: ", "head_dim", self.head_dim, 0, 1 << 12)
        check_integer("layer: ", "shares", self.shares, -1, 1 << 12)
        flags = ("gated", "v_norm", "keys_as_values", "sinks", "sub_norm", "gated_heads")
        for name in (*flags, "normed_behind_rope"):
            check_choice("layer: ", name, getattr(self, name), (True, False))
        check_number("layer: ", "growth", self.growth, 0.0, 1e3)
        least = 1 if self.growth else 0
        check_integer("layer: ", "growth_tokens", self.growth_tokens, least, 1 << 28)
        if self.gated and self.gated_heads:
            raise ArtefactError("spec: layer: gated and gated_heads, expected one gate at most")
        if self.keys_as_values and not self.v_norm:
            raise ArtefactError("spec: layer: keys_as_values needs v_norm")

    def sizes(self, spec: DecoderSpec) -> tuple[int, int]:
        """Heads of keys and values, and dims of a head."""
        return self.kv_heads or spec.num_kv_heads, self.head_dim or spec.head_dim

    def check(self, where: str, spec: DecoderSpec) -> None:
        """Refuse a rope or a layer that the decoder does not have, and sizes that do not fit.

        Raises:
            ArtefactError: it begins with `where`.
        """
        if self.rope >= len(spec.ropes):
            raise ArtefactError(f"{where} names rope {self.rope} of {len(spec.ropes)}")
        if self.normed_behind_rope and (spec.qk_norm != "head" or self.shares >= 0):
            raise ArtefactError(f"{where}: normed_behind_rope needs norms of its own heads")
        kv_heads, dim = self.sizes(spec)
        if spec.num_heads % kv_heads:
            raise ArtefactError(
                f"{where} has {kv_heads} KV heads, expected a divisor of {spec.num_heads} heads"
            )
        turned = spec.ropes[self.rope].rotary_dim if self.rope >= 0 else 0
        if turned > dim:
            raise ArtefactError(
                f"{where}: rope {self.rope} rotates {turned} dims of head_dim {dim}"
            )
        if self.shares >= 0:
            other = spec.layers[self.shares].attention if self.shares < spec.num_layers else None
            mine = (self.window, self.rope, *self.sizes(spec), -1)
            if other is None or mine != (
                other.window,
                other.rope,
                *other.sizes(spec),
                other.shares,
            ):
                raise ArtefactError(
                    f"{where} shares keys and values of layer {self.shares}, which stores none of "
                    "its window, rope and sizes"
                )

    def operations(self, place: Place) -> Iterator[Op]:
        """Project, norm and rotate; store keys and values; attend; project back."""
        spec, layer = place.spec, place.layer
        kv_heads, dim = self.sizes(spec)
        heads = {"q": spec.num_heads}
        if self.shares < 0:
            heads |= {"k": kv_heads, "v": kv_heads}
        for which, count in heads.items():
            if which == "v" and self.keys_as_values:
                continue
            yield place.linear(
                f"{which}_proj", place.source, which, spec.hidden_size, count * dim, spec.qkv_bias
            )
        width = spec.num_heads * dim
        if self.gated:
            yield place.linear(
                "attn_gate", place.source, "attn_gate", spec.hidden_size, width, spec.qkv_bias
            )
        if self.gated_heads:
            gate = place.linear(
                "attn_gate", place.source, "attn_gate", spec.hidden_size, spec.num_heads
            )
            yield replace(gate, kept=True)
        if self.v_norm and "v" in heads:
            yield Norm(
                layer=layer,
                weight="",
                source="k" if self.keys_as_values else "v",  # before k_norm, which is in place
                result="v",
                size=dim,
                heads=kv_heads,
                eps=spec.norm_eps,
            )
        rotated = [which for which in "qk" if which in heads]
        if spec.qk_norm != "none":
            for which in rotated:
                by_head = spec.qk_norm == "head"
                yield Norm(
                    layer=layer,
                    weight="" if self.normed_behind_rope else f"{place.prefix}{which}_norm",
                    source=which,
                    result=which,
                    size=dim if by_head else heads[which] * dim,
                    heads=heads[which] if by_head else None,
                    eps=spec.norm_eps,
                )
        if self.growth:
            yield PositionScale(
                layer=layer,
                value="q",
                heads=spec.num_heads,
                head_dim=dim,
                growth=self.growth,
                every=self.growth_tokens,
            )
        if self.shares < 0:
            yield Queries(layer=layer, source="q", heads=spec.num_heads, head_dim=dim)
        if self.rope >= 0:
            for which in rotated:
                yield Rope(
                    layer=layer, value=which, heads=heads[which], head_dim=dim, rope=self.rope
                )
        for which in "qk" if self.normed_behind_rope else "":
            yield ScaleColumns(
                layer=layer,
                weight=f"{place.prefix}{which}_norm",
                value="q",
                size=dim,
                heads=spec.num_heads,
            )
        constants = f"{place.prefix_of(self.shares if self.shares >= 0 else layer)}keys"
        if self.shares < 0:
            yield Store(
                layer=layer,
                keys="k",
                values="v",
                heads=kv_heads,
                head_dim=dim,
                constants=constants,
            )
        yield Attend(
            layer=layer,
            queries="q",
            values="v",
            result="mixed",
            heads=spec.num_heads,
            kv_heads=kv_heads,
            head_dim=dim,
            window=self.window,
            scale=spec.attn_scale,
            softcap=spec.attn_softcap,
            constants=constants,
            shares=self.shares if self.shares >= 0 else None,
            sinks=f"{place.prefix}sinks.weight" if self.sinks else "",
            both_sides=spec.both_sides,
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
        if self.gated_heads:
            yield SigmoidScale(
                layer=layer, gate="attn_gate", value="mixed", size=dim, heads=spec.num_heads
            )
        if self.sub_norm:
            yield Norm(
                layer=layer,
                weight=f"{place.prefix}attn_sub_norm",
                source="mixed",
                result="mixed",
                size=width,
                eps=spec.norm_eps,
            )
        yield from place.residual("o_proj", "mixed", width, spec.o_bias)
