"""Source of a checkpoint: a folder, a file, or a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from edgetok.errors import CheckpointError, MissingExtraError, OptionError
from edgetok.formats.gguf import is_gguf

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)

# Never code, never pickles.
_WANTED = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model", "merges.txt", "LICENSE*")
_UNWANTED = ("*/*",)


def resolve_source(source: str, revision: str | None = None) -> Path:
    """Turn what the user gave into a local folder or file, downloading where it is a hub id.

    Args:
        source: an existing folder or GGUF file, or `owner/name`.
        revision: a branch, tag or commit of a hub repository.

    Raises:
        OptionError: a revision of something that is not a repository.
        CheckpointError: neither a folder nor a repository that can be downloaded.
        MissingExtraError: a hub id without huggingface_hub.
    """
    folder = Path(source).expanduser()
    if folder.is_dir() or is_gguf(folder):
        if revision is not None:
            raise OptionError(
                f"--revision needs a hub id, and {source} is not one; remove --revision"
            )
        return folder
    if folder.exists():
        raise CheckpointError(
            f"{source}: is not a GGUF file; for other formats, give the folder with config.json"
        )
    if not _REPOSITORY.fullmatch(source):
        raise CheckpointError(f"{source}: no such folder, and not a hub id of the form owner/name")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise MissingExtraError(
            f"{source}: no such folder; to download it from the hub: pip install 'edgetok[hub]'"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                source,
                revision=revision,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_UNWANTED),
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"{source}: no such folder, and it cannot be downloaded from the hub: {reason}"
        ) from error
