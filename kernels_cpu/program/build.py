"""Compiles modules' kernels into object files, one a module. Runs in processes of its own.

    echo "embed /somewhere/embed.o" | python -m edgetok.kernels_cpu.program.build --isa avx512

Each line of the input names a module and the file to write; each line of the output names a module
that is done. Modules in one process share what they import, which is most of the work.

Numba targets the chosen instruction set, whatever this machine has, and a small exported function
`edgetok_<name>` with C's calling convention wraps each kernel, so the object holds no Python symbol
and any process can load it without numba (see `loader.py`). The file holds the object's sha256,
then the object. For an instruction set of another architecture the object is one of Linux there:
LLVM's code is made for this machine and handed to the other's back end before it is optimised.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgetok.kernels_cpu.simd import target as build_target
from edgetok.kernels_cpu.simd.isa import ISAS, Isa

_EXPORTED = "edgetok."  # how the names of exported libraries begin
_AARCH64 = "aarch64-unknown-linux-gnu"
_PREFIX = "edgetok_"  # how the names of exported functions begin
_skipping: list[bool] = []


def build(isa_name: str, module_name: str) -> bytes:
    """Compile every kernel that `edgetok.kernels_cpu.<module_name>` registers.

    Returns:
        An ELF, Mach-O or COFF object for this machine's operating system.
    """
    isa = ISAS[isa_name]
    foreign = isa.name == "neon" and platform.machine().lower() not in ("aarch64", "arm64")
    if isa.cpu and not foreign:
        # Numba reads these once, when it is first imported.
        os.environ["NUMBA_CPU_NAME"] = isa.cpu
        os.environ["NUMBA_CPU_FEATURES"] = isa.features
    else:
        os.environ["NUMBA_CPU_NAME"] = "generic"
    build_target.select(isa_name)

    import numba
    from llvmlite import ir
    from numba.core.compiler_lock import global_compiler_lock

    from edgetok.kernels_cpu.program.abi import REGISTRY

    if not _skipping:
        _skip_helpers(keep_exported=not foreign)
        _skipping.append(True)
    module = importlib.import_module(f"edgetok.kernels_cpu.{module_name}")
    int64, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    exported = None
    with global_compiler_lock:
        for name, function in REGISTRY.items():
            if function.__module__ != module.__name__:
                continue
            dispatcher = numba.njit(
                "void(int64, int64, int64, int64)",
                error_model="numpy",
                no_cpython_wrapper=True,
                no_cfunc_wrapper=True,
            )(function)
            (compiled,) = dispatcher.overloads.values()
            if exported is None:
                exported = compiled.library.codegen.create_library(_EXPORTED + module_name)
                exported.enable_object_caching()
            thunks = exported.create_ir_module(f"export.{name}")
            kind = ir.FunctionType(
                ir.IntType(32), [pointer.as_pointer(), pointer.as_pointer(), *[int64] * 4]
            )
            inner = ir.Function(thunks, kind, compiled.fndesc.mangled_name)
            outer = ir.Function(thunks, ir.FunctionType(ir.VoidType(), [int64] * 4), _PREFIX + name)
            b = ir.IRBuilder(outer.append_basic_block())
            b.call(inner, [b.alloca(pointer), b.alloca(pointer), *outer.args])
            b.ret_void()
            exported.add_ir_module(thunks)
            exported.add_linking_library(compiled.library)
        if exported is None:
            raise ValueError(f"{module.__name__} registers no kernel")
        exported.finalize()
        if foreign:
            return _emit(str(exported._final_module), isa)
        # Numba emits machine code when the first address is asked for.
        exported.get_pointer_to_function(thunks.functions[-1].name)
        return bytes(exported._get_compiled_object())


def _emit(code: str, isa: Isa) -> bytes:
    """An object for aarch64 Linux from LLVM's code for this machine."""
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(_AARCH64)
    machine = target.create_target_machine(
        cpu=isa.cpu, features=isa.features, opt=3, reloc="pic", codemodel="small"
    )
    code = re.sub(r"(?m)^target (triple|datalayout) = .*$", "", code)
    module = binding.parse_assembly(code)
    module.triple = _AARCH64
    module.data_layout = str(machine.target_data)
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def _skip_helpers(keep_exported: bool) -> None:
    """Keep Numba from optimising and emitting each helper function by itself.

    Helpers are linked into the kernels that call them and optimised there; what Numba makes of them
    alone is thrown away, and took more than half of a build's time.

    Args:
        keep_exported: whether Numba is to optimise and emit the exported library.
    """
    from numba.core.codegen import JITCodeLibrary
    from numba.core.cpu import CPUContext

    optimize, emit = JITCodeLibrary._optimize_final_module, JITCodeLibrary._finalize_final_module

    def optimize_exported(library: Any) -> None:
        if library.name.startswith(_EXPORTED):
            # Numba numbers its symbols anew in each process: two objects may use one name for two
            # functions, and the loader would link one of them to both.
            for function in library._final_module.functions:
                if not function.is_declaration and not function.name.startswith(_PREFIX):
                    function.linkage = "internal"
            for variable in library._final_module.global_variables:
                if variable.name.startswith("_ZN08NumbaEnv"):  # for exceptions: nobody reads it
                    variable.linkage = "internal"
            if keep_exported:
                optimize(library)

    def emit_exported(library: Any) -> None:
        if keep_exported and library.name.startswith(_EXPORTED):
            emit(library)
        else:
            library._finalized = True

    JITCodeLibrary._optimize_final_module = optimize_exported
    JITCodeLibrary._finalize_final_module = emit_exported
    # What Python would call, each different; Python calls nothing here.
    CPUContext.get_executable = lambda *_: [].append


def write(code: bytes, path: Path) -> None:
    """Write an object and its hash aside, then rename: readers see all of it or nothing."""
    handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def main() -> None:
    """Compile the modules that the input names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", choices=list(ISAS), required=True)
    args = parser.parse_args()
    for line in sys.stdin:
        module, _, path = line.rstrip("\n").partition(" ")
        write(build(args.isa, module), Path(path))
        print(module, flush=True)


if __name__ == "__main__":
    main()
