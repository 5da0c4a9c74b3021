"""A saved conversation: one file, read strictly and bound to its model.

    {"format": "edgetok-chat", "version": 1, "sha256": "...", "model": "...", "system": null,
     "turns": [{"role": "user", "content": "..."}, ...], "sampling": {...}}

`sha256` is that of the other fields as canonical JSON, so that a damaged file is seen before
anything changes. A bounded cache is saved as well, since nothing else knows what it kept: a
container (`formats/container.py`) with this object as "session", and as parts the tokens (int32)
and the cache's state block (`cache/state.py`). A container that an earlier edgetok wrote, with the
whole memory of a cache, gives its conversation; the cache is computed again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetok.cache.state_file import SavedCache, cache_parts, is_outdated, saved_cache
from edgetok.errors import OptionError, SessionError
from edgetok.formats import strict_json
from edgetok.formats.container import (
    is_container,
    read_container,
    replace_file,
    write_container,
)
from edgetok.sampling.options import SamplingOptions

FORMAT = "edgetok-chat"
VERSION = 1

_MOST_TEXT_BYTES = 64 << 20
_KEYS = {"format", "version", "sha256", "model", "system", "turns", "sampling"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The contents of a session file.

    Attributes:
        model: `Artefact.identity` of the model that it was held with.
        system: the system message.
        turns: messages in order, each with "role" (user or assistant) and "content".
        sampling: fields of `SamplingOptions`.
    """

    model: str
    system: str | None
    turns: tuple[Mapping[str, str], ...]
    sampling: Mapping[str, Any]


def write_session(path: Path, session: Session, cache: SavedCache | None = None) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    body = {
        "format": FORMAT,
        "version": VERSION,
        "model": session.model,
        "system": session.system,
        "turns": [dict(turn) for turn in session.turns],
        "sampling": dict(session.sampling),
    }
    body["sha256"] = _digest(body)
    if cache is None:
        replace_file(path, [json.dumps(body, ensure_ascii=False, indent=1).encode()])
        return
    header, parts = cache_parts(cache)
    write_container(path, session.model, {"session": body, **header}, parts)


def read_session(
    path: Path, model: str, max_cache_bytes: int = 1 << 36
) -> tuple[Session, SamplingOptions, SavedCache | None]:
    """Read a file and check that it is whole and belongs to `model`.

    Args:
        path: a regular file.
        model: `Artefact.identity`.
        max_cache_bytes: most bytes of a cache that can be taken; a larger file is refused unread.

    Returns:
        The conversation, its sampling options, and its cache if the file has one.

    Raises:
        SessionError: otherwise.
    """
    cache = None
    if is_container(path):
        header, parts = read_container(path, model, max_cache_bytes + _MOST_TEXT_BYTES)
        result = header.get("session")
        if not isinstance(result, dict):
            raise SessionError(
                f"{path}: holds a cache and no conversation, so the chat cannot load it"
            )
        cache = None if is_outdated(header) else saved_cache(path, header, parts)
    else:
        result = strict_json.read_object(path, error=SessionError)
    if result.get("format") != FORMAT or result.get("version") != VERSION:
        raise SessionError(
            f"{path}: format {result.get('format')!r:.40} version {result.get('version')!r:.20}, "
            f"expected {FORMAT!r} version {VERSION}; edgetok did not save this file"
        )
    if result.keys() != _KEYS:
        odd = sorted(result.keys() ^ _KEYS)
        raise SessionError(f"{path}: fields {', '.join(odd)!r:.80} are missing or unknown")
    digest = result.pop("sha256")
    if not isinstance(digest, str) or not hmac.compare_digest(
        digest.encode(), _digest(result).encode()
    ):
        raise SessionError(f"{path}: hash mismatch; the file is damaged or was edited")
    if result["model"] != model:
        raise SessionError(
            f"{path}: belongs to another model ({result['model']!s:.12}, this one is {model:.12}); "
            "load it with the model that saved it"
        )
    system, turns = result["system"], result["turns"]
    if system is not None and not isinstance(system, str):
        raise SessionError(f"{path}: system is a {type(system).__name__}, expected a text or null")
    if not isinstance(turns, list):
        raise SessionError(f"{path}: turns is a {type(turns).__name__}, expected a list")
    for i, turn in enumerate(turns):
        role = ("user", "assistant")[i % 2]
        if (
            not isinstance(turn, dict)
            or turn.keys() != {"role", "content"}
            or turn["role"] != role
            or not isinstance(turn["content"], str)
        ):
            raise SessionError(f"{path}: turn {i} is not a message with the role {role!r}")
    if not isinstance(result["sampling"], dict):
        raise SessionError(f"{path}: sampling is not an object")
    try:
        sampling = SamplingOptions().with_changes(result["sampling"])
    except (OptionError, TypeError) as error:
        raise SessionError(f"{path}: sampling: {error}") from error
    session = Session(model=model, system=system, turns=tuple(turns), sampling=result["sampling"])
    return session, sampling, cache


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
