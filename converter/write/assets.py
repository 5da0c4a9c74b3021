"""Files of an artefact beside the weights: tokenizer, template, defaults, licence."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from edgetok.converter.durable import write_durably
from edgetok.errors import CheckpointError, TemplateError
from edgetok.formats import strict_json
from edgetok.text.template import ChatTemplate

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CONFIG_FILE = "config.json"

_MAX_TOKENIZER_BYTES = 128 << 20  # Gemma 3's 262,144 tokens take 33 MB
_MAX_TEXT_BYTES = 4 << 20
_COPIED = (
    CONFIG_FILE,  # what names and sizes an export is to have
    TOKENIZER_CONFIG_FILE,
    "chat_template.jinja",
    "generation_config.json",
)
_SLOW_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_LICENCE = re.compile(r"(licen[cs]e|notice|use_policy)[\w.-]*", re.IGNORECASE | re.ASCII)


def copy_assets(source: Path, artefact: Path, vocab_size: int) -> list[str]:
    """Check the tokenizer and copy what belongs to a model, links followed, into `artefact`.

    Args:
        source: the checkpoint's folder.
        artefact: the folder that is being made.
        vocab_size: the model's number of logits.

    Returns:
        Notes for the report.

    Raises:
        CheckpointError: a file is damaged, or the tokenizer belongs to another model.
        TemplateError: the chat template is not usable.
        OutputError: a file could not be written.
    """
    notes = []
    settings: dict[str, Any] = {}
    tokenizer = read_tokenizer(source, vocab_size)
    if tokenizer is None:
        notes.append(f"no {TOKENIZER_FILE}: the model takes and gives token ids only")
    else:
        write_durably(artefact / TOKENIZER_FILE, tokenizer)
    for name in _COPIED:
        path = source / name
        if path.exists():
            data = strict_json.read_bytes(path, max_bytes=_MAX_TEXT_BYTES)
            content = strict_json.loads_object(data, name) if name.endswith(".json") else {}
            write_durably(artefact / name, data)
            if name == TOKENIZER_CONFIG_FILE:
                settings = content
    _require_template(artefact, settings)
    for path in sorted(source.iterdir()):
        if path.is_file() and _LICENCE.fullmatch(path.name):
            data = strict_json.read_bytes(path, max_bytes=_MAX_TEXT_BYTES)
            write_durably(artefact / path.name, data)
    return notes


def _require_template(artefact: Path, settings: dict[str, Any]) -> None:
    """Find out now, rather than after the conversion, that the artefact would not load."""
    try:
        ChatTemplate.from_folder(artefact, settings)
    except TemplateError as error:
        raise TemplateError(f"{error}; correct the model's chat template or remove it") from error


def read_tokenizer(source: Path, vocab_size: int) -> bytes | None:
    """Return the checkpoint's `tokenizer.json`, checked; made from older files where there is none.

    Raises:
        CheckpointError: it is damaged, has an empty added token or ids beyond the vocabulary.
    """
    path = source / TOKENIZER_FILE
    if path.exists():
        data = strict_json.read_bytes(path, max_bytes=_MAX_TOKENIZER_BYTES)
    elif any((source / name).exists() for name in _SLOW_TOKENIZERS):
        data = _from_older_files(source)
    else:
        return None
    _check(data, vocab_size)
    return data


def _check(data: bytes, vocab_size: int) -> None:
    import tokenizers

    content = strict_json.loads_object(
        data, TOKENIZER_FILE, max_bytes=_MAX_TOKENIZER_BYTES, max_keys=1 << 23
    )
    special = set()
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise CheckpointError(f"{TOKENIZER_FILE}: added_tokens is not a list of objects")
    for token in added:
        if not token.get("content"):
            raise CheckpointError(
                f"{TOKENIZER_FILE}: added token {token.get('id')!r:.20} is empty and would match "
                "everywhere; remove it from added_tokens"
            )
        if token.get("special"):
            special.add(token["content"])
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the Rust side raises bare Exception for anything it dislikes
        raise CheckpointError(
            f"{TOKENIZER_FILE}: not readable as a tokenizer: {error}; save it again with a current "
            "release of transformers"
        ) from error
    for text, token in tokenizer.get_vocab(with_added_tokens=True).items():
        # Gemma 3's text models ship a special token of the multimodal ones beyond the vocabulary.
        if token >= vocab_size and text not in special:
            raise CheckpointError(
                f"{TOKENIZER_FILE}: token {text!r:.80} has id {token}, but the model knows "
                f"{vocab_size} tokens; this tokenizer belongs to another model"
            )


def _from_older_files(source: Path) -> bytes:
    """A tokenizer.json from a vocabulary and merges, or a sentencepiece model, by transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise CheckpointError(
            f"{source}: has an older tokenizer but no {TOKENIZER_FILE}; "
            "pip install 'edgetok[convert]' to create one, or save it with transformers"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: Any = AutoTokenizer.from_pretrained(
                source, use_fast=True, local_files_only=True, trust_remote_code=False
            )
        text: str = made.backend_tokenizer.to_str()
    except Exception as error:  # transformers raises whatever its tokenizer classes raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"{source}: no {TOKENIZER_FILE}, and transformers could not make one: {reason:.200}"
        ) from error
    return text.encode()
