"""Qwen3.5 with experts, text only: Qwen3.5 with a router and a shared expert in every layer.

Source: transformers 5 `Qwen3_5MoeTextConfig`; the layers arXiv 2412.06464 and arXiv 2505.06708.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import AXES, read_rope
from edgetok.models.family import Family
from edgetok.models.hybrid import hybrid_tensors, read_hybrid_mixers, read_shared_experts
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out. Every layer has experts: there is no dense network's size.
DEFAULTS = {
    "vocab_size": 248320,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    experts = read_shared_experts(config, experts=256, top=8)
    sizes = decoder_sizes(config, kv_heads=2, head_dim=256, inner=experts.size)
    bias = config.flag("attention_bias")
    config.value("router_aux_loss_coef")  # of the training
    config.expect("mlp_only_layers", [])
    config.expect("norm_topk_prob", True)
    config.expect("decoder_sparse_step", 1)
    spec = DecoderSpec(
        **sizes,
        layers=tuple(LayerSpec(mixer=mixer, ffn=experts) for mixer in read_hybrid_mixers(config)),
        ropes=(read_rope(config, sizes["head_dim"], share=0.25, others=AXES),),
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
    )
    return Family(spec, hybrid_tensors(spec, by_head=False))
