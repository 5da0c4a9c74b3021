"""Folders of compiled kernels: `shipping.py` writes them, every start looks into them.

    FOLDER/kernels.json                      what lies here
    FOLDER/linear.q4-x86_64-linux-avx2.o     plain object files
    FOLDER/kernels-x86_64-linux-avx2.so      or all of a target's, linked into one library

    {"format": 1,
     "made_with": {"edgetok": "0.1.0", "numba": ..., "llvmlite": ..., "python": ...},
     "complete": false,
     "targets": {"x86_64-linux-avx2": {
         "code_key": "...",
         "library": {"sha256": "...", "bytes": 12345},
         "objects": {"linear.q4": {"key": "...", "sha256": "...", "bytes": 123}}}}}

`library` is there if the target's objects were linked: then they are no files of their own.
Libraries are loaded by the system (`library.py`), objects by llvmlite. `complete` says that each
target has the kernels of every model.

An object fits if its `key` is the one of this installation's sources and target (`keys.py`), or the
target's `code_key` where there are no sources. What it was made with does not decide: machine code
is the same to whoever runs it, so one object serves every version of Python and needs no numba.

A start looks into the folder that the user names, then into `kernels_cpu/compiled` of the installed
package, which platform wheels carry. An object is code. It is read once, hashed and only then
handed on, and it is taken only from folders and files that nobody but this user and root may write;
inside the package they may be as open as the package itself, whose code runs anyway. A library is
hashed, then loaded by its path: by the same rule nobody else can change it in between.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgetok.errors import OptionError
from edgetok.kernels_cpu.program import keys
from edgetok.kernels_cpu.program.library import Library
from edgetok.kernels_cpu.simd.target import Target
from edgetok.private_folder import writable_by_others

MANIFEST = "kernels.json"
INSIDE = keys.ROOT / "compiled"  # of the package
FORMAT = 1
_SHOWN_NAMES = 3
_VARIABLE = "EDGETOK_KERNELS"
_LIBRARY_ENDINGS = {"macos": "dylib", "windows": "dll"}


def object_file(module: str, target: Target) -> str:
    """Name of a module's object in a folder."""
    return f"{module}-{target.name}.o"


def library_file(target: Target) -> str:
    """Name of the library of all of a target's kernels in a folder."""
    return f"kernels-{target.name}.{_LIBRARY_ENDINGS.get(target.os, 'so')}"


class _Unfit(Exception):
    """Why a folder or an object is not taken."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """Kernels that were shipped and fit.

    Attributes:
        objects: object files of modules.
        libraries: of other modules the library that holds their kernels.
        notes: a line for each folder that has some that do not fit.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    libraries: dict[str, Library] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lack(self, modules: Iterable[str]) -> list[str]:
        """Those of the modules that are neither in an object nor in a library."""
        return [m for m in modules if m not in self.objects and m not in self.libraries]


def shipped_kernels(
    target: Target,
    modules: Sequence[str],
    soon: Sequence[str] = (),
    folder: Path | None = None,
) -> Shipped:
    """Kernels of modules that were shipped and fit.

    Args:
        target: this machine's.
        modules: that are wanted.
        soon: that will be wanted, and may be missing.
        folder: the user's; None: only the package's own.

    Raises:
        OptionError: the user's folder holds no compiled kernels, or somebody else may write it.
    """
    found = Shipped()
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
        _take(found, folder, target, modules, soon)
    left = found.lack((*modules, *soon))
    if left and INSIDE.is_dir():
        _take(found, INSIDE, target, (), left, like=keys.ROOT.stat())
    return found


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
            linked = entry.get("library")
            self._library_hash = None if linked is None else str(linked["sha256"])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _Unfit(f"{MANIFEST} is damaged") from error
        self.modules = self._objects.keys()
        self._library: Library | None = None

    def kernels_of(self, module: str) -> bytes | Library:
        """A module's object, or the library that holds its kernels.

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
        if self._library_hash is None:
            return self._checked(object_file(module, self._target), sha256)
        if self._library is None:
            self._library = self._loaded(library_file(self._target), self._library_hash)
        return self._library

    def _checked(self, name: str, sha256: str) -> bytes:
        code = _read(self._folder / name, self._like)
        if hashlib.sha256(code).hexdigest() != sha256:
            raise _Unfit("damaged, its sha256 differs")
        return code

    def _loaded(self, name: str, sha256: str) -> Library:
        self._checked(name, sha256)
        try:
            return Library(self._folder / name)
        except OSError as error:
            raise _Unfit(f"cannot be loaded: {error}") from error


def _take(
    found: Shipped,
    folder: Path,
    target: Target,
    modules: Iterable[str],
    soon: Iterable[str],
    like: os.stat_result | None = None,
) -> None:
    """Add a folder's kernels that fit, and a line about those that do not: `shipped_kernels`."""
    try:
        there = _Folder(folder, target, like)
    except _Unfit as error:
        found.notes.append(f"{folder}: {error}; its compiled kernels are not used")
        return
    unfit: dict[str, list[str]] = {}
    for module in (*modules, *(module for module in soon if module in there.modules)):
        try:
            kernels = there.kernels_of(module)
        except _Unfit as error:
            unfit.setdefault(str(error), []).append(module)
        else:
            if isinstance(kernels, bytes):
                found.objects[module] = kernels
            else:
                found.libraries[module] = kernels
    if unfit:
        reasons = "; ".join(f"{shortly(names)}: {why}" for why, names in unfit.items())
        found.notes.append(
            f"{folder}: kernels compiled here instead of taken from there ({reasons})"
        )


def shortly(names: Sequence[str]) -> str:
    """Names in a line: the first ones, and how many more there are."""
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
