"""Layers and names of tensors that families of gated delta nets and gated attention share."""

from __future__ import annotations

from edgetok.errors import CheckpointError
from edgetok.models.config.decoder import layer_count
from edgetok.models.config.reader import ConfigReader
from edgetok.models.family import TensorSource, standard_tensors
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.experts import Experts
from edgetok.models.layers.gated_delta import GatedDeltaNet
from edgetok.models.layers.kind import Mixer
from edgetok.models.layers.short_conv import MOST_TAPS
from edgetok.models.spec import DecoderSpec

_NAMES = {
    "pre_mlp_norm": "post_attention_layernorm",
    "attn_gate": "self_attn.q_proj",
    "delta_qkv": "linear_attn.in_proj_qkv",
    "delta_z": "linear_attn.in_proj_z",
    "delta_b": "linear_attn.in_proj_b",
    "delta_a": "linear_attn.in_proj_a",
    "delta_conv": "linear_attn.conv1d",
    "delta_norm": "linear_attn.norm",
    "delta_out": "linear_attn.out_proj",
}
# Numbers a head, which are not a module's weight.
_ALONE = {"delta_log_rate": "linear_attn.A_log", "delta_dt": "linear_attn.dt_bias"}
# Of the layers that guess further tokens, and of the type that states are trained in.
_UNUSED = ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype")


def read_hybrid_mixers(config: ConfigReader) -> tuple[Mixer, ...]:
    """Return each layer's mixer: gated attention in every fourth layer, or where types say so."""
    for key in _UNUSED:
        config.value(key)
    config.expect("attn_output_gate", True)
    config.expect("hidden_act", "silu")
    heads = {
        "key_heads": config.integer("linear_num_key_heads", 16, high=1 << 12),
        "value_heads": config.integer("linear_num_value_heads", 32, high=1 << 12),
    }
    if heads["value_heads"] % heads["key_heads"]:
        raise CheckpointError(
            f"{config.where}: linear_num_value_heads {heads['value_heads']} is not a multiple of "
            f"linear_num_key_heads {heads['key_heads']}"
        )
    delta = GatedDeltaNet(
        **heads,
        key_dim=config.integer("linear_key_head_dim", 128, high=1 << 12),
        value_dim=config.integer("linear_value_head_dim", 128, high=1 << 12),
        taps=config.integer("linear_conv_kernel_dim", 4, low=2, high=MOST_TAPS),
    )
    attention = Attention(gated=True)
    count = layer_count(config)
    interval = config.integer("full_attention_interval", 4, high=4096)
    types = config.choices("layer_types", ("linear_attention", "full_attention"), count)
    if types is None:
        return tuple(delta if (i + 1) % interval else attention for i in range(count))
    return tuple(attention if kind == "full_attention" else delta for kind in types)


def read_shared_experts(config: ConfigReader, *, experts: int, top: int) -> Experts:
    """Return experts of which one sees every token, through a gate of its own.

    Args:
        config: read, and the keys are marked as understood.
        experts: default for an absent `num_experts`.
        top: likewise `num_experts_per_tok`.
    """
    return Experts(
        experts=config.integer("num_experts", experts, high=1024),
        top=config.integer("num_experts_per_tok", top, high=32),
        size=config.integer("moe_intermediate_size", 512, high=1 << 20),
        normed=config.flag("norm_topk_prob", True),
        shared_size=config.integer("shared_expert_intermediate_size", 512, high=1 << 20),
        shared_router=True,
    )


def hybrid_tensors(spec: DecoderSpec, *, by_head: bool) -> dict[str, TensorSource]:
    """Return where tensors come from.

    Args:
        spec: says which tensors exist.
        by_head: whether q, k, v and z of the delta nets are one tensor, and b and a another, in
            which the rows of each key head lie together.
    """
    alone = {name: name for name in _ALONE}
    sources = standard_tensors(spec, {**_NAMES, **alone}, norm_add=1.0)
    for i, layer in enumerate(spec.layers):
        place, checkpoint = f"layers.{i}.", f"model.layers.{i}."
        if isinstance(layer.mixer, GatedDeltaNet):
            for name, stored in _ALONE.items():
                sources[f"{place}{name}.weight"] = TensorSource(checkpoint + stored)
            norm = f"{place}delta_norm.weight"
            sources[norm] = TensorSource(sources[norm].name)  # this one is not stored less one
            for name, (stored, pieces) in _by_head(layer.mixer).items() if by_head else ():
                sources[f"{place}{name}.weight"] = TensorSource(
                    f"{checkpoint}linear_attn.{stored}.weight", pieces=pieces
                )
        elif layer.attention is not None and layer.attention.gated:
            # Each head's rows of queries and of the gate follow each other.
            for first, name in enumerate(("q_proj", "attn_gate")):
                pieces = _every(spec.num_heads, 2 * spec.head_dim, first, spec.head_dim)
                for suffix in ("weight", "bias"):
                    if f"{place}{name}.{suffix}" in sources:
                        stored = f"{checkpoint}self_attn.q_proj.{suffix}"
                        sources[f"{place}{name}.{suffix}"] = TensorSource(stored, pieces=pieces)
    return sources


def _every(count: int, stride: int, first: int, rows: int) -> tuple[tuple[int, int], ...]:
    """Ranges of `rows` rows: the `first`-th such one of each `stride` rows."""
    starts = (i * stride + first * rows for i in range(count))
    return tuple((start, start + rows) for start in starts)


def _by_head(mixer: GatedDeltaNet) -> dict[str, tuple[str, tuple[tuple[int, int], ...]]]:
    """Return the tensor of each projection, and the ranges of its rows there."""
    heads, dim = mixer.key_heads, mixer.key_dim
    shared = mixer.value_heads // heads
    width = shared * mixer.value_dim
    stride = 2 * (dim + width)

    def ranges(first: int, rows: int) -> tuple[tuple[int, int], ...]:
        return tuple((i * stride + first, i * stride + first + rows) for i in range(heads))

    qkv = (*ranges(0, dim), *ranges(dim, dim), *ranges(2 * dim, width))
    return {
        "delta_qkv": ("in_proj_qkvz", qkv),
        "delta_z": ("in_proj_qkvz", ranges(2 * dim + width, width)),
        "delta_b": ("in_proj_ba", _every(heads, 2 * shared, 0, shared)),
        "delta_a": ("in_proj_ba", _every(heads, 2 * shared, 1, shared)),
    }
