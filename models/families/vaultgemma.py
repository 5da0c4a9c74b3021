"""VaultGemma: Gemma 2 without the norms behind attention and MLP.

Source: arXiv 2510.15001; transformers `VaultGemmaConfig`.
"""

from __future__ import annotations

from edgetok.models.config.reader import ConfigReader
from edgetok.models.families.gemma2 import DEFAULTS, with_norms
from edgetok.models.family import Family

__all__ = ["DEFAULTS", "read"]

_NORMS = {"pre_mlp_norm": "pre_feedforward_layernorm"}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    return with_norms(config, _NORMS, post_norm=False)
