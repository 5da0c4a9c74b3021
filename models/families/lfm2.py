"""LFM2: gated short convolutions, and attention in a few layers.

Source: arXiv 2511.23404; transformers `Lfm2Config`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, layer_count
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, fused_tensors
from edgetok.models.layers.short_conv import MOST_TAPS, ShortConvolution
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-05,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NAMES = {
    "final_norm": "model.embedding_norm",
    "input_norm": "operator_norm",
    "pre_mlp_norm": "ffn_norm",
    "q_norm": "self_attn.q_layernorm",
    "k_norm": "self_attn.k_layernorm",
    "o_proj": "self_attn.out_proj",
    "conv": "conv.conv",
    "out_proj": "conv.out_proj",
    "gate_proj": "feed_forward.w1",
    "up_proj": "feed_forward.w3",
    "down_proj": "feed_forward.w2",
}
FUSED = {"conv.in_proj": ("b_proj", "c_proj", "x_proj")}
# Of the training, or without a reader in transformers.
_UNUSED = (
    "block_mlp_init_scale",
    "block_out_init_scale",
    "block_use_xavier_init",
    "conv_use_xavier_init",
)


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, tied=True, kv_heads=8, norm_eps="norm_eps")
    sizes["intermediate_size"] = _intermediate_size(config, sizes["intermediate_size"])
    sizes["tied"] = config.flag("tie_embedding", sizes["tied"])  # the older key wins
    for key, value in (
        ("conv_bias", False),
        ("hidden_act", "silu"),
        ("block_use_swiglu", True),
        ("use_pos_enc", True),
        ("num_heads", sizes["num_heads"]),
        ("block_norm_eps", sizes["norm_eps"]),
        *((key, sizes["hidden_size"]) for key in ("block_dim", "conv_dim", "conv_dim_out")),
    ):
        config.expect(key, value)
    for key in _UNUSED:
        config.value(key)
    taps = config.integer("conv_L_cache", 3, low=2, high=MOST_TAPS)
    rope = read_rope(config, sizes["head_dim"], theta=config.number("theta", 1e6, low=1.000001))
    conv = LayerSpec(mixer=ShortConvolution(taps=taps))
    spec = DecoderSpec(
        **sizes,
        layers=tuple(LayerSpec() if attends else conv for attends in read_attends(config)),
        ropes=(rope,),
        qk_norm="head",
    )
    return Family(spec, fused_tensors(spec, FUSED, NAMES))


def _intermediate_size(config: ConfigReader, size: int) -> int:
    """Return the width of the feed-forward network, which the config gives before adjustment."""
    size = config.integer("block_ff_dim", size, high=1 << 22)
    factor = config.optional_number("block_ffn_dim_multiplier", 1.0, low=1e-3, high=1e3)
    multiple = config.integer("block_multiple_of", 256, high=1 << 20)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(2 * size / 3)
    if factor is None:
        return size
    return -(-int(factor * size) // multiple) * multiple


def read_attends(config: ConfigReader) -> list[bool]:
    """Read whether each layer is attention."""
    count = layer_count(config)
    types = config.choices("layer_types", ("full_attention", "conv"), count)
    listed = config.value("full_attn_idxs")
    if types is not None:
        return [kind == "full_attention" for kind in types]
    if listed is None:
        return [True] * count
    if not isinstance(listed, list | tuple) or not all(
        type(i) is int and 0 <= i < count for i in listed
    ):
        raise config.unsupported("full_attn_idxs", listed, f"a list of layers below {count}")
    return [i in listed for i in range(count)]
