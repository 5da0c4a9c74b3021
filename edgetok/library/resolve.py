"""Turn what a user calls a model into the folder of an artefact.

| what | example | becomes |
|---|---|---|
| an artefact | `artefacts/tiny` | itself |
| a model folder or GGUF file | `~/models/tiny`, `tiny.Q4_0.gguf` | converted, once |
| a short name | `smollm2` | the hub id that it stands for |
| a hub id | `owner/name`, `owner/name/file.gguf` | downloaded and converted, once |
| either at a revision | `smollm2@main`, `owner/name@v1.0` | that branch, tag or commit of it |
| the address of its page | `https://huggingface.co/owner/name` | the hub id |

Conversions go to the model folder (`edgetok.library.folder`) and are used again as long as the
source is what it was. A hub id that was converted once is not looked up again; `pull` does that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from edgetok.errors import (
    ArtefactError,
    CheckpointError,
    EdgetokError,
    MissingExtraError,
    OptionError,
)
from edgetok.library.folder import Entry, entries, entry_for, listed, locked
from edgetok.library.names import HubName, hint_for, hub_id, without_page

if TYPE_CHECKING:
    from edgetok.converter.options import ConvertOptions
    from edgetok.converter.progress import Progress
    from edgetok.library.download import Remote

Say = Callable[[str], None]
Check = Callable[[Path], None]
_MANIFEST = "manifest.json"
_MOST_BESIDE = 10_000  # names that are looked at for one that is near
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx")


def model_folder(
    name: str | os.PathLike[str],
    progress: Progress | None = None,
    say: Say | None = None,
    check: Check | None = None,
) -> Path:
    """Return the artefact's folder of a model, made if it has to be.

    Args:
        name: an artefact, a model folder, a GGUF file, a short name or a hub id.
        progress: receives the stages of a conversion.
        say: receives lines for the user, such as the settings of a conversion.
        check: refuses a checkpoint's folder or GGUF file before it is converted.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        UnsupportedError: it is something that edgetok does not run.
        MissingExtraError: it has to be downloaded or converted, and an extra is not installed.
        OutputError: the model folder cannot be written.
    """
    path = Path(name).expanduser()
    if (path / _MANIFEST).exists():
        return path
    source = _source(os.fspath(name))
    entry = _newest(source)
    if entry is None:
        entry = _make(os.fspath(name), source, None, progress, say, check)
    entry.touch()
    return entry.artefact


def pull(
    name: str,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Entry:
    """Download and convert a model, or what has changed of it.

    Args:
        name: as for `model_folder`, but no artefact.
        options: settings of the conversion; None: chosen for the source.
        progress: receives the stages.
        say: receives lines for the user.

    Returns:
        The finished entry, which `model_folder` now uses for this name.

    Raises:
        EdgetokError: as for `model_folder`.
    """
    if (Path(name).expanduser() / _MANIFEST).exists():
        raise OptionError(f"{name}: is an artefact already; use it as it is: edgetok chat {name}")
    entry = _make(name, _source(name), options, progress, say)
    entry.touch()
    return entry


def named(name: str) -> list[Entry]:
    """Return the entries that a name means: by name, source, or the entry's folder.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(name).expanduser()
    wanted = {name, hub_id(name), str(path.resolve())}
    every = entries()
    found = [e for e in every if wanted & {e.name, e.source, e.folder.name}]
    if not found:
        known = ", ".join(sorted({e.name for e in every})) or "none"
        raise CheckpointError(f"{name}: not in the model folder; it holds {known}")
    return found


def _source(name: str) -> str:
    """Return a resolved path, or a hub id.

    Raises:
        CheckpointError: it is neither; near names are given.
    """
    path = Path(name).expanduser()
    if path.exists():
        return str(path.resolve())
    name = without_page(name)
    if (known := hub_id(name)) is not None:
        return known
    for entry in entries():
        if name in (entry.name, entry.folder.name):
            return entry.source
    parts = name.split("/")
    is_path = name.startswith((".", "/", "~")) or "\\" in name or path.parent.is_dir()
    local = parts[0] in ("artefacts", "models") or (is_path and path.parent != Path())
    if not local and HubName.parse(name) is not None:
        return name
    hint = hint_for(name, [entry.name for entry in entries()])
    if is_path and len(parts) > 1:
        hint = _near_path(path) or hint_for("/")
    raise CheckpointError(f"{name}: no such model or folder; {hint}")


def _near_path(path: Path) -> str:
    """Return a hint at what lies beside a path that is nothing and has nearly its name, or ""."""
    try:
        beside = [item.name for item in islice(path.parent.iterdir(), _MOST_BESIDE)]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, beside, n=3)
    return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""


def _is_path(source: str) -> bool:
    return Path(source).is_absolute()


def _newest(source: str) -> Entry | None:
    """Return the entry of a source that was made last, if the source is what it was then."""
    ready = [entry for entry in entries() if entry.source == source and entry.ready]
    newest = max(ready, key=lambda entry: entry.made, default=None)
    if newest is not None and _is_path(source) and newest.state != _local_state(Path(source)):
        return None
    return newest


def _local_state(path: Path) -> str:
    """Return a digest of the sizes and times of a folder's files, or of a file's."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    text = "".join(f"{p.name}\0{p.stat().st_size}\0{p.stat().st_mtime_ns}\n" for p in files)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _make(
    name: str,
    source: str,
    options: ConvertOptions | None,
    progress: Progress | None,
    say: Say | None,
    check: Check | None = None,
) -> Entry:
    """Download and convert; what another process made meanwhile, or an earlier one, is used."""
    tell = say or (lambda line: None)
    from edgetok.library import download
    from edgetok.library.kinds import local_source

    remote: Remote | Path
    if _is_path(source):
        remote = local_source(Path(source))
        state = _local_state(Path(source))
    else:
        hub = HubName.parse(source)
        if hub is None:  # `_source` makes none, but a file of the model folder may say anything
            raise CheckpointError(f"{source}: neither a path nor a hub id; edgetok rm {name}")
        remote = download.look(hub.repository, hub.file, hub.revision)
        state = remote.commit if isinstance(remote, download.Remote) else _local_state(remote)
    short = name if hub_id(name) else source
    if _is_path(source):
        short = Path(source).name
    entry = entry_for(short, source, options)
    stage = contextlib.ExitStack()

    def wait() -> None:
        tell(f"{name}: another process is making it; waiting ...")
        if progress is not None:
            progress.begin("Waiting for it", 1)  # its clock shows that something happens
            stage.callback(progress.advance)

    with locked(entry, wait):
        stage.close()
        former = next((e for e in entries() if e.folder == entry.folder and e.ready), None)
        if former is not None and former.state == state:
            tell(f"{name}: up to date")
            return former
        entry = dataclasses.replace(entry, state=state)
        if isinstance(remote, download.Remote):
            megabytes = sum(remote.files.values()) / 1e6
            tell(f"downloading {remote.name}: {len(remote.files)} files, {megabytes:,.1f} MB")
            if remote.kind == "artefact":
                with listed(entry):
                    entry = _install(entry, remote, progress)
                    entry.write()
                return entry
            if check is not None and remote.kind == "checkpoint":
                check(_fetched(download.texts(remote), progress))  # before the weights
                check = None
            remote = _fetched(remote, progress)
        if check is not None:
            check(remote)
        with listed(entry):
            entry = _convert(entry, local_source(remote), options, progress, tell)
            entry.write()
        return entry


def _fetched(remote: Remote, progress: Progress | None) -> Path:
    from edgetok.library import download

    folder = download.fetch(remote, progress)
    if remote.kind == "gguf":
        return folder / next(iter(remote.files))
    return folder


def _install(entry: Entry, remote: Remote, progress: Progress | None) -> Entry:
    """Download a ready artefact and check every byte of it."""
    from edgetok.formats.manifest import verify_manifest
    from edgetok.library import download

    partial = entry.folder / "artefact.partial"
    try:
        download.fetch_artefact(remote, partial, progress)
    except BaseException:
        if not (partial / _MANIFEST).is_file():  # the first file: nothing has arrived
            shutil.rmtree(partial, ignore_errors=True)
        raise
    try:
        verify_manifest(partial)
    except ArtefactError:
        shutil.rmtree(partial)
        raise
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # huggingface_hub's notes
    if entry.artefact.exists():
        shutil.rmtree(entry.artefact)
    partial.rename(entry.artefact)
    return _finished(entry, "as it was made")


def _convert(
    entry: Entry,
    source: Path,
    options: ConvertOptions | None,
    progress: Progress | None,
    tell: Say,
) -> Entry:
    try:
        from edgetok.converter.convert import convert
        from edgetok.library.settings import automatic, shown
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{entry.name}: must be converted first, and converting needs {error.name}: "
            "pip install 'edgetok[convert]'"
        ) from error
    why = ""
    if options is None:
        options, why = automatic(source)
    settings = shown(source, options)
    tell(f"converting {entry.name}, once: {settings}" + (f" ({why})" if why else ""))
    convert(str(source), entry.artefact, options, progress)
    return _finished(entry, settings)


def _finished(entry: Entry, settings: str) -> Entry:
    """Return the entry with what the quality card says, and the time."""
    from edgetok.formats import strict_json

    try:
        report = strict_json.read_object(entry.artefact / "report.json")
    except EdgetokError:
        report = {}
    bits, verdict = report.get("bits_per_weight"), report.get("verdict")
    if isinstance(verdict, dict):
        verdict = verdict.get("grade")
    return dataclasses.replace(
        entry,
        settings=settings,
        bits=float(bits) if isinstance(bits, (int, float)) else 0.0,
        verdict=verdict if isinstance(verdict, str) else "",
        made=time.time(),
    )
