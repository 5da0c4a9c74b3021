"""Download models from the Hugging Face hub: what a conversion needs and nothing else.

`huggingface_hub` does the transport: a cut connection is taken up again, `HF_HUB_OFFLINE=1` uses
what is there, `HF_ENDPOINT` names a mirror, `HF_HOME` moves its cache. Never code, never pickles.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetok.errors import (
    NOT_WRITTEN,
    CheckpointError,
    EdgetokError,
    MissingExtraError,
    OutputError,
)
from edgetok.formats import strict_json
from edgetok.formats.manifest import MANIFEST_FILE, read_manifest
from edgetok.library.arriving import Arriving, shown
from edgetok.library.kinds import Contents, Kind, kind_of, one_gguf
from edgetok.library.names import near_names

if TYPE_CHECKING:
    from edgetok.converter.progress import Progress

_TEXTS = re.compile(
    r"[\w.-]+\.(json|jinja)|tokenizer\.model|merges\.txt|(licen[cs]e|notice)[\w.-]*",
    re.ASCII | re.IGNORECASE,
)
# What sentence-transformers computes behind the model.
_MODULES = re.compile(
    r"\d+_(Pooling/config\.json|Dense/(config\.json|model\.safetensors))", re.ASCII
)
_OF_THE_DISK = NOT_WRITTEN | {errno.ENOTDIR}
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors", re.ASCII)


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository at one commit, looked at but not downloaded.

    Attributes:
        name: the hub id.
        commit: 40 hexadecimal digits.
        revision: what the commit was found by: a branch, tag or commit; None: the default branch.
        kind: kind of its contents.
        files: names and sizes in bytes of what is needed.
        blobs: the names that huggingface_hub's cache gives their contents.
    """

    name: str
    commit: str
    revision: str | None
    kind: Kind
    files: dict[str, int]
    blobs: dict[str, str]


def look(name: str, file: str | None = None, revision: str | None = None) -> Remote | Path:
    """Look at a repository.

    Args:
        name: a hub id, `owner/name`.
        file: a GGUF file in it; None where the repository holds one model.
        revision: a branch, tag or commit; None: the default branch.

    Returns:
        What to download; or, offline, the folder of an earlier download.

    Raises:
        CheckpointError: there is no such repository, it cannot be reached, or it is gated.
        UnsupportedError: it holds something that edgetok does not run; the message names it.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = _hub(name)
    if hub.constants.HF_HUB_OFFLINE:
        return _downloaded(hub, name, file, revision)
    with _errors(name):
        info = hub.HfApi().model_info(name, revision=revision, files_metadata=True, timeout=30)
    sizes = {item.rfilename: int(item.size or 0) for item in info.siblings or ()}
    blobs = {
        item.rfilename: str(item.lfs.sha256 if item.lfs else item.blob_id)
        for item in info.siblings or ()
    }
    config = {}
    if "config.json" in sizes:
        (path,) = _download(name, str(info.sha), ["config.json"], quiet=True)
        config = strict_json.read_object(path)
    contents = Contents(name, sizes, config, tuple(info.tags or ()))
    if file is not None:
        if file not in sizes:
            near = [item for item in sizes if item.endswith(".gguf")][:12]
            raise CheckpointError(
                f"{name}: has no file {file!r}; its GGUF files are {', '.join(near) or 'none'}"
            )
        kind: Kind = "gguf"
    else:
        kind = kind_of(contents)
        file = one_gguf(contents) if kind == "gguf" else None
    return Remote(name, str(info.sha), revision, kind, _needed(kind, sizes, file), blobs)


def texts(remote: Remote) -> Remote:
    """Return the same without weights."""
    texts = {name: size for name, size in remote.files.items() if _TEXTS.fullmatch(name)}
    return replace(remote, files=texts)


def fetch(remote: Remote, progress: Progress | None = None) -> Path:
    """Download what is needed of a repository into huggingface_hub's cache.

    Other programs share it, and what is there already is not fetched again.

    Args:
        remote: what to download.
        progress: receives the stage; None: huggingface_hub shows bars of its own in a terminal.

    Returns:
        The folder that holds the files.

    Raises:
        CheckpointError: they cannot be downloaded; files that arrived are kept.
        OutputError: they cannot be written, such as on a full disk.
    """
    blobs = Path(_hub(remote.name).constants.HF_HUB_CACHE)
    blobs = blobs / f"models--{remote.name.replace('/', '--')}" / "blobs"
    whole = {name: blobs / remote.blobs[name] for name in remote.files}
    with _shown(progress, remote, whole, blobs):
        # By its name and not by its commit, so that the cache can tell it again without a network.
        paths = _download(remote.name, remote.revision, remote.files, quiet=progress is not None)
    if any(remote.commit not in (path.parent.name, path.parents[1].name) for path in paths):
        raise CheckpointError(f"{remote.name}: changed while it was downloaded; try again")
    return paths[0].parent


def fetch_artefact(remote: Remote, into: Path, progress: Progress | None = None) -> None:
    """Download a ready artefact into a folder, as plain files.

    Args:
        remote: what to download.
        into: the folder.
        progress: as for `fetch`.

    Raises:
        CheckpointError: it cannot be downloaded; files that arrived are kept.
        OutputError: it cannot be written, such as on a full disk.
        ArtefactError: its manifest is damaged.
    """
    quiet = progress is not None
    _download(remote.name, remote.commit, [MANIFEST_FILE], into, quiet=quiet)
    files = read_manifest(into).files
    whole = {name: into / name for name in files if name in remote.files}
    with _shown(progress, remote, whole, into):
        _download(remote.name, remote.commit, files, into, quiet=quiet)


@contextlib.contextmanager
def _shown(
    progress: Progress | None, remote: Remote, whole: dict[str, Path], folder: Path
) -> Iterator[None]:
    if progress is None:
        yield
        return
    sizes = {name: remote.files[name] for name in whole}
    with shown(progress, Arriving(whole, sizes, folder, remote.blobs)):
        yield


def _download(
    name: str,
    revision: str | None,
    files: Iterable[str],
    into: Path | None = None,
    *,
    quiet: bool = False,
) -> list[Path]:
    hub = _hub(name)
    quiet = (quiet or not sys.stderr.isatty()) and not hub.utils.are_progress_bars_disabled()
    if quiet:
        hub.utils.disable_progress_bars()
    try:
        paths = []
        for file in files:
            with _errors(name), warnings.catch_warnings():
                # Two lines about little space, and then the error, which `_errors` tells.
                warnings.filterwarnings("ignore", "Not enough free disk space")
                path = hub.hf_hub_download(name, file, revision=revision, local_dir=into)
            paths.append(Path(path))
        return paths
    finally:
        if quiet:
            hub.utils.enable_progress_bars()


def _needed(kind: Kind, sizes: dict[str, int], gguf: str | None) -> dict[str, int]:
    if kind == "artefact":
        return {name: size for name, size in sizes.items() if "/" not in name}
    if gguf is not None:
        return {gguf: sizes[gguf]}
    weights = {name for name in sizes if name.endswith(".safetensors") and "/" not in name}
    if "model.safetensors" in weights:
        weights = {"model.safetensors"}
    elif shards := {name for name in weights if _SHARD.fullmatch(name)}:
        weights = shards  # others, such as consolidated.safetensors, hold the same weights again
    texts = {name for name in sizes if _TEXTS.fullmatch(name) or _MODULES.fullmatch(name)}
    # First one that lies at the top: where it arrives is the folder.
    order = sorted(texts, key=lambda name: ("/" in name, name))
    return {name: sizes[name] for name in order + sorted(weights)}


def _downloaded(hub: Any, name: str, file: str | None, revision: str | None) -> Path:
    """Return the folder, or GGUF file, of an earlier download."""
    try:
        folder = Path(hub.snapshot_download(name, revision=revision, local_files_only=True))
    except (EdgetokError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: not downloaded yet, and HF_HUB_OFFLINE is set; unset it to download"
        ) from error
    if file is None:
        return folder
    if not (folder / file).is_file():
        raise CheckpointError(
            f"{name}/{file}: not downloaded yet, and HF_HUB_OFFLINE is set; unset it to download"
        )
    return folder / file


def _hub(name: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as error:
        raise MissingExtraError(
            f"{name}: no such folder; to download it from the hub: pip install 'edgetok[hub]'"
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name}: gated: accept its terms on its page on the hub, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        near = [item for item in near_names(name) if item.lower() != name.lower()]
        hint = f"did you mean {' or '.join(near)}?" if near else "check its spelling"
        raise CheckpointError(
            f"{name}: no such repository on the hub, or a private one (then set HF_TOKEN); {hint}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{name}: has no such revision; give a branch, tag or commit of it"
        ) from error
    except (KeyboardInterrupt, EdgetokError):
        raise
    except Exception as error:  # of the disk; of requests or httpx, as huggingface_hub uses them
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            where = f"{error.filename}: " if error.filename else ""
            free = "free some space, or " if error.errno in _FULL else ""
            raise OutputError(
                f"{name}: cannot be downloaded: {where}{error.strerror}; {free}name another folder "
                "for downloads with HF_HOME; files that have arrived are kept"
            ) from error
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = f"the hub answered {status}" if status else f"no connection ({type(error).__name__})"
        raise CheckpointError(
            f"{name}: cannot be downloaded: {what}; try again: files that have arrived are "
            "kept. HF_ENDPOINT may name a mirror"
        ) from error
