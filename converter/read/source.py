"""Source of a checkpoint: a folder, a file, or a repository on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from edgetok.converter.progress import Progress
from edgetok.converter.read.float8_checkpoint import Float8Checkpoint, is_float8
from edgetok.converter.read.gguf_checkpoint import GgufCheckpoint
from edgetok.converter.read.minicpm import minicpm
from edgetok.converter.read.mxfp4_checkpoint import METHOD, Mxfp4Checkpoint
from edgetok.converter.read.packed_checkpoint import PackedCheckpoint
from edgetok.converter.read.plain_llama import plain_llama
from edgetok.converter.read.quantised_checkpoint import KEY
from edgetok.converter.read.sentence_modules import with_modules
from edgetok.converter.read.ternary_checkpoint import METHOD as TERNARY
from edgetok.converter.read.ternary_checkpoint import TernaryCheckpoint
from edgetok.converter.read.text_tower import text_tower
from edgetok.errors import CheckpointError, OptionError
from edgetok.formats.checkpoint import Checkpoint, open_checkpoint
from edgetok.library.download import Remote, fetch, look
from edgetok.library.kinds import local_source
from edgetok.library.names import HubName, hint_for


def resolve_source(
    source: str, revision: str | None = None, progress: Progress | None = None
) -> Path:
    """Turn what the user gave into a local folder or file, downloading where it is a hub id.

    Args:
        source: an existing folder or GGUF file, `owner/name`, `owner/name/file.gguf`, or a short
            name of `edgetok.library.names`; a revision may follow the last three behind an @.
        revision: a branch, tag or commit of a hub repository.
        progress: receives the stage of a download.

    Raises:
        OptionError: a revision of something that is not a repository, or two of them.
        CheckpointError: neither a model nor a repository that can be downloaded.
        UnsupportedError: something that edgetok does not run; the message names it.
        MissingExtraError: a hub id without huggingface_hub.
    """
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise OptionError(
                f"--revision needs a hub id, and {source} is not one; remove --revision"
            )
        return local_source(path)
    hub = HubName.parse(source)
    if hub is None:
        hint = hint_for(source, takes="a model folder, a GGUF file, a short name or a hub id")
        raise CheckpointError(f"{source}: no such folder, and not a hub id; {hint}")
    if hub.revision and revision:
        raise OptionError(f"--revision {revision}: {source} has a revision; give one of them")
    remote = look(hub.repository, hub.file, revision or hub.revision)
    if not isinstance(remote, Remote):
        return local_source(remote)
    if remote.kind == "artefact":
        raise CheckpointError(
            f"{source}: is an artefact already, which is not converted again; edgetok pull {source}"
        )
    folder = fetch(remote, progress)
    return folder / next(iter(remote.files)) if remote.kind == "gguf" else folder


def open_source(path: Path) -> Checkpoint:
    """Open a model folder or a GGUF file, quantised or not; of a multimodal one, the text model.

    Raises:
        CheckpointError: it is missing something, damaged or hostile.
        UnsupportedError: it is quantised or wrapped in a way that edgetok does not know.
        MissingExtraError: a GGUF file, and the `gguf` package is not installed.
    """
    if path.is_file():
        return GgufCheckpoint(path)
    checkpoint = text_tower(open_checkpoint(path))
    settings = checkpoint.config.get(KEY)
    if isinstance(settings, dict) and settings.get("quant_method") == METHOD:
        return Mxfp4Checkpoint(checkpoint)
    if isinstance(settings, dict) and settings.get("quant_method") == TERNARY:
        return TernaryCheckpoint(checkpoint)
    if is_float8(settings):
        return Float8Checkpoint(checkpoint)
    if KEY in checkpoint.config:
        return PackedCheckpoint(checkpoint)
    return with_modules(plain_llama(minicpm(checkpoint)))
