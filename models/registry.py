"""Finding the family file of a checkpoint by its `model_type`."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any, Final

from edgetok.errors import UnknownFamilyError, UnsupportedError
from edgetok.models.config.reader import ConfigReader, shown
from edgetok.models.family import Family

_GENERATION: Final = "generation_config.json"
FAMILIES: Final = "edgetok.models.families"
_SLUG: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


def families() -> tuple[str, ...]:
    """Return the `model_type`s that have a family file, sorted."""
    return _listed(*importlib.import_module(FAMILIES).__path__)


@functools.cache
def _listed(*folders: str) -> tuple[str, ...]:
    result = pkgutil.iter_modules(folders)
    return tuple(sorted(m.name for m in result if not m.ispkg and _SLUG.fullmatch(m.name)))


def embeds_texts(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of a decoder without a head whose tokens see both sides."""
    names = config.get("architectures")
    return (
        isinstance(names, list | tuple)
        and "Gemma3TextModel" in names
        and config.get("use_bidirectional_attention") is True
    )


def read_family(
    config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None
) -> Family:
    """Describe the checkpoint whose parsed `config.json` this is.

    Args:
        config: `config.json`, as transformers 4 or 5 writes it.
        generation_config: `generation_config.json` where there is one; its token ids win.

    Raises:
        UnknownFamilyError: no family file has the checkpoint's `model_type`.
        UnsupportedError: a key changes the arithmetic in a way that edgetok does not compute.
        CheckpointError: a value is missing, of the wrong type or out of range.
    """
    reader = ConfigReader(config)
    model_type = reader.text("model_type")
    # Only names that are files of `families/` are ever imported.
    if model_type not in families():
        hint = ""
        if reader.has("text_config"):
            hint = "; its text_config describes the text model: edgetok.models.config.wrapped"
        raise UnknownFamilyError(
            f"config.json: model_type {shown(model_type)} is not a family that edgetok "
            f"describes: {', '.join(families())}{hint}"
        )
    architectures = reader.value("architectures") or ()
    if isinstance(architectures, list | tuple) and architectures:
        names = [name for name in architectures if isinstance(name, str)]
        causal = any(name.endswith("ForCausalLM") for name in names)
        if not causal and not embeds_texts(config):
            raise UnsupportedError(
                f"config.json: architectures is {shown(str(architectures))}, edgetok computes "
                f"causal language models (...ForCausalLM) and embedding models of Gemma 3"
            )
    module = importlib.import_module(f"{FAMILIES}.{model_type}")
    family: Family = module.read(reader)
    reader.finish()
    if not family.spec.attention_layers:  # a cache's slots say how many tokens it holds
        raise UnsupportedError(
            "config.json: no layer is attention, edgetok computes decoders with at least one"
        )
    return _with_tokens(family, reader, ConfigReader(generation_config or {}, _GENERATION))


def _with_tokens(family: Family, config: ConfigReader, generation: ConfigReader) -> Family:
    """Add the token ids, where the generation config's win over the config's."""
    vocab_size = family.spec.vocab_size
    ids = {}
    for key in ("bos_token_id", "eos_token_id"):
        result = generation.tokens(key, vocab_size)
        ids[key] = config.tokens(key, vocab_size) if result is None else result
    spec = dataclasses.replace(
        family.spec,
        bos_token=(ids["bos_token_id"] or (None,))[0],
        eos_tokens=tuple(dict.fromkeys(ids["eos_token_id"] or ())),
    )
    return dataclasses.replace(family, spec=spec)
