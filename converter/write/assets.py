"""Files of an artefact beside the weights: tokenizer, template, defaults, licence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetok.converter.durable import write_durably
from edgetok.converter.write.special_tokens import TOKENIZER_CONFIG_FILE
from edgetok.converter.write.tokenizer_files import (
    TOKENIZER_FILE,
    TokenizerFiles,
    read_tokenizer,
)
from edgetok.errors import TemplateError
from edgetok.formats import strict_json
from edgetok.text.template import ChatTemplate

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"

_MAX_TEXT_BYTES = 4 << 20
_COPIED = (
    CONFIG_FILE,  # what names and sizes an export is to have
    TEMPLATE_FILE,
    GENERATION_FILE,
)
_LICENCE = re.compile(r"(licen[cs]e|notice|use_policy)[\w.-]*", re.IGNORECASE | re.ASCII)


def copy_assets(
    source: Path, artefact: Path, vocab_size: int, own_config: Mapping[str, Any]
) -> list[str]:
    """Check the tokenizer and copy what belongs to a model, links followed, into `artefact`.

    Args:
        source: the checkpoint's folder.
        artefact: the folder that is being made.
        vocab_size: the model's number of logits.
        own_config: the model's, where the folder's config.json says more.

    Returns:
        Notes for the report.

    Raises:
        CheckpointError: a file is damaged, or the tokenizer belongs to another model.
        TemplateError: the chat template is not usable.
        OutputError: a file could not be written.
    """
    tokenizer = read_tokenizer(source, vocab_size)
    notes = list(tokenizer.notes)
    write_durably(artefact / TOKENIZER_FILE, tokenizer.data)
    settings = json.dumps(tokenizer.settings, indent=2, ensure_ascii=False) + "\n"
    write_durably(artefact / TOKENIZER_CONFIG_FILE, settings.encode())
    contents: dict[str, dict[str, Any]] = {}
    for name in _COPIED:
        path = source / name
        if path.exists():
            data = strict_json.read_bytes(path, max_bytes=_MAX_TEXT_BYTES)
            if name.endswith(".json"):
                contents[name] = strict_json.loads_object(data, name)
            if name == CONFIG_FILE and contents[name] != own_config:
                contents[name] = dict(own_config)
                data = (json.dumps(own_config, indent=2, ensure_ascii=False) + "\n").encode()
            write_durably(artefact / name, data)
    _template_of_a_processor(source, artefact, tokenizer.settings)
    template = _template(artefact, tokenizer.settings)
    end = None if template is None else _end_of_turn(template, tokenizer)
    if end is not None:
        config, generation = (contents.get(name, {}) for name in (CONFIG_FILE, GENERATION_FILE))
        known = [generation.get("eos_token_id"), config.get("eos_token_id")]
        ids = [
            i
            for value in known
            for i in (value if isinstance(value, list) else [value])
            if type(i) is int
        ]
        number = tokenizer.core.token_to_id(end)
        if number is not None and number not in ids and end != tokenizer.settings.get("eos_token"):
            notes.append(f"answers end at {end}, as the chat template has it; no file names it")
            ends = [*dict.fromkeys(ids), number]
            text = json.dumps({**generation, "eos_token_id": ends}, indent=2) + "\n"
            write_durably(artefact / GENERATION_FILE, text.encode())
    for path in sorted(source.iterdir()):
        if path.is_file() and _LICENCE.fullmatch(path.name):
            data = strict_json.read_bytes(path, max_bytes=_MAX_TEXT_BYTES)
            write_durably(artefact / path.name, data)
    return notes


def _template_of_a_processor(source: Path, artefact: Path, settings: dict[str, Any]) -> None:
    """Write the template of `chat_template.json`, where older processors put the only one."""
    path = source / "chat_template.json"
    if settings.get("chat_template") or (artefact / TEMPLATE_FILE).exists() or not path.exists():
        return
    template = strict_json.read_object(path, max_bytes=_MAX_TEXT_BYTES).get("chat_template")
    if isinstance(template, str):
        write_durably(artefact / TEMPLATE_FILE, template.encode())


def _template(artefact: Path, settings: dict[str, Any]) -> ChatTemplate | None:
    """Find out now, rather than after the conversion, that the artefact would not load."""
    try:
        return ChatTemplate.from_folder(artefact, settings)
    except TemplateError as error:
        raise TemplateError(f"{error}; correct the model's chat template or remove it") from error


def _end_of_turn(template: ChatTemplate, tokenizer: TokenizerFiles) -> str | None:
    """The special token that the template writes right after an assistant's words."""
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "welcome"}]
    try:
        text = template.render(said, add_generation_prompt=False)
    except TemplateError:
        return None
    after = text.rpartition("welcome")[2].lstrip()
    added = tokenizer.core.get_added_tokens_decoder().values()
    found = [token.content for token in added if token.special and after.startswith(token.content)]
    return max(found, key=len, default=None)
