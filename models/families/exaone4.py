"""EXAONE 4: norms behind attention and MLP, and layers without a window do not rotate.

Source: arXiv 2507.11407; transformers `Exaone4Config`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, mixed_layers, read_activation, read_window
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import SANDWICH_NORMS, Family, standard_tensors
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=32)
    window = read_window(config, absent=4096)
    pattern = _pattern(config, window)
    layers = mixed_layers(config, window, lambda i: window > 0 and (i + 1) % pattern != 0)
    spec = DecoderSpec(
        **sizes,
        layers=tuple(
            LayerSpec(window=layer.window, rope=0 if layer.window or not window else -1)
            for layer in layers
        ),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
        pre_norm=False,
        post_norm=True,
        qk_norm="head",
    )
    return Family(spec, standard_tensors(spec, SANDWICH_NORMS))


def _pattern(config: ConfigReader, window: int) -> int:
    """Every how many-th layer has no window; some checkpoints spell the layers, as in "LLLG"."""
    key = "sliding_window_pattern"
    value = config.value(key)
    if type(value) is int and value == 0 and window == 0:
        return 1  # transformers 5 saves a model without windows this way
    if isinstance(value, str) and value[:-1] == "L" * (len(value) - 1) and value.endswith("G"):
        return len(value)
    return config.integer(key, 4, high=4096)
