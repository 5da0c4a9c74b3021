"""Read what a checkpoint's generation_config.json says about answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from edgetok.errors import ArtefactError
from edgetok.formats import strict_json
from edgetok.text.tokenizer import Tokenizer


def read_generation_config(folder: Path) -> dict[str, object]:
    """Return the content of `generation_config.json`; {} where there is none.

    Raises:
        ArtefactError: the file is damaged.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return {}
    return strict_json.read_object(path, error=ArtefactError)


def end_tokens(
    listed: Iterable[int], generation: Mapping[str, object], tokenizer: Tokenizer
) -> frozenset[int]:
    """Return all tokens that the checkpoint says end an answer.

    Args:
        listed: those that its config.json names.
        generation: the content of generation_config.json.
        tokenizer: its end token is one, too.
    """
    result = set(listed)
    named = generation.get("eos_token_id")
    for token in named if isinstance(named, list) else [named]:
        if type(token) is int:
            result.add(token)
    if tokenizer.eos_token is not None:
        result.add(tokenizer.eos_token)
    return frozenset(result)
