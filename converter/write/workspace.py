"""The partial folder of a conversion: beside the output, locked, journalled.

    OUT.partial/lock          held by the one converter that may write here
    OUT.partial/journal.jsonl finished steps: the first line names the conversion, then one per step
    OUT.partial/artefact/     becomes OUT
    OUT.partial/old           the former OUT, where the two cannot change places at once

Every step's files reach the disk before its line does, so a complete line proves a finished step. A
last line that was cut short counts as missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgetok.converter.durable import not_written, sync, write_all, write_durably
from edgetok.errors import OutputError
from edgetok.formats.manifest import MANIFEST_FILE

_JOURNAL = "journal.jsonl"
_LOCK = "lock"
_ARTEFACT = "artefact"
_OLD = "old"
_PUBLISH = "publish"  # the step before the folders change places: the new manifest's sha256
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # of Linux, renameat2(2)


class Workspace:
    """The partial folder of one conversion. Made by `open_workspace`, which holds its lock.

    Attributes:
        folder: OUT.partial.
        artefact: the folder inside it that becomes OUT.
        resumed: whether steps of an earlier run are kept.
    """

    def __init__(self, out: Path, folder: Path, title: Mapping[str, Any]) -> None:
        self.out = out
        self.folder = folder
        self.artefact = folder / _ARTEFACT
        self._title = dict(title)
        self._steps = self._read_journal(title)
        self.resumed = bool(self._steps)

    def _read_journal(self, title: Mapping[str, Any]) -> dict[str, Any]:
        """Steps that an earlier run of the very same conversion finished; else start afresh."""
        lines = list(_whole_lines(self.folder / _JOURNAL))
        done = {line.get("step"): line.get("result") for line in lines[1:]}
        changed_places = _PUBLISH in done and done[_PUBLISH] == _manifest_digest(self.out)
        if (
            lines
            and lines[0] == {"title": dict(title)}
            and self.artefact.is_dir()
            and (
                not changed_places  # or what lies here is the former OUT
            )
        ):
            # What follows a cut line would be joined to it: write the good lines again.
            self._replace_journal(lines)
            return {line["step"]: line["result"] for line in lines[1:]}
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                _remove(path)
        self.artefact.mkdir()
        self._replace_journal([{"title": dict(title)}])
        return {}

    def _replace_journal(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_durably(self.folder / _JOURNAL, text.encode())

    @property
    def has_steps(self) -> bool:
        """Return whether a later run could continue from here."""
        return bool(self._steps)

    def done(self, step: str) -> bool:
        """Return whether `step` was finished, in this run or an earlier one."""
        return step in self._steps

    def result(self, step: str) -> Any:
        """Return the result that `finish` was given for this step, as JSON stores it."""
        return self._steps[step]

    def finish(self, step: str, result: Any) -> None:
        """Record that a step is on the disk.

        Args:
            step: its name.
            result: plain values that the rest of the conversion needs of it.

        Raises:
            OutputError: the line could not be written; the step counts as not done.
        """
        line = json.dumps({"step": step, "result": result}) + "\n"
        try:
            descriptor = os.open(self.folder / _JOURNAL, os.O_WRONLY | os.O_APPEND)
            try:
                write_all(descriptor, line.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise not_written(self.folder / _JOURNAL, error) from error
        self._steps[step] = json.loads(line)["result"]

    def begin_again(self, kept: Iterable[str], step: str, result: Any) -> None:
        """Forget all steps but `kept` and finish `step`, both at once.

        Args:
            kept: names of steps whose results stay.
            step: as for `finish`; may be finished already.
            result: as above.

        Raises:
            OutputError: the journal could not be written; it is unchanged.
        """
        steps = {name: self._steps[name] for name in kept} | {step: result}
        lines = [{"step": name, "result": value} for name, value in steps.items()]
        self._replace_journal([{"title": self._title}, *lines])
        self._steps = json.loads(json.dumps(steps))

    def publish(self) -> None:
        """Put the artefact in the place of OUT and remove the partial folder.

        Raises:
            OutputError: a file could not be written or renamed; OUT is then unchanged.
        """
        old = self.folder / _OLD
        try:
            for path in self.artefact.iterdir():
                sync(path)
            sync(self.artefact)
            self.finish(_PUBLISH, _manifest_digest(self.artefact))
            if not (self.out.exists() and _exchange(self.artefact, self.out)):
                if self.out.exists():
                    os.rename(self.out, old)
                os.rename(self.artefact, self.out)
            sync(self.out.parent)
        except OSError as error:
            recover(self.out)
            raise not_written(self.out, error) from error
        shutil.rmtree(self.folder, ignore_errors=True)


def partial_folder(out: Path) -> Path:
    """Return the partial folder beside `out`."""
    return out.with_name(out.name + ".partial")


def check_output(out: Path, source: Path | None) -> None:
    """Refuse outputs that would destroy something.

    Args:
        out: resolved.
        source: the resolved checkpoint folder; None where there is none yet.

    Raises:
        OutputError: `out` is, holds or is in the source, or is something else than an artefact.
    """
    if source is not None:
        if out == source:
            raise OutputError(f"{out}: is the model to convert; choose another --out")
        if source in out.parents or out in source.parents:
            raise OutputError(
                f"{out}: overlaps the model to convert, {source}; choose another --out"
            )
    if not out.name:
        raise OutputError(f"{out}: cannot write into this folder; choose another --out")
    if out.exists():
        if not out.is_dir():
            raise OutputError(f"{out}: is a file; choose another --out")
        if any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
            raise OutputError(
                f"{out}: has other files and no {MANIFEST_FILE}, so it is not an edgetok model "
                "that could be replaced; choose another --out or empty it"
            )


def recover(out: Path) -> None:
    """Put the former OUT back where a conversion died while the two changed places."""
    old = partial_folder(out) / _OLD
    if old.exists() and not out.exists():
        os.rename(old, out)


@contextlib.contextmanager
def open_workspace(
    out: Path, title: Mapping[str, Any], *, source: Path | None = None
) -> Iterator[Workspace]:
    """Lock the partial folder of `out`, and continue its work if it has this title.

    Args:
        out: the artefact's folder, resolved.
        title: plain values that are equal for equal conversions.
        source: the checkpoint's folder, resolved.

    Raises:
        OutputError: `out` may not be written (see `check_output`) or another converter is at it.
    """
    folder = partial_folder(out)
    check_output(out, source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder / _LOCK)
    except OSError as error:
        raise not_written(folder, error) from error
    try:
        recover(out)
        try:
            workspace = Workspace(out, folder, title)
        except OSError as error:
            raise not_written(folder, error) from error
        try:
            yield workspace
        except BaseException:
            # Nothing to continue: bad input and an early Ctrl-C leave no trace.
            if not workspace.has_steps:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def require_space(folder: Path, nbytes: int, already: Path) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: any existing folder on the disk.
        nbytes: all that the conversion will write.
        already: where an earlier run may have written some of it.

    Raises:
        OutputError: with what is free and what is needed.
    """
    held = sum(path.stat().st_blocks * 512 for path in already.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if nbytes - held > free:
        raise OutputError(
            f"{folder}: {free / 1e6:,.0f} MB free, {(nbytes - held) / 1e6:,.0f} MB more needed; "
            "free some space or choose another disk: by --out, or EDGETOK_MODELS for models "
            "kept by name"
        )


def _lock(path: Path) -> int:
    """Hold an exclusive lock that ends with this process, however it ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(descriptor)
        except (BlockingIOError, PermissionError) as error:
            os.close(descriptor)
            raise OutputError(
                f"{path.parent}: another converter is writing there; wait for it to end or choose "
                "another --out"
            ) from error
        # A converter that just finished has removed the file that was locked here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
        path.parent.mkdir(parents=True, exist_ok=True)


def _take(descriptor: int) -> None:
    """Lock an open file.

    Raises:
        BlockingIOError: another process has it.
        PermissionError: likewise, on Windows.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _exchange(a: Path, b: Path) -> bool:
    """Let two folders change places in one step, so that neither name is ever missing.

    Returns:
        False, with nothing changed, where the system or the file system cannot do that.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    paths = (_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b))
    return bool(renameat2(*paths, _RENAME_EXCHANGE) == 0)


def _manifest_digest(folder: Path) -> str:
    """Sha256 of an artefact's manifest; empty where there is none."""
    try:
        return hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()
    except OSError:
        return ""


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return
    for line in text.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            return
        if not isinstance(value, dict):
            return
        yield value


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
