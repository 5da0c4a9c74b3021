"""Loads compiled kernels: shipped ones (`shipped.py`), else from a cache, else compiled.

The cache is a private directory with one file a module, named by a key over everything that the
machine code depends on (`keys.py`). Compiling happens in processes of its own (`compiling.py`), so
that this one never imports numba: a warm start loads a few small objects with llvmlite, and the
compiler's memory is never ours. Kernels that were shipped as a library need no llvmlite either.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from edgetok.errors import EdgetokError, MissingExtraError
from edgetok.kernels_cpu.program.abi import symbol
from edgetok.kernels_cpu.program.compiling import Progress, compile_missing, read_object
from edgetok.kernels_cpu.program.keys import cache_key
from edgetok.kernels_cpu.program.shipped import Shipped, shipped_kernels, shortly
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
    "elementwise.columns",
    "elementwise.unit_norm",
    "elementwise.ungated",
    "elementwise.layer_norm",
    "elementwise.position_scale",
    "elementwise.streams",
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
    "recurrent.state_space",
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
    "linear.q6_scales",
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


class _Code(Protocol):
    """Loaded machine code: LLVM's engine, or a library."""

    def get_function_address(self, name: str) -> int:
        """Address of a function; 0 where there is none."""
        ...


class Kernels:
    """Addresses of compiled kernels. Keep the object as long as any address is used.

    Attributes:
        isa: the instruction set they are compiled for.
        names: of the kernels whose addresses were asked for, by address.
        notes: lines for the user about shipped kernels that could not be taken.
    """

    def __init__(self, isa: Isa, code: Sequence[_Code], notes: Sequence[str] = ()) -> None:
        self.isa = isa
        self.notes = tuple(notes)
        self.names: dict[int, str] = {}
        self._code = tuple(code)

    def address(self, name: str) -> int:
        """Address of a kernel (calling convention of `abi.py`).

        Raises:
            EdgetokError: there is no such kernel.
        """
        wanted = symbol(self.isa.name, name)
        address = next(filter(None, (c.get_function_address(wanted) for c in self._code)), 0)
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
    kernels_dir: Path | None = None,
) -> Kernels:
    """Load every kernel for `isa`, compiling those that are neither shipped nor in the cache.

    Args:
        isa: from `isa.choose`.
        cache_dir: created if it is needed; only this user may own it and write to it.
        progress: called as (work done, work in all) while kernels are compiled, first with 0 done.
        modules: load only these.
        soon: modules that another call will want: they are compiled along if any has to be.
        kernels_dir: a folder of compiled kernels, looked at first; see `shipped.py`.

    Raises:
        OptionError: `kernels_dir` holds no compiled kernels, or somebody else may write it.
        OutputError: the cache directory is not private or cannot be written.
        MissingExtraError: there is no compiler.
        EdgetokError: compiling failed.
    """
    found = _found(Target.here(isa), cache_dir, progress, modules, soon, kernels_dir)
    objects = {module: found.objects[module] for module in modules if module in found.objects}
    code: list[_Code] = list(dict.fromkeys(found.libraries.values()))
    if objects:
        code.append(_linked_here(objects.values()))
    return Kernels(isa, code, found.notes)


def _linked_here(objects: Iterable[bytes]) -> _Code:
    """Load object files, and the functions that wait, with LLVM's linker.

    Raises:
        MissingExtraError: there is none.
    """
    try:
        from llvmlite import binding
    except ImportError as error:
        raise MissingExtraError(
            "kernels are object files, which llvmlite loads, and it is not installed: "
            "pip install 'edgetok[compile]', or link them with edgetok compile --link"
        ) from error
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    # Optimising the few functions that wait would take longer than all else here.
    machine = binding.Target.from_default_triple().create_target_machine(jit=True, opt=0)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(waiting_code()), machine)
    for code in objects:
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    loaded: _Code = engine
    return loaded


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


def _found(
    target: Target,
    cache_dir: Path,
    progress: Progress | None,
    modules: Sequence[str],
    soon: Sequence[str],
    kernels_dir: Path | None,
) -> Shipped:
    """Kernels of modules: what was shipped, and objects of all that is left."""
    found = shipped_kernels(target, modules, soon, kernels_dir)
    if left := found.lack(modules):
        try:
            made = compiled_objects(target, cache_dir, progress, left, found.lack(soon))
        except EdgetokError as error:
            notes = list(found.notes)
            if not notes and isinstance(error, MissingExtraError):
                notes = [f"no kernels are shipped for {target.name} ({shortly(left)})"]
            raise type(error)("; ".join([*notes, str(error)])) from error
        found.objects.update(made)
    return found


def object_path(target: Target, module: str, folder: Path) -> Path:
    """Where the cache keeps a module's object."""
    return folder / f"{module}-{target.name}-{cache_key(target, module)}.o"
