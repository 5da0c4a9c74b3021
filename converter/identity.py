"""The identity of a conversion, and the packages that it needs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from edgetok.converter.calibrate.calibration_text import built_in_text, calibration_text
from edgetok.converter.options import ConvertOptions
from edgetok.errors import MissingExtraError
from edgetok.formats.checkpoint import Checkpoint

VERSION = 6  # of the output; work of another version is never continued


def require_torch(what: str) -> None:
    """Refuse early what needs torch and transformers where they are not installed.

    Raises:
        MissingExtraError: naming `what` and the extra.
    """
    if not has_torch():
        raise MissingExtraError(
            f"{what} runs the model on a calibration text, which needs torch and transformers: "
            "pip install 'edgetok[convert]', or use --method rtn"
        )


def has_torch() -> bool:
    """Return whether torch and transformers are installed, without importing them."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def title_of(
    checkpoint: Checkpoint, options: ConvertOptions, *, measured: bool = False
) -> dict[str, Any]:
    """Return what two runs of one conversion have in common; `measured` if formats need a text."""
    title: dict[str, Any] = {
        "version": VERSION,
        "source": checkpoint.fingerprint,
        "options": options.to_json(),
    }
    if options.calibrates or measured:
        text = calibration_text(options)
        if options.calibration is None:
            text += built_in_text("compared")
        title["calibration"] = hashlib.sha256(text.encode()).hexdigest()
        # Another release may round otherwise.
        title["libraries"] = {
            name: importlib.metadata.version(name) for name in ("numpy", "torch", "transformers")
        }
    return title


def shown(source: str) -> str:
    """Return a hub id, or the last part of a path: a report must not show a home folder."""
    return Path(source).resolve().name if Path(source).expanduser().exists() else source
