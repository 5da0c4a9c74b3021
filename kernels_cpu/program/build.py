"""Compiles modules' kernels into object files, one a module. Runs in processes of its own.

    echo "linear.embed x86_64-linux-avx512 /somewhere/embed.o" |
        python -m edgetok.kernels_cpu.program.build

Each line of the input names a module, a target of that instruction set and architecture, and the
file to write; each line of the output names a module that is done. Modules in one process share
what they import, which is most of the work; a process builds for one instruction set.

Numba makes LLVM's code, which LLVM then optimises and emits for the target (`simd/target.py`),
whatever machine this is. Objects are position-independent. They show one C function a kernel, named
by instruction set (`abi.symbol`), and want no symbol but `edgetok_wait`, `edgetok_wake` and
`edgetok_yield` (`simd/threads.py`) and what compilers call for plain loops (memcpy, memset): any
process can load them without numba (`loader.py`), any program can link them. A file holds the
object's sha256, then the object.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib
import os
import re
import sys
import tempfile
from pathlib import Path

from edgetok.kernels_cpu.simd import target as targets
from edgetok.kernels_cpu.simd.isa import Isa
from edgetok.kernels_cpu.simd.target import Target

_EXPORTED = "edgetok."  # how the names of exported libraries begin
_SHOWN = "edgetok_"  # how the names of functions that objects show begin
_prepared: list[bool] = []


def build(target: Target, module_name: str) -> bytes:
    """Compile every kernel that `edgetok.kernels_cpu.<module_name>` registers.

    Returns:
        An ELF, Mach-O, COFF or wasm object.

    Raises:
        ValueError: the module registers no kernel.
        RuntimeError: this process builds for another target.
    """
    targets.select(target)
    return _emit(_lower(target.isa, module_name), target)


@functools.cache
def _lower(isa: Isa, module_name: str) -> str:
    """LLVM's code of a module's kernels, not yet optimised, the same for every operating system."""
    # Numba's own code generator runs only over what is thrown away; it reads this when imported.
    os.environ["NUMBA_CPU_NAME"] = "generic"

    import numba
    from llvmlite import ir
    from numba.core.compiler_lock import global_compiler_lock
    from numba.extending import register_jitable

    from edgetok.kernels_cpu.program.abi import REGISTRY, SHARED, symbol
    from edgetok.kernels_cpu.simd.compiler import KernelCompiler, only_lower

    if not _prepared:
        only_lower()
        _prepared.append(True)
    module = importlib.import_module(f"edgetok.kernels_cpu.{module_name}")
    while SHARED:
        register_jitable(error_model="numpy", forceinline=True)(SHARED.pop())
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
                pipeline_class=KernelCompiler,
            )(function)
            (compiled,) = dispatcher.overloads.values()
            if exported is None:
                exported = compiled.library.codegen.create_library(_EXPORTED + module_name)
            thunks = exported.create_ir_module(f"export.{name}")
            kind = ir.FunctionType(
                ir.IntType(32), [pointer.as_pointer(), pointer.as_pointer(), *[int64] * 4]
            )
            inner = ir.Function(thunks, kind, compiled.fndesc.mangled_name)
            shown = ir.FunctionType(ir.VoidType(), [int64] * 4)
            outer = ir.Function(thunks, shown, symbol(isa.name, name))
            b = ir.IRBuilder(outer.append_basic_block())
            b.call(inner, [b.alloca(pointer), b.alloca(pointer), *outer.args])
            b.ret_void()
            exported.add_ir_module(thunks)
            exported.add_linking_library(compiled.library)
        if exported is None:
            raise ValueError(f"{module.__name__} registers no kernel")
        exported.finalize()
        made = exported._final_module
    # Numba numbers its symbols anew in each process: two objects may use one name for two
    # functions, and a linker would give one of them to both.
    for one in made.functions:
        if not one.is_declaration and not one.name.startswith(_SHOWN):
            one.linkage = "internal"
    for variable in made.global_variables:
        if variable.name.startswith("_ZN08NumbaEnv"):  # for exceptions: nobody reads it
            variable.linkage = "internal"
    return re.sub(r"(?m)^target (triple|datalayout) = .*$", "", str(made))


def _emit(code: str, target: Target) -> bytes:
    """Optimise and emit LLVM's code for the target."""
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu,
        features=target.features,
        opt=3,
        reloc="pic",
        codemodel="default" if target.arch == "wasm32" else "small",
    )
    module = binding.parse_assembly(code)
    module.triple = target.triple
    module.data_layout = str(machine.target_data)
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


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
    gc.disable()  # nearly all of what is made here is kept to the end of the process
    for line in sys.stdin:
        module, name, path = line.rstrip("\n").split(" ", 2)
        write(build(Target.parse(name), module), Path(path))
        print(module, flush=True)


if __name__ == "__main__":
    main()
