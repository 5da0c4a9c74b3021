"""MiniCPM's checkpoints as those of Granite, whose tensors and arithmetic they have.

Both scale embeddings, what layers add, and logits; MiniCPM's config has what the factors are made
of. The sparse attention of long prompts that some of them may switch on is refused.

Source: arXiv 2404.06395, section 3; the `modeling_minicpm.py` of the published models.
"""

from __future__ import annotations

import math
from typing import Any

from edgetok.formats.checkpoint import Checkpoint
from edgetok.models.config.reader import ConfigReader

_OWN = ("scale_emb", "scale_depth", "dim_model_base", "sparse_config", "mup_denominator")


def minicpm(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint of MiniCPM as one of Granite, and any other as it is.

    Raises:
        UnsupportedError: it attends sparsely.
        CheckpointError: a number is missing or out of range.
    """
    if checkpoint.config.get("model_type") != "minicpm":
        return checkpoint
    config = {key: v for key, v in checkpoint.config.items() if key not in _OWN}
    found = Checkpoint(
        checkpoint.folder,
        config | _multipliers(ConfigReader(checkpoint.config)),
        checkpoint.generation_config,
        dict(checkpoint.infos),
        checkpoint.fingerprint,
    )
    found.notes = (*checkpoint.notes, "minicpm is converted as granite, which computes the same")
    return found


def _multipliers(config: ConfigReader) -> dict[str, Any]:
    config.expect("sparse_config", None)
    hidden_size = config.integer("hidden_size", high=1 << 20)
    heads = config.integer("num_attention_heads", high=1 << 12)
    dim = config.integer("head_dim", max(1, hidden_size // heads), high=1 << 12)
    layers = config.integer("num_hidden_layers", high=4096)
    depth = config.number("scale_depth", 1.0, low=1e-9, high=1e9)
    return {
        "model_type": "granite",
        "architectures": ["GraniteForCausalLM"],
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
        "attention_multiplier": dim**-0.5,
        "embedding_multiplier": config.number("scale_emb", 1.0, low=1e-9, high=1e9),
        "residual_multiplier": depth / math.sqrt(layers),
        "logits_scaling": hidden_size / config.integer("dim_model_base", 1, high=1 << 20),
    }
