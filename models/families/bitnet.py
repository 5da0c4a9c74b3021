"""BitNet b1.58: ternary matrices, a norm before each product back, squared ReLU.

Its published weights are packed (`converter/read/ternary_checkpoint.py`). It was trained with
activations of 8 bits a token, which are rounded here as those of any other model.

Source: arXiv 2402.17764, arXiv 2504.12285; transformers `BitNetConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, layer_count, read_activation
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import PRE_NORMS, Family, standard_tensors
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.normed_dense import NormedDense
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 128256,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 30,
    "num_attention_heads": 20,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=5)
    bias = config.flag("attention_bias")
    layer = LayerSpec(mixer=Attention(sub_norm=True), ffn=NormedDense())
    spec = DecoderSpec(
        **sizes,
        layers=(layer,) * layer_count(config),
        ropes=(read_rope(config, sizes["head_dim"], theta=5e5),),
        activation=read_activation(config, absent="relu2"),
        qkv_bias=bias,
        o_bias=bias,
    )
    names = {
        **PRE_NORMS,
        "attn_sub_norm": "self_attn.attn_sub_norm",
        "ffn_sub_norm": "mlp.ffn_sub_norm",
    }
    return Family(spec, standard_tensors(spec, names))
