"""Qwen3.5, text only: gated delta nets, gated attention in every fourth layer, dense networks.

Source: transformers 5 `Qwen3_5TextConfig`; the layers arXiv 2412.06464 and arXiv 2505.06708.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import AXES, read_rope
from edgetok.models.family import Family
from edgetok.models.hybrid import hybrid_tensors, read_hybrid_mixers
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=4, head_dim=256)
    bias = config.flag("attention_bias")
    config.expect("mlp_only_layers", [])  # there are no experts that a layer could lack
    spec = DecoderSpec(
        **sizes,
        layers=tuple(LayerSpec(mixer=mixer) for mixer in read_hybrid_mixers(config)),
        ropes=(read_rope(config, sizes["head_dim"], share=0.25, others=AXES),),
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
    )
    return Family(spec, hybrid_tensors(spec, by_head=False))
