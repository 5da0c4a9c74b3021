"""Loads compiled kernels from a private cache directory, compiling what is missing.

The cache holds one file a module, named by a key over everything that the machine code depends on.
Compiling happens in processes of its own (`compiling.py`), so that this one never imports numba: a
warm start loads a few small objects with llvmlite, and the compiler's memory is never ours.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetok.errors import EdgetokError
from edgetok.kernels_cpu.program.abi import symbol
from edgetok.kernels_cpu.program.compiling import Progress, compile_missing, read_object
from edgetok.kernels_cpu.program.waiting import waiting_code
from edgetok.kernels_cpu.simd.isa import Isa
from edgetok.kernels_cpu.simd.target import Target
from edgetok.private_folder import private_folder

MODULES = (
    "program.interpreter",
    "program.rows",
    "linear.quantise_activations",
    "elementwise.norm",
    "elementwise.activation",
    "elementwise.angles",
    "elementwise.rope",
    "attention.keep_queries",
    "attention.kv_append",
    "attention.hadamard",
    "attention.int4",
    "attention.int6_int4",
    "attention.int8",
    "attention.float16",
    "attention.float32",
    "attention.merge",
    "recurrent.short_conv",
    "recurrent.gated_delta",
    "experts.route",
    "experts.products",
    "linear.q2",
    "linear.q3",
    "linear.q4",
    "linear.q8",
    "linear.q3_supers",
    "linear.q4_offsets",
    "linear.q4_table",
    "linear.q5",
    "linear.q6",
    "linear.float_rows",
    "linear.embed",
    "linear.embed_grouped",
    "linear.exact",
    "linear.exact_grouped",
    "sampling.sample",
    "eviction.choose",
    "eviction.renumber",
    "eviction.int4",
    "eviction.int6_int4",
    "eviction.int8",
    "eviction.float16",
    "eviction.float32",
    "bandwidth.kernels",
)

_PACKAGE = "edgetok.kernels_cpu."
_BUILDER = "program.build"
_IMPORT = re.compile(
    r"^[ \t]*(?:from|import)[ \t]+(edgetok\.kernels_cpu[\w.]*)"
    r"(?:[ \t]+import[ \t]+(\([^)]*\)|[^\n(]*))?",
    re.MULTILINE,
)
_ROOT = Path(__file__).parent.parent


class Kernels:
    """Addresses of compiled kernels. Keep the object as long as any address is used.

    Attributes:
        isa: the instruction set they are compiled for.
        names: of the kernels whose addresses were asked for, by address.
    """

    def __init__(self, isa: Isa, engine: Any) -> None:
        self.isa = isa
        self.names: dict[int, str] = {}
        self._engine = engine

    def address(self, name: str) -> int:
        """Address of a kernel (calling convention of `abi.py`).

        Raises:
            EdgetokError: there is no such kernel.
        """
        address = int(self._engine.get_function_address(symbol(self.isa.name, name)))
        if not address:
            raise EdgetokError(f"no compiled kernel is called {name!r}")
        self.names[address] = name
        return address

    def function(self, name: str) -> Callable[[int, int, int, int], None]:
        """The kernel as a Python callable that releases the GIL while it runs."""
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
        call: Callable[[int, int, int, int], None] = kind(self.address(name))
        return call


def load(
    isa: Isa,
    cache_dir: Path,
    progress: Progress | None = None,
    modules: Sequence[str] = MODULES,
    soon: Sequence[str] = (),
) -> Kernels:
    """Load every kernel for `isa`, compiling those that the cache lacks.

    Args:
        isa: from `isa.choose`.
        cache_dir: created if absent; only this user may own it and write to it.
        progress: called as (work done, work in all) while kernels are compiled, first with 0 done.
        modules: load only these.
        soon: modules that another call will want: they are compiled along if any has to be.

    Raises:
        OutputError: the cache directory is not private or cannot be written.
        EdgetokError: compiling failed.
    """
    from llvmlite import binding

    objects = compiled_objects(Target.here(isa), cache_dir, progress, modules, soon)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    # Optimising the few functions that wait would take longer than all else here.
    machine = binding.Target.from_default_triple().create_target_machine(jit=True, opt=0)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(waiting_code()), machine)
    for code in objects.values():
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Kernels(isa, engine)


def compiled_objects(
    target: Target,
    cache_dir: Path,
    progress: Progress | None = None,
    modules: Sequence[str] = MODULES,
    soon: Sequence[str] = (),
) -> dict[str, bytes]:
    """Object files of modules by name, compiling those that the cache lacks.

    Args:
        target: any machine's.
        cache_dir: as for `load`.
        progress: likewise.
        modules: which.
        soon: likewise.

    Raises:
        OutputError: as `load`.
        EdgetokError: likewise.
    """
    folder = private_folder(cache_dir, "compiled kernels")  # machine code is run from here
    paths = {module: object_path(target, module, folder) for module in modules}
    objects = {module: read_object(path) for module, path in paths.items()}
    missing = {module: paths[module] for module, code in objects.items() if code is None}
    if missing:
        along = {module: object_path(target, module, folder) for module in soon}
        along = {module: path for module, path in along.items() if not path.exists()}
        compile_missing(target, missing | along, folder, progress)
        objects |= {module: read_object(path) for module, path in missing.items()}
    for module, code in objects.items():
        if code is None:
            raise EdgetokError(f"{paths[module]}: the compiler wrote a damaged file; remove it")
    return {module: code for module, code in objects.items() if code is not None}


def object_path(target: Target, module: str, folder: Path) -> Path:
    """Where the cache keeps a module's object."""
    return folder / f"{module}-{target.name}-{_key(target, module)}.o"


@functools.cache
def _key(target: Target, module: str) -> str:
    """Hash of all that the machine code of one module for one target depends on."""
    digest = hashlib.sha256()
    for name in sorted(_sources(module)):
        digest.update(name.encode() + b"\0" + _source(name))
    digest.update("\0".join([target.name, *_versions()]).encode())
    return digest.hexdigest()[:32]


@functools.cache
def _versions() -> tuple[str, ...]:
    return (metadata.version("numba"), metadata.version("llvmlite"), platform.python_version())


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
    place = _ROOT.joinpath(*name.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path.read_bytes()
    return b""
