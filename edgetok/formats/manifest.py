"""`manifest.json`: the files of an artefact, with sizes and sha256.

    {"format": "1", "exporter": "edgetok", "files": {"model.onnx": {"bytes": 1, "sha256": "..."}}}

`exporter` is "edgetok" if edgetok wrote the graph, with a spec, "optimum" where another exporter
wrote it and only onnxruntime can run it. A damaged copy is detected here, before it gives a wrong
answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from edgetok.errors import ArtefactError
from edgetok.formats import strict_json
from edgetok.formats.layout import FORMAT_VERSION
from edgetok.formats.lfs import LEFT_OUT, points

MANIFEST_FILE = "manifest.json"

Exporter = Literal["edgetok", "optimum"]

_EXPORTERS: dict[str, Exporter] = {"edgetok": "edgetok", "optimum": "optimum"}
_MAX_BYTES = 1 << 20
_MAX_FILES = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BASENAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and digest of one file."""

    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of `manifest.json`.

    Attributes:
        exporter: who wrote the graph.
        files: by basename.
    """

    exporter: Exporter
    files: dict[str, FileRecord]


def write_manifest(
    folder: Path, *, exporter: Exporter = "edgetok", names: Iterable[str] | None = None
) -> Manifest:
    """Hash files and write `manifest.json` (in place; the folder is not yet the user's).

    Args:
        folder: the artefact.
        exporter: who wrote the graph.
        names: the files that belong to it; None takes every file in the folder.

    Raises:
        ArtefactError: a file is missing or has a name that a manifest cannot hold.
    """
    if names is None:
        names = [p.name for p in folder.iterdir() if p.name != MANIFEST_FILE]
    files = {}
    for name in sorted(names):
        if not _BASENAME.fullmatch(name):
            raise ArtefactError(f"{folder}: {name!r} cannot stand in a manifest; rename the file")
        with open_regular(folder / name) as file:
            files[name] = FileRecord(os.fstat(file.fileno()).st_size, _digest(file))
    records = {n: {"bytes": r.nbytes, "sha256": r.sha256} for n, r in files.items()}
    value = {"format": FORMAT_VERSION, "exporter": exporter, "files": records}
    (folder / MANIFEST_FILE).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    return Manifest(exporter, files)


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` strictly; the files themselves are not looked at.

    Raises:
        ArtefactError: it is missing, malformed or of another format version.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise ArtefactError(
            f"{folder}: no {MANIFEST_FILE}: not an edgetok model; make one with "
            "`edgetok convert MODEL --out FOLDER`"
        )
    value = strict_json.read_object(path, max_bytes=_MAX_BYTES, error=ArtefactError)
    version = value.get("format")
    if version != FORMAT_VERSION:
        raise ArtefactError(
            f"{path}: format {version!r:.40}, expected {FORMAT_VERSION!r}; convert the model again "
            "or install another edgetok"
        )
    exporter = value.get("exporter")
    if not isinstance(exporter, str) or exporter not in _EXPORTERS:
        raise ArtefactError(f"{path}: exporter is {exporter!r:.40}, expected edgetok or optimum")
    entries = value.get("files")
    if not isinstance(entries, dict) or len(entries) > _MAX_FILES:
        raise ArtefactError(f"{path}: files is not an object of at most {_MAX_FILES} names")
    files = {name: _record(path, name, entry) for name, entry in entries.items()}
    return Manifest(_EXPORTERS[exporter], files)


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Compare the size of every file with the manifest: cheap, and finds most broken copies.

    Raises:
        ArtefactError: a file is missing, no regular file, or of another size.
    """
    for name, record in manifest.files.items():
        try:
            status = os.lstat(folder / name)
        except OSError as error:
            raise ArtefactError(
                f"{folder / name}: {error.strerror}; copy the model again"
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise ArtefactError(f"{folder / name}: not a regular file")
        if status.st_size != record.nbytes:
            if points(folder / name):
                raise ArtefactError(f"{folder / name}: {LEFT_OUT}")
            raise ArtefactError(
                f"{folder / name}: {status.st_size:,} bytes, the manifest says {record.nbytes:,}; "
                "copy the model again"
            )


def check_hash(folder: Path, name: str, manifest: Manifest) -> None:
    """Compare the sha256 of one file with the manifest.

    Raises:
        ArtefactError: "hash mismatch: NAME".
    """
    record = manifest.files.get(name)
    if record is None:
        raise ArtefactError(f"{folder / MANIFEST_FILE}: {name} is not listed")
    with open_regular(folder / name) as file:
        if _digest(file) != record.sha256:
            raise ArtefactError(f"hash mismatch: {folder / name}; copy or convert the model again")


def verify_manifest(folder: Path) -> Manifest:
    """Read every byte of an artefact and compare it with the manifest.

    Raises:
        ArtefactError: a file is missing, of another size, or "hash mismatch: NAME".
    """
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    for name in manifest.files:
        check_hash(folder, name, manifest)
    return manifest


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; neither a symbolic link nor a pipe.

    Raises:
        ArtefactError: it is something else or cannot be opened.
    """
    # Without O_NONBLOCK opening a named pipe would wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise ArtefactError(f"{path}: a symbolic link, expected a regular file")
        descriptor = os.open(path, flags)
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtefactError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _record(path: Path, name: str, entry: Any) -> FileRecord:
    if not _BASENAME.fullmatch(name):
        raise ArtefactError(f"{path}: {name!r:.80} is not a plain file name")
    if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
        raise ArtefactError(f"{path}: entry {name!r} is not {{bytes, sha256}}")
    nbytes, sha256 = entry["bytes"], entry["sha256"]
    if type(nbytes) is not int or nbytes < 0:
        raise ArtefactError(f"{path}: {name!r} has {nbytes!r:.40} bytes, expected a whole number")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ArtefactError(f"{path}: the sha256 of {name!r} is not 64 hexadecimal digits")
    return FileRecord(nbytes, sha256)
