"""The text model of a multimodal checkpoint, read as if it were a checkpoint of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgetok.errors import CheckpointError
from edgetok.formats.checkpoint import Checkpoint
from edgetok.formats.safetensors_file import TensorInfo
from edgetok.models.config.wrapped import text_config

_EMBEDDING = "embed_tokens.weight"
_HEAD = "lm_head."
_TIED = "tie_word_embeddings"


class TextTower(Checkpoint):
    """The text model's config and tensors, under the names that it has alone."""

    def __init__(self, outer: Checkpoint, config: Mapping[str, Any]) -> None:
        """Find the text model's tensors by its embedding.

        Raises:
            CheckpointError: there is no embedding, or several.
        """
        body, head = _prefixes(outer)
        infos: dict[str, TensorInfo] = {}
        left_out: Counter[str] = Counter()
        for name, info in outer.infos.items():
            if head is not None and name.startswith(head):
                infos[_HEAD + name.removeprefix(head)] = info
            elif name.startswith(body):
                infos["model." + name.removeprefix(body)] = info
            else:
                left_out[name.removeprefix("model.").partition(".")[0]] += info.nbytes
        config = dict(config)
        if head is None and (not body or outer.config.get(_TIED) is True):
            # Of the two settings, the wrapper's decided which tensors were saved. A model that was
            # trained for embeddings has no head, and nobody asks for its logits.
            config[_TIED] = True
        super().__init__(outer.folder, config, outer.generation_config, infos, outer.fingerprint)
        if not left_out:
            return
        parts = ", ".join(f"{part} ({size / 1e6:.1f} MB)" for part, size in left_out.items())
        self.notes = (f"the text model alone: {parts} left out",)


def text_tower(checkpoint: Checkpoint) -> Checkpoint:
    """Return the text model of a multimodal checkpoint, and any other checkpoint as it is.

    One without `model.` before its names, as embedding models are saved, gets it.

    Raises:
        UnsupportedError: the text model is of no known family, or a setting is not understood.
        CheckpointError: a setting or a tensor is missing.
    """
    config = text_config(checkpoint.config)
    if config is None and _EMBEDDING in checkpoint.infos:
        config = checkpoint.config
    return checkpoint if config is None else TextTower(checkpoint, config)


def _prefixes(outer: Checkpoint) -> tuple[str, str | None]:
    """Return what stands before the names of the body and of the head, if it has one."""
    found = [n for n in outer.names if n == _EMBEDDING or n.endswith("." + _EMBEDDING)]
    if len(found) != 1:
        raise CheckpointError(
            f"{outer.folder}: {len(found)} tensors are named ...{_EMBEDDING}, expected one, the "
            "text model's"
        )
    body = found[0].removesuffix(_EMBEDDING)
    parts = body.split(".")
    heads = [".".join([*parts[:i], _HEAD]) for i in range(len(parts))]
    used = {head for head in heads for name in outer.names if name.startswith(head)}
    if len(used) > 1:
        raise CheckpointError(
            f"{outer.folder}: {len(used)} output heads, expected one: {', '.join(sorted(used))}"
        )
    return body, next(iter(used), None)
