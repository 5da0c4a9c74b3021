"""The user's model folder: one entry for each converted model.

    MODELS/NAME-1a2b3c/entry.json   what it is, written before and after it is made
    MODELS/NAME-1a2b3c/artefact/    the model, in place at once when it is finished
    MODELS/NAME-1a2b3c/used         its time is that of the last use
    MODELS/NAME-1a2b3c.lock         held by the process that makes or removes the entry

MODELS is EDGETOK_MODELS, or `models` in the user's data folder. Only its owner may write there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgetok.environment import read_settings
from edgetok.errors import OutputError
from edgetok.private_folder import private_folder

_ENTRY = "entry.json"
_ARTEFACT = "artefact"
_USED = "used"
_MAX_ENTRY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model in the folder.

    Attributes:
        folder: the entry's folder.
        name: as a user calls it.
        source: hub id, or path of a folder or file.
        state: version of the source then: a commit, or a digest of sizes and times.
        settings: how it was converted, in words.
        bits: bits of a weight, on average; 0.0 where that is not known.
        verdict: verdict of the quality card; "" where it was not measured.
        made: when it was finished, in seconds since 1970; 0.0 for one that is not finished.
    """

    folder: Path
    name: str
    source: str
    state: str
    settings: str = ""
    bits: float = 0.0
    verdict: str = ""
    made: float = 0.0

    @property
    def artefact(self) -> Path:
        """Return the artefact's folder."""
        return self.folder / _ARTEFACT

    @property
    def ready(self) -> bool:
        """Return whether the model is finished."""
        return self.made > 0 and self.artefact.is_dir()

    @property
    def used(self) -> float:
        """Return when it was used last, in seconds since 1970."""
        try:
            return (self.folder / _USED).stat().st_mtime
        except OSError:
            return self.made

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        return sum(p.lstat().st_size for p in self.folder.rglob("*") if not p.is_dir())

    def touch(self) -> None:
        """Record a use. A folder that cannot be written changes nothing."""
        with contextlib.suppress(OSError):
            (self.folder / _USED).touch(mode=0o600)

    def write(self) -> None:
        """Write entry.json.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        values = {k: v for k, v in dataclasses.asdict(self).items() if k != "folder"}
        path = self.folder / _ENTRY
        temporary = path.with_suffix(".tmp")
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def models_folder(*, create: bool = False) -> Path:
    """Return the model folder.

    Raises:
        OutputError: it cannot be made, or others may write it.
    """
    folder = read_settings().models_dir
    if folder is None:
        from platformdirs import user_data_path

        folder = user_data_path("edgetok", appauthor=False) / "models"
    if create or folder.exists():
        return private_folder(folder, "models", "EDGETOK_MODELS")
    return folder


def entries() -> list[Entry]:
    """Return all entries, those used last first; damaged ones are left out."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    found = [_read(path) for path in folder.iterdir() if (path / _ENTRY).is_file()]
    return sorted((e for e in found if e is not None), key=lambda e: (-e.used, e.name))


def shown_name(artefact: Path) -> str:
    """Return what to call an artefact: its entry's name if it is of the model folder."""
    folder = artefact.resolve()
    entry = _read(folder.parent) if folder.name == _ARTEFACT else None
    return folder.name if entry is None else entry.name


def entry_for(name: str, source: str, settings: object) -> Entry:
    """Return a new entry, not written yet: the same folder for the same source and settings."""
    digest = hashlib.sha256(f"{source}\n{settings!r}".encode()).hexdigest()[:6]
    slug = re.sub(r"[^a-z0-9.-]+", "-", name.rpartition("/")[2].lower()).strip("-.") or "model"
    folder = models_folder(create=True) / f"{slug[:64]}-{digest}"
    return Entry(folder=folder, name=name, source=source, state="")


@contextlib.contextmanager
def locked(entry: Entry, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an entry's lock; other processes wait for it, and it ends with its process.

    Args:
        entry: need not exist.
        waiting: called once where another process holds the lock; None: do not wait.

    Raises:
        OutputError: another process holds it, and `waiting` is None.
    """
    import filelock

    lock = filelock.FileLock(f"{entry.folder}.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if waiting is None:
            raise OutputError(
                f"{entry.name}: another process is making it; wait for it to end"
            ) from None
        waiting()
        lock.acquire()
    except OSError as error:
        raise OutputError(f"{entry.folder}: cannot be locked: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def listed(entry: Entry) -> Iterator[None]:
    """List an entry as unfinished while it is made, unless a former one is in use until then.

    If that fails with nothing to continue from, no trace of it stays.

    Args:
        entry: its lock is held.

    Raises:
        OutputError: the entry cannot be written.
    """
    former = _read(entry.folder)
    if former is None or not former.ready:
        entry.write()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if {path.name for path in entry.folder.iterdir()} <= {_ENTRY}:
                shutil.rmtree(entry.folder)
        raise


def remove(entry: Entry) -> None:
    """Remove an entry. Its lock stays: another process may wait for it.

    Raises:
        OutputError: another process is making it, or a file cannot be removed.
    """
    with locked(entry):
        try:
            (entry.folder / _ENTRY).unlink(missing_ok=True)  # from here on it is not listed
            shutil.rmtree(entry.folder)
        except OSError as error:
            raise OutputError(f"{entry.folder}: cannot be removed: {error.strerror}") from error


def _read(folder: Path) -> Entry | None:
    """Read an entry of our own making; None for one that is not as `Entry.write` leaves it."""
    try:
        data = (folder / _ENTRY).read_bytes()
        values = json.loads(data) if len(data) <= _MAX_ENTRY_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    texts = ("name", "source", "state", "settings", "verdict")
    kinds: dict[str, type] = {**dict.fromkeys(texts, str), "bits": float, "made": float}
    if any(type(values.get(key)) is not kind for key, kind in kinds.items()):
        return None
    return Entry(folder=folder, **{key: values[key] for key in kinds})
