"""Qwen3-Next: gated delta nets, gated attention in every fourth layer, experts with a shared one.

Source: transformers `Qwen3NextConfig`; the layers arXiv 2412.06464 and arXiv 2505.06708.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, expert_layers
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family
from edgetok.models.hybrid import hybrid_tensors, read_hybrid_mixers, read_shared_experts
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=2, head_dim=256)
    bias = config.flag("attention_bias")
    experts = read_shared_experts(config, experts=512, top=10)
    networks = [layer.ffn for layer in expert_layers(config, experts, 0)]
    mixers = read_hybrid_mixers(config)
    spec = DecoderSpec(
        **sizes,
        layers=tuple(
            LayerSpec(mixer=mixer, ffn=ffn) for mixer, ffn in zip(mixers, networks, strict=True)
        ),
        ropes=(read_rope(config, sizes["head_dim"], share=0.25),),
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
    )
    return Family(spec, hybrid_tensors(spec, by_head=True))
