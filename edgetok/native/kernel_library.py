"""Link a target's compiled kernels into one shared library, which Python loads without LLVM.

Besides the kernels it holds how threads wait (`src/platform.c`). On Linux it names no C library:
the few functions that it wants, such as memset, are in every process that has Python.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgetok.errors import OptionError
from edgetok.kernels_cpu.program.shipped import library_file
from edgetok.kernels_cpu.simd.target import Target
from edgetok.native.abi_header import abi_header
from edgetok.native.library import INCLUDE, MACHINES, Compiler, Machine

_PLATFORM = INCLUDE.parent / "src/platform.c"
# Kernels stay, being what the library shows; of the C source what they want.
_LINKING = {
    "linux": ("-shared", "-nostdlib", "-Wl,--gc-sections", "-Wl,-z,noexecstack", "-s"),
    "macos": ("-shared",),
}


class KernelLinker:
    """Links the kernels of one target."""

    def __init__(self, target: Target) -> None:
        """Find a C compiler.

        Raises:
            OptionError: kernels of this system are not linked; take objects.
            MissingExtraError: there is no C compiler.
        """
        self._target, self._machine = target, _machine(target)
        self._compiler = Compiler(self._machine)

    def link(self, objects: Mapping[str, bytes]) -> bytes:
        """Link object files.

        Args:
            objects: by module.

        Raises:
            EdgetokError: the compiler fails; says what it said.
        """
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            (folder / "abi.h").write_text(abi_header())
            parts = [folder / "platform.o"]
            includes = (f"-I{folder}", f"-I{INCLUDE}")
            self._compiler.compile(_PLATFORM, parts[0], "-ffunction-sections", *includes)
            for module, code in sorted(objects.items()):
                parts.append(folder / f"{module}.o")
                parts[-1].write_bytes(code)
            out = folder / library_file(self._target)
            self._compiler.run("-o", str(out), *map(str, parts), *_LINKING[self._machine.os])
            return out.read_bytes()


def _machine(target: Target) -> Machine:
    for machine in MACHINES.values():
        if (machine.os, machine.arch) == (target.os, target.arch) and machine.os in _LINKING:
            return machine
    known = ", ".join(name for name, machine in MACHINES.items() if machine.os in _LINKING)
    raise OptionError(
        f"kernels for {target.name} cannot be linked, only those of {known}; "
        "do without --link: a folder of objects is loaded by llvmlite"
    )
