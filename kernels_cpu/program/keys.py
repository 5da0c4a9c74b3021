"""Keys of compiled kernels: hashes over everything that a module's machine code depends on.

The machine code follows from the module's source and all that it imports, the target, and the
compiler. `source_key` covers the first two: it decides whether a shipped object fits, as machine
code is the same to whoever runs it, whatever compiled it. `cache_key` covers the compiler, too: it
names the file in the cache, so that a new compiler is used.

Sources are read through the package's loader, so that they may lie in a zip file. An installation
without sources (.pyc files alone, a frozen application) has `code_key` in their place, over the
bytecode of all modules of this package: the same wherever one version of Python compiles it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import platform
import re
from importlib import metadata
from pathlib import Path
from types import CodeType

from edgetok.kernels_cpu.simd.target import Target

_PACKAGE = "edgetok.kernels_cpu."
_BUILDER = "program.build"
_IMPORT = re.compile(
    r"^[ \t]*(?:from|import)[ \t]+(edgetok\.kernels_cpu[\w.]*)"
    r"(?:[ \t]+import[ \t]+(\([^)]*\)|[^\n(]*))?",
    re.MULTILINE,
)
ROOT = Path(__file__).parent.parent
_KEY_CHARACTERS = 32


@functools.cache
def cache_key(target: Target, module: str) -> str:
    """Hash of all that the machine code of one module for one target depends on."""
    digest = _digest(module)
    digest.update("\0".join([target.name, *_versions()]).encode())
    return digest.hexdigest()[:_KEY_CHARACTERS]


@functools.cache
def source_key(target: Target, module: str) -> str:
    """Hash of the sources of one module and all that it imports, and the target."""
    digest = _digest(module)
    digest.update(target.name.encode())
    return digest.hexdigest()[:_KEY_CHARACTERS]


@functools.cache
def code_key(target: Target) -> str:
    """Hash of the bytecode of the whole package, as this Python has it, and the target."""
    return hashlib.sha256(_package_code() + target.name.encode()).hexdigest()[:_KEY_CHARACTERS]


@functools.cache
def has_sources() -> bool:
    """Whether this installation has the sources of its kernels."""
    return bool(_source(_BUILDER))


def versions() -> dict[str, str]:
    """Return the compilers here by name, with versions; "none" where one is not known."""
    return dict(zip(("numba", "llvmlite", "python"), _versions(), strict=True))


def _digest(module: str) -> hashlib._Hash:
    digest = hashlib.sha256()
    if not has_sources():
        digest.update(_package_code())
    for name in sorted(_sources(module)):
        digest.update(name.encode() + b"\0" + _source(name))
    return digest


@functools.cache
def _versions() -> tuple[str, ...]:
    return (_version("numba"), _version("llvmlite"), platform.python_version())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a frozen application has no metadata
        return "none"


def imports(module: str, other: str) -> bool:
    """Whether a module's kernels use another module; True where there are no sources to tell."""
    return not has_sources() or other in _sources(module)


def _sources(module: str) -> set[str]:
    """Modules of this package whose source can change a module's machine code: all it imports."""
    seen: set[str] = set()
    waiting = [*_with_packages(module), *_with_packages(_BUILDER)]
    while waiting:
        name = waiting.pop()
        if name not in seen and (found := _source(name)):
            seen.add(name)
            waiting += _imported(found)
    return seen


@functools.cache
def _imported(source: bytes) -> tuple[str, ...]:
    """Names below this package that a source imports, and the packages that hold them.

    Names that turn out not to be modules are for `_source` to tell. Found by a regular expression,
    because parsing the sources took a third of a start; a test compares it with the parser.
    """
    found: list[str] = []
    for module, names in _IMPORT.findall(source.decode()):
        inside = re.findall(r"\w+", re.sub(r"#.*|\bas\s+\w+", "", names))
        for name in [f"{module}.{item}" for item in inside] or [module]:
            if name.startswith(_PACKAGE):
                found += _with_packages(name.removeprefix(_PACKAGE))
    return tuple(found)


def _with_packages(name: str) -> list[str]:
    """A dotted name and those of the packages that hold it: "a", "a.b", "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


@functools.cache
def _source(name: str) -> bytes:
    """Source of a module or package, by its name below this package; empty where there is none."""
    place = ROOT.joinpath(*name.split("."))
    get_data = getattr(globals().get("__loader__"), "get_data", None)
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        with contextlib.suppress(OSError):
            return bytes(get_data(str(path))) if get_data else path.read_bytes()
    return b""


@functools.cache
def _package_code() -> bytes:
    """Hash of the bytecode of all modules of this package, under this version of Python."""
    import pkgutil

    digest = hashlib.sha256(platform.python_version().encode())
    waiting = [_PACKAGE.rstrip(".")]
    while waiting:
        package = waiting.pop()
        spec = importlib.util.find_spec(package)
        if spec is None:
            continue
        code = getattr(spec.loader, "get_code", lambda name: None)(package)
        if code is not None:
            digest.update(package.encode())
            _add_code(digest, code)
        below = pkgutil.iter_modules(spec.submodule_search_locations or [], f"{package}.")
        waiting += sorted((module.name for module in below), reverse=True)
    return digest.digest()


def _add_code(digest: hashlib._Hash, code: CodeType) -> None:
    """Add what a code object does; not where its file lay, nor its docstrings' line numbers."""
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    digest.update(repr(names).encode() + code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(digest, constant)
        elif isinstance(constant, frozenset):  # its order differs from process to process
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())
