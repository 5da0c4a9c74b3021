"""Folders of compiled kernels: `shipping.py` writes them, every start looks into them.

    FOLDER/kernels.json                      what lies here
    FOLDER/linear.q4-x86_64-linux-avx2.o     plain object files

    {"format": 1,
     "made_with": {"edgetok": "0.1.0", "numba": ..., "llvmlite": ..., "python": ...},
     "targets": {"x86_64-linux-avx2": {
         "code_key": "...",
         "objects": {"linear.q4": {"key": "...", "sha256": "...", "bytes": 123}}}}}

An object fits if its `key` is the one of this installation's sources and target (`keys.py`), or the
target's `code_key` where there are no sources. What it was made with does not decide: machine code
is the same to whoever runs it, so one object serves every version of Python and needs no numba.

A start looks into the folder that the user names, then into `kernels_cpu/compiled` of the installed
package, which platform wheels carry. An object is code. It is read once, hashed and only then
handed on, and it is taken only from folders and files that nobody but this user and root may write;
inside the package they may be as open as the package itself, whose code runs anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgetok.errors import OptionError
from edgetok.kernels_cpu.program import keys
from edgetok.kernels_cpu.simd.target import Target
from edgetok.private_folder import writable_by_others

MANIFEST = "kernels.json"
INSIDE = keys.ROOT / "compiled"  # of the package
FORMAT = 1
_SHOWN_NAMES = 3
_VARIABLE = "EDGETOK_KERNELS"


def object_file(module: str, target: Target) -> str:
    """Name of a module's object in a folder."""
    return f"{module}-{target.name}.o"


class _Unfit(Exception):
    """Why a folder or an object is not taken."""


def shipped_objects(
    target: Target,
    modules: Sequence[str],
    soon: Sequence[str] = (),
    folder: Path | None = None,
) -> tuple[dict[str, bytes], list[str]]:
    """Objects of modules that were shipped and fit.

    Args:
        target: this machine's.
        modules: that are wanted.
        soon: that will be wanted, and may be missing.
        folder: the user's; None: only the package's own.

    Returns:
        The objects, and one line for each folder that has some that do not fit.

    Raises:
        OptionError: the user's folder holds no compiled kernels, or somebody else may write it.
    """
    found: dict[str, bytes] = {}
    notes = []
    if folder is not None:
        if not (folder / MANIFEST).is_file():
            raise OptionError(
                f"{folder}: no {MANIFEST} there; name a folder that `edgetok compile --out` wrote"
            )
        if writable_by_others(folder.stat()):
            raise OptionError(
                f"{folder}: others own or may write this directory of compiled kernels; remove "
                f"their permission (chmod go-w) or name another with {_VARIABLE}"
            )
        found, note = _taken(folder, target, modules, soon)
        notes += note
    left = [module for module in (*modules, *soon) if module not in found]
    if left and INSIDE.is_dir():
        inside, note = _taken(INSIDE, target, (), left, like=keys.ROOT.stat())
        found |= inside
        notes += note
    return found, notes


class _Folder:
    """The objects that a folder has for one target.

    Attributes:
        modules: whose objects it says to have.
    """

    def __init__(self, folder: Path, target: Target, like: os.stat_result | None) -> None:
        """Read the manifest; `like` is the package's own folder, for the one inside it.

        Raises:
            _Unfit: somebody else may write it, or it is damaged.
        """
        self._folder, self._target, self._like = folder, target, like
        if writable_by_others(folder.stat(), like):
            raise _Unfit("others own or may write it")
        try:
            manifest = json.loads(_read(folder / MANIFEST, like))
            if manifest["format"] != FORMAT:
                found = f"{manifest['format']!r:.20}"
                raise _Unfit(f"{MANIFEST} has format {found}, expected {FORMAT}")
            entry = manifest["targets"].get(target.name, {"objects": {}, "code_key": ""})
            self._objects = {
                str(module): (str(one["key"]), str(one["sha256"]))
                for module, one in entry["objects"].items()
            }
            self._code_key = entry["code_key"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _Unfit(f"{MANIFEST} is damaged") from error
        self.modules = self._objects.keys()

    def object(self, module: str) -> bytes:
        """One object.

        Raises:
            _Unfit: it is not there, or does not fit.
        """
        if module not in self._objects:
            raise _Unfit(f"not there for {self._target.name}")
        key, sha256 = self._objects[module]
        if keys.has_sources():
            fits = key == keys.source_key(self._target, module)
        else:  # what is inside the package was installed with it
            fits = self._like is not None or self._code_key == keys.code_key(self._target)
        if not fits:
            raise _Unfit("made from other sources, by another version of edgetok")
        code = _read(self._folder / object_file(module, self._target), self._like)
        if hashlib.sha256(code).hexdigest() != sha256:
            raise _Unfit("damaged, its sha256 differs")
        return code


def _taken(
    folder: Path,
    target: Target,
    modules: Iterable[str],
    soon: Iterable[str],
    like: os.stat_result | None = None,
) -> tuple[dict[str, bytes], list[str]]:
    """Objects of one folder that fit, and a line about those that do not; see `shipped_objects`."""
    try:
        there = _Folder(folder, target, like)
    except _Unfit as error:
        return {}, [f"{folder}: {error}; its compiled kernels are not used"]
    found: dict[str, bytes] = {}
    unfit: dict[str, list[str]] = {}
    for module in (*modules, *(module for module in soon if module in there.modules)):
        try:
            found[module] = there.object(module)
        except _Unfit as error:
            unfit.setdefault(str(error), []).append(module)
    if not unfit:
        return found, []
    reasons = "; ".join(f"{_named(names)}: {why}" for why, names in unfit.items())
    return found, [f"{folder}: kernels compiled here instead of taken from there ({reasons})"]


def _named(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _read(path: Path, like: os.stat_result | None) -> bytes:
    """A file's content, once it is known that nobody else could have written it."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise _Unfit("not a file")
            if writable_by_others(status, like):
                raise _Unfit("others own or may write the file")
            return file.read()
    except FileNotFoundError as error:
        raise _Unfit("its file is missing") from error
    except OSError as error:
        raise _Unfit(f"cannot be read: {error.strerror}") from error
