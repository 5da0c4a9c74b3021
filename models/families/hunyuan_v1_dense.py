"""Hunyuan, dense: llama that norms queries and keys behind their rotation.

Source: https://github.com/Tencent-Hunyuan/Hunyuan-7B; transformers `HunYuanDenseV1Config`.
"""

from __future__ import annotations

import dataclasses

from edgetok.models.config.decoder import decoder_sizes, layer_count, read_activation
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import PRE_NORMS, Family, standard_tensors
from edgetok.models.layers.attention import Attention
from edgetok.models.spec import DecoderSpec, LayerSpec, RopeSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 290943,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NORMS = {
    **PRE_NORMS,
    "q_norm": "self_attn.query_layernorm",
    "k_norm": "self_attn.key_layernorm",
}
# Of larger models of the same code, of classifiers, of pictures; transformers reads none of them.
_UNUSED = (
    "attention_head_dim",
    "cla_share_factor",
    "class_num",
    "dense_list",
    "eod_token_id",
    "im_end_id",
    "im_newline_id",
    "im_start_id",
    "mask_init_id",
    "norm_type",
    "org_vocab_size",
    "pool_type",
    "text_end_id",
    "text_start_id",
    "use_rotary_pos_emb",
)
# Of a scaling that `alpha` alone describes.
_OF_ALPHA = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config)
    for key in _UNUSED:
        config.value(key)
    for key in ("add_classification_head", "mlp_bias", "position_embedding_xdrope", "use_cla"):
        config.expect(key, False)
    config.expect("use_qk_norm", True)
    bias = config.flag("attention_bias")
    mixer = Attention(normed_behind_rope=True)
    spec = DecoderSpec(
        **sizes,
        layers=(LayerSpec(mixer=mixer),) * layer_count(config),
        ropes=(_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
    )
    return Family(spec, standard_tensors(spec, _NORMS))


def _rope(config: ConfigReader, head_dim: int) -> RopeSpec:
    """Return the embedding, whose "dynamic" scaling is a larger base for any length."""
    scaling = config.section("rope_parameters") or config.section("rope_scaling")
    if scaling is None or not scaling.has("alpha"):
        # Norms behind the rotation undo a factor of cosines and sines.
        return dataclasses.replace(read_rope(config, head_dim), attention_factor=1.0)
    kind = scaling.text("rope_type", scaling.text("type", "dynamic"))
    if kind != "dynamic":
        raise scaling.unsupported("rope_type", kind, "dynamic, as there is an alpha")
    for key in (*_OF_ALPHA, "factor", "type"):
        scaling.value(key)
    theta = config.number("rope_theta", 1e4, low=1.0 + 1e-6, high=1e15)
    theta = scaling.number("rope_theta", theta, low=1.0 + 1e-6, high=1e15)
    alpha = scaling.number("alpha", low=1.0, high=1e9)
    scaling.finish()
    return RopeSpec(theta=theta * alpha ** (head_dim / (head_dim - 2)), rotary_dim=head_dim)
