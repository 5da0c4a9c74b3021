"""Checkpoints of families without a file here whose settings and tensors are exactly Llama's.

Many models are Llama under a name of their own. What they compute is taken for Llama's where every
setting is one that Llama has and every tensor has Llama's name and shape; the report says so.
"""

from __future__ import annotations

from typing import Final

from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.checkpoint import Checkpoint
from edgetok.models.registry import families, read_family

_FAMILY: Final = "llama"


def plain_llama(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint of Llama's shape as one of Llama, and any other as it is."""
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type in families():
        return checkpoint
    config = {**checkpoint.config, "model_type": _FAMILY}
    found = Checkpoint(
        checkpoint.folder,
        config,
        checkpoint.generation_config,
        dict(checkpoint.infos),
        checkpoint.fingerprint,
    )
    try:
        CanonicalWeights(found, read_family(config, checkpoint.generation_config))
    except (CheckpointError, UnsupportedError):
        return checkpoint
    found.notes = (
        *checkpoint.notes,
        f"model_type {model_type!r} is not known; all settings and tensors are those of "
        f"{_FAMILY}, so that it is converted as one",
    )
    return found
