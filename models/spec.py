"""The description of a decoder: frozen data, no arithmetic on weights.

The converter writes a `DecoderSpec` into the artefact as JSON; the runtimes build their plans
from it. Everything that differs between model families is a field here, so that no other module
needs to know a family's name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgetok.errors import ArtefactError
from edgetok.models.checks import check_choice, check_integer, check_number, shown
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.dense import Dense
from edgetok.models.layers.kind import FeedForward, LayerPart, Mixer, read_part
from edgetok.models.ops import Activation

QkNorm = Literal["none", "head", "full"]
Pooling = Literal["last", "mean"]
RopeScaling = Literal["none", "linear", "llama3", "yarn", "longrope", "proportional"]
# Fields that the JSON leaves out where they are these, as in nearly all families.
_RARE = {
    "truncate": True,
    "turning_dim": 0,
    "per_layer_size": 0,
    "streams": 0,
    "both_sides": False,
    "centred_norms": False,
    "parallel": False,
    "pooling": "last",
    "vector_sizes": [],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """One rotary embedding; a layer names the one it uses by its index.

    Attributes:
        theta: base of the geometric series of frequencies.
        rotary_dim: how many of the head's dims rotate, pairs (i, i + rotary_dim / 2).
        scaling: how frequencies change for long contexts, named as in HF `rope_scaling`.
        factor: the scaling's factor (linear, llama3, yarn, proportional).
        low_freq_factor, high_freq_factor: llama3.
        beta_fast, beta_slow: yarn.
        truncate: yarn: whether the bounds between them are rounded outwards to whole pairs.
        original_context_tokens: trained length before scaling (llama3, yarn, longrope).
        short_factors, long_factors: longrope, rotary_dim / 2 each. The long ones hold for every
            position once a conversation may exceed `original_context_tokens`.
        attention_factor: cos and sin are multiplied by it.
        turning_dim: how many of `rotary_dim` turn (proportional): the slower pairs stand still.
    """

    theta: float
    rotary_dim: int
    scaling: RopeScaling = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    original_context_tokens: int = 0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    turning_dim: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that give no frequencies."""
        check_integer("rope: ", "rotary_dim", self.rotary_dim, 2, 1 << 12)
        if self.rotary_dim % 2:
            raise ArtefactError(f"spec: rope: rotary_dim is {self.rotary_dim}, expected it even")
        check_choice("rope: ", "scaling", self.scaling, get_args(RopeScaling))
        check_number("rope: ", "theta", self.theta, 1.000001, 1e15)
        check_integer("rope: ", "original_context_tokens", self.original_context_tokens, 0, 1 << 28)
        for name in (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "beta_fast",
            "beta_slow",
            "attention_factor",
        ):
            check_number("rope: ", name, getattr(self, name), 1e-6, 1e6)
        check_choice("rope: ", "truncate", self.truncate, (True, False))
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            expected = self.rotary_dim // 2 if self.scaling == "longrope" else 0
            if type(factors) is not tuple or len(factors) != expected:
                raise ArtefactError(f"spec: rope: {name} are not a tuple of {expected} numbers")
            for factor in factors:
                check_number("rope: ", name, factor, 1e-6, 1e6)
        turning = self.rotary_dim if self.scaling == "proportional" else 0
        check_integer("rope: ", "turning_dim", self.turning_dim, min(turning, 2), turning)
        if self.turning_dim % 2:
            raise ArtefactError(f"spec: rope: turning_dim is {self.turning_dim}, expected it even")
        if self.scaling in ("llama3", "yarn", "longrope") and self.original_context_tokens < 1:
            raise ArtefactError(f"spec: rope: {self.scaling} needs original_context_tokens")
        if self.scaling == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ArtefactError(
                f"spec: rope: high_freq_factor {self.high_freq_factor:g} is not above "
                f"low_freq_factor {self.low_freq_factor:g}"
            )


@dataclass(frozen=True, slots=True, init=False)
class LayerSpec:
    """One layer: what may differ from layer to layer.

    Attributes:
        mixer: the part in which tokens see each other.
        ffn: the feed-forward network.
    """

    mixer: Mixer
    ffn: FeedForward

    def __init__(
        self,
        *,
        mixer: Mixer | None = None,
        ffn: FeedForward | None = None,
        window: int = 0,
        rope: int = 0,
    ) -> None:
        """Put two parts together.

        Args:
            mixer: None for `Attention(window=window, rope=rope)`.
            ffn: None for `Dense()`.
            window: see `Attention`; not together with a mixer.
            rope: as above.
        """
        if mixer is not None and (window or rope):
            raise ArtefactError("spec: layer: window and rope are the mixer's, which is given")
        attention = Attention(window=window, rope=rope) if mixer is None else mixer
        object.__setattr__(self, "mixer", attention)
        object.__setattr__(self, "ffn", Dense() if ffn is None else ffn)
        for name, part, base in (("mixer", mixer, Mixer), ("ffn", ffn, FeedForward)):
            if part is not None and not isinstance(part, base):
                raise ArtefactError(f"spec: layer: {name} is {shown(part)}, expected a {name}")

    @property
    def attention(self) -> Attention | None:
        """Return the mixer, if it is attention."""
        return self.mixer if isinstance(self.mixer, Attention) else None

    @property
    def window(self) -> int:
        """Return the attention's window; 0, as for all tokens, in a layer without attention."""
        return 0 if self.attention is None else self.attention.window

    @property
    def rope(self) -> int:
        """Return the attention's rope; -1, as for none, in a layer without attention."""
        return -1 if self.attention is None else self.attention.rope

    def fields(self) -> dict[str, Any]:
        """Return the layer as JSON has it: attention and a dense network by their numbers alone."""
        if self.mixer == Attention(window=self.window, rope=self.rope) and self.ffn == Dense():
            return {"window": self.window, "rope": self.rope}
        return {"mixer": self.mixer.fields(), "ffn": self.ffn.fields()}

    @classmethod
    def read(cls, fields: dict[str, Any]) -> LayerSpec:
        """Read what `fields` gave.

        Raises:
            ArtefactError: a kind is unknown, or a field of a part is.
            TypeError: a field of the layer is unknown.
        """
        parts: dict[str, Any] = {
            key: read_part(key, value) if key in ("mixer", "ffn") else value
            for key, value in fields.items()
        }
        return cls(**parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """A decoder-only transformer.

    For each layer, with s = residual_scale, any absent norm being the identity:

        x = x + s * post_attention_norm(mixer(input_norm(x)))
        x = x + s * post_mlp_norm(ffn(pre_mlp_norm(x)))

    Before the layers x = embed_scale * embed_tokens[token]; after them
    logits = softcap(logit_scale * lm_head(final_norm(x)), logit_softcap).

    Attributes:
        family: HF `model_type`, kept for display only.
        pre_norm: whether input_norm and pre_mlp_norm exist.
        post_norm: whether post_attention_norm and post_mlp_norm exist.
        qk_norm: RMSNorm on queries and keys before RoPE: over each head's dims ("head") or over the
            whole projection ("full").
        attn_scale: queries times keys are multiplied by it.
        attn_softcap, logit_softcap: c * tanh(x / c); 0 is none.
        qkv_bias, o_bias, mlp_bias: whether those linear layers have a bias.
        tied: lm_head is embed_tokens.
        eos_tokens: ids that end an answer, from the checkpoint's generation config.
        per_layer_size: size of the input that each layer gets of the token, see
            `layers/layer_input.py`; 0: there is none.
        streams: residual streams, of which each layer computes the first, see `layers/altup.py`; 0:
            there is the one alone.
        both_sides: attention sees what is behind a token, too, within its window. Such a model
            computes vectors of whole texts and writes none.
        centred_norms: the norms of the residual stream take its mean away first: LayerNorm.
        parallel: a layer's network reads the norm that its mixer reads; there is no pre_mlp_norm.
        pooling: a text's vector is final_norm(x) of its last token, or the mean over all tokens.
        vector_sizes: outputs of the matrices that the vector is multiplied by, one after the other.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    context_tokens: int
    norm_eps: float
    activation: Activation = "silu"
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: QkNorm = "none"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    attn_scale: float
    attn_softcap: float = 0.0
    logit_softcap: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    bos_token: int | None = None
    eos_tokens: tuple[int, ...] = ()
    per_layer_size: int = 0
    streams: int = 0
    both_sides: bool = False
    centred_norms: bool = False
    parallel: bool = False
    pooling: Pooling = "last"
    vector_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse sizes that no decoder has, so that later arithmetic need not look again."""
        limits = {
            "vocab_size": 1 << 24,
            "hidden_size": 1 << 20,
            "intermediate_size": 1 << 22,
            "num_heads": 1 << 12,
            "num_kv_heads": 1 << 12,
            "head_dim": 1 << 12,
            "context_tokens": 1 << 28,
        }
        for name, limit in limits.items():
            check_integer("", name, getattr(self, name), 1, limit)
        if type(self.family) is not str or not 1 <= len(self.family) <= 64:
            raise ArtefactError(f"spec: family is {shown(self.family)}, expected a short name")
        if type(self.layers) is not tuple or not 1 <= len(self.layers) <= 4096:
            raise ArtefactError("spec: layers are not a tuple of 1..4096 layers")
        if self.num_heads % self.num_kv_heads:
            raise ArtefactError(
                f"spec: num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}"
            )
        for i, layer in enumerate(self.layers):
            parts: tuple[LayerPart, ...] = (layer.mixer, layer.ffn)
            for part in parts:
                part.check(f"spec: layer {i}", self)
        for i, rope in enumerate(self.ropes):
            if rope.rotary_dim > self.most_head_dim:
                raise ArtefactError(
                    f"spec: rope {i} rotates {rope.rotary_dim} dims of head_dim "
                    f"{self.most_head_dim}"
                )
        self._check_caches()
        check_integer("", "per_layer_size", self.per_layer_size, 0, 1 << 20)
        check_integer("", "streams", self.streams, 0, 8)
        self._check_vectors()
        for name in ("centred_norms", "parallel"):
            check_choice("", name, getattr(self, name), (True, False))
        if self.post_norm and (self.centred_norms or self.parallel):
            raise ArtefactError("spec: post_norm with centred_norms or parallel, expected neither")
        if self.parallel and not self.pre_norm:
            raise ArtefactError("spec: parallel is true, expected pre_norm")
        check_choice("", "activation", self.activation, get_args(Activation))
        check_choice("", "qk_norm", self.qk_norm, get_args(QkNorm))
        for name in ("pre_norm", "post_norm", "qkv_bias", "o_bias", "mlp_bias", "tied"):
            check_choice("", name, getattr(self, name), (True, False))
        check_number("", "norm_eps", self.norm_eps, 0.0, 1.0)
        for name in ("attn_softcap", "logit_softcap"):
            check_number("", name, getattr(self, name), 0.0, 1e30)
        for name in ("attn_scale", "embed_scale", "residual_scale", "logit_scale"):
            check_number("", name, getattr(self, name), -1e30, 1e30)
        if self.bos_token is not None:
            check_integer("", "bos_token", self.bos_token, 0, self.vocab_size - 1)
        for token in self.eos_tokens:
            check_integer("", "eos_tokens", token, 0, self.vocab_size - 1)

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return len(self.layers)

    @property
    def vector_size(self) -> int:
        """Return the size of a text's vector."""
        return self.vector_sizes[-1] if self.vector_sizes else self.hidden_size

    def _check_vectors(self) -> None:
        """Refuse settings of vectors that are out of range."""
        check_choice("", "both_sides", self.both_sides, (True, False))
        check_choice("", "pooling", self.pooling, get_args(Pooling))
        if type(self.vector_sizes) is not tuple or len(self.vector_sizes) > 16:
            raise ArtefactError("spec: vector_sizes are not a tuple of at most 16 sizes")
        for size in self.vector_sizes:
            check_integer("", "vector_sizes", size, 1, 1 << 20)
        if self.both_sides and self.keeps_states:
            raise ArtefactError("spec: both_sides is true, expected layers of attention alone")

    def _check_caches(self) -> None:
        """Refuse layers of one window whose keys have other sizes: they share a cache's slots."""
        for i, layer in enumerate(self.layers):
            if layer.attention is not None and layer.attention.shares >= i:
                raise ArtefactError(
                    f"spec: layer {i} shares keys and values of layer {layer.attention.shares}, "
                    "expected an earlier one"
                )
        sizes: dict[int, tuple[int, int]] = {}
        for i in self.attention_layers:
            window = self.layers[i].window
            if sizes.setdefault(window, self.kv_sizes(i)) != self.kv_sizes(i):
                raise ArtefactError(
                    f"spec: layer {i} has (KV heads, head_dim) {self.kv_sizes(i)}, others with its "
                    f"window {sizes[window]}"
                )

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers that store keys and values: a KV cache has slots for no others."""
        attentions = ((i, layer.attention) for i, layer in enumerate(self.layers))
        return tuple(i for i, mixer in attentions if mixer is not None and mixer.shares < 0)

    def kv_sizes(self, layer: int) -> tuple[int, int]:
        """Heads of keys and values, and dims of a head, of a layer; the decoder's without any."""
        mixer = self.layers[layer].attention
        return (self.num_kv_heads, self.head_dim) if mixer is None else mixer.sizes(self)

    @property
    def uniform(self) -> bool:
        """Whether all layers with attention store keys and values, of the decoder's sizes."""
        sizes = (self.num_kv_heads, self.head_dim)
        attentions = ((i, x.attention) for i, x in enumerate(self.layers))
        return all(
            mixer is None or (mixer.shares < 0 and self.kv_sizes(i) == sizes)
            for i, mixer in attentions
        )

    @property
    def most_head_dim(self) -> int:
        """Dims of the largest head."""
        return max(self.head_dim, *(self.kv_sizes(i)[1] for i in range(self.num_layers)))

    @property
    def most_kv_heads(self) -> int:
        """A number of KV heads of which every layer's is a divisor: a cache has as many records."""
        return math.lcm(self.num_kv_heads, *(self.kv_sizes(i)[0] for i in range(self.num_layers)))

    @property
    def keeps_states(self) -> bool:
        """Return whether a layer keeps a state instead of every token's keys and values."""
        return any(layer.mixer.STATEFUL for layer in self.layers)

    def to_json(self) -> str:
        """Return the spec as one line of JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["layers"] = [layer.fields() for layer in self.layers]
        fields["ropes"] = [dataclasses.asdict(rope) for rope in self.ropes]
        fields["vector_sizes"] = list(self.vector_sizes)
        for part in (fields, *fields["ropes"]):
            for name, usual in _RARE.items():
                if part.get(name) == usual:
                    del part[name]
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> DecoderSpec:
        """Read what `to_json` wrote.

        Raises:
            ArtefactError: a field is missing, unknown or out of range.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["layers"] = tuple(LayerSpec.read(layer) for layer in fields["layers"])
            fields["ropes"] = tuple(_rope(rope) for rope in fields["ropes"])
            fields["eos_tokens"] = tuple(fields["eos_tokens"])
            fields["vector_sizes"] = tuple(fields.get("vector_sizes", ()))
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtefactError(f"spec in the model's metadata is not readable: {error}") from error


def _rope(fields: dict[str, Any]) -> RopeSpec:
    """Return a rope from JSON, where lists stand for tuples."""
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return RopeSpec(**known)
