"""A saved conversation: one JSON file, read strictly and bound to its model.

    {"format": "edgetok-chat", "version": 1, "sha256": "...", "model": "...", "system": null,
     "turns": [{"role": "user", "content": "..."}, ...], "sampling": {...}}

`sha256` is that of the other fields as canonical JSON, so that a damaged file is seen before
anything changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetok.errors import OptionError, OutputError, SessionError
from edgetok.formats import strict_json
from edgetok.text.sampling import SamplingOptions

FORMAT = "edgetok-chat"
VERSION = 1
_KEYS = {"format", "version", "sha256", "model", "system", "turns", "sampling"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a file holds.

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


def write_session(path: Path, session: Session) -> None:
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
    data = json.dumps({**body, "sha256": _digest(body)}, ensure_ascii=False, indent=1).encode()
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def read_session(path: Path, model: str) -> tuple[Session, SamplingOptions]:
    """Read a file and check that it is whole and belongs to `model`.

    Raises:
        SessionError: otherwise.
    """
    found = strict_json.read_object(path, error=SessionError)
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise SessionError(
            f"{path}: format {found.get('format')!r:.40} version {found.get('version')!r:.20}, "
            f"expected {FORMAT!r} version {VERSION}; this is no conversation that edgetok saved"
        )
    if found.keys() != _KEYS:
        odd = sorted(found.keys() ^ _KEYS)
        raise SessionError(f"{path}: fields {', '.join(odd)!r:.80} are missing or unknown")
    digest = found.pop("sha256")
    if not isinstance(digest, str) or not hmac.compare_digest(
        digest.encode(), _digest(found).encode()
    ):
        raise SessionError(f"{path}: hash mismatch; the file is damaged or was edited")
    if found["model"] != model:
        raise SessionError(
            f"{path}: belongs to another model ({found['model']!s:.12}, this one is {model:.12}); "
            "load it with the model that it was saved with"
        )
    system, turns = found["system"], found["turns"]
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
    if not isinstance(found["sampling"], dict):
        raise SessionError(f"{path}: sampling is no object")
    try:
        sampling = SamplingOptions().with_changes(found["sampling"])
    except (OptionError, TypeError) as error:
        raise SessionError(f"{path}: sampling: {error}") from error
    session = Session(model=model, system=system, turns=tuple(turns), sampling=found["sampling"])
    return session, sampling


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
