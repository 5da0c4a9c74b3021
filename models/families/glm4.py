"""GLM-4-0414: GLM with norms behind attention and the network, too.

Source: https://github.com/zai-org/GLM-4; transformers `Glm4Config`.
"""

from __future__ import annotations

from edgetok.models.config.reader import ConfigReader
from edgetok.models.families import glm
from edgetok.models.family import Family

DEFAULTS = glm.DEFAULTS
_NORMS = {
    "post_attention_norm": "post_self_attn_layernorm",
    "pre_mlp_norm": "post_attention_layernorm",
    "post_mlp_norm": "post_mlp_layernorm",
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    return glm.glm(config, _NORMS, post_norm=True)
