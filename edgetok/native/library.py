"""Build libedgetok for a machine: compiled kernels, the C sources, and an archive of both.

The C compiler is that of the `ziglang` package, which compiles for every machine from every other;
for this machine the system's own does as well.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetok.errors import EdgetokError, MissingExtraError, OptionError
from edgetok.kernels_cpu.cache.launch import MODULES as CACHE_MODULES
from edgetok.kernels_cpu.plan.launch import MODULES as PLAN_MODULES
from edgetok.kernels_cpu.program.abi import symbol
from edgetok.kernels_cpu.program.compiling import Progress, kernel_names
from edgetok.kernels_cpu.program.keys import imports
from edgetok.kernels_cpu.program.loader import compiled_objects
from edgetok.kernels_cpu.session.launch import MODULES as SESSION_MODULES
from edgetok.kernels_cpu.simd.isa import ISAS, choose
from edgetok.kernels_cpu.simd.target import Target
from edgetok.kernels_cpu.text.launch import MODULES as TEXT_MODULES
from edgetok.native.abi_header import abi_header

_FOLDER = Path(__file__).parent
SOURCES = tuple(sorted((_FOLDER / "src").glob("*.c")))
INCLUDE = _FOLDER / "include"
HEADER = INCLUDE / "edgetok.h"
FLAGS = (
    "-std=c11",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-pedantic",
)
# The functions that wasm modules and Windows libraries show; elsewhere visibility says it.
_SHOWN = re.findall(r"\b(edgetok_\w+)\(", HEADER.read_text())
WINDOWS_LIBRARIES = ("-lapi-ms-win-core-synch-l1-2-0",)  # which threads wait by
_LINKING = {
    "linux": ["-shared", "-lpthread"],
    "macos": ["-shared"],
    "windows": ["-shared", *WINDOWS_LIBRARIES],
    "wasm": [
        "-mexec-model=reactor",
        "-Wl,--strip-debug",
        *(f"-Wl,--export={name}" for name in ("malloc", "free", *dict.fromkeys(_SHOWN))),
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that libraries are built for.

    Attributes:
        name: as on the command line.
        os: as `Target.os`.
        arch: as `Target.arch`.
        isas: instruction sets that are packed, the fastest first.
        triple: the C compiler's name of it; "" where it has no headers of that system: then the
            library is compiled kernels and C sources.
        shared: name of the shared library; "" for none.
    """

    name: str
    os: str
    arch: str
    isas: tuple[str, ...]
    triple: str
    shared: str = ""

    def target(self, isa: str) -> Target:
        """The target that kernels are compiled for.

        Raises:
            OptionError: the machine has no such instruction set.
        """
        if isa not in ISAS:
            raise OptionError(f"instruction set {isa!r:.40}, expected one of {', '.join(ISAS)}")
        return Target(ISAS[isa], self.os, self.arch)


_X86 = ("avx512", "avxvnni", "avx2")
_ARM = ("i8mm", "neon", "portable")
MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            name="x86_64-linux", os="linux", arch="x86_64", isas=_X86,
            triple="x86_64-linux-gnu.2.28", shared="libedgetok.so",
        ),
        Machine(
            name="aarch64-linux", os="linux", arch="aarch64", isas=_ARM,
            triple="aarch64-linux-gnu.2.28", shared="libedgetok.so",
        ),
        Machine(name="aarch64-android", os="linux", arch="aarch64", isas=_ARM, triple=""),
        Machine(
            name="arm64-macos", os="macos", arch="aarch64", isas=("i8mm", "neon"),
            triple="aarch64-macos", shared="libedgetok.dylib",
        ),
        Machine(name="arm64-ios", os="ios", arch="aarch64", isas=_ARM, triple=""),
        Machine(
            name="x86_64-windows", os="windows", arch="x86_64", isas=_X86,
            triple="x86_64-windows-gnu", shared="edgetok.dll",
        ),
        Machine(
            name="wasm32", os="wasm", arch="wasm32", isas=("portable",),
            triple="wasm32-wasi", shared="edgetok.wasm",
        ),
    )
}  # fmt: skip


def machine_of(name: str) -> Machine:
    """The machine called so.

    Raises:
        OptionError: there is none.
    """
    if name not in MACHINES:
        raise OptionError(f"target {name!r:.40}, expected one of {', '.join(MACHINES)}")
    return MACHINES[name]


def this_machine() -> Machine | None:
    """The machine that this process runs on, with its best instruction set alone."""
    here = Target.here(choose())
    for machine in MACHINES.values():
        if (machine.os, machine.arch) == (here.os, here.arch) and machine.triple:
            return Machine(
                name=machine.name, os=machine.os, arch=machine.arch, isas=(here.isa.name,),
                triple=machine.triple, shared=machine.shared,
            )  # fmt: skip
    return None


class Compiler:
    """A C compiler for one machine."""

    def __init__(self, machine: Machine, triple: str = "") -> None:
        """Find one; `triple` stands for the machine's, such as another C library's.

        Raises:
            MissingExtraError: there is none.
        """
        here = this_machine()
        own = here is not None and here.name == machine.name
        frozen = getattr(sys, "frozen", False)  # an application would start itself
        if not frozen and importlib.util.find_spec("ziglang") is not None:
            zig = [sys.executable, "-m", "ziglang"]
            self._cc, self._ar = [*zig, "cc", "-target", triple or machine.triple], [*zig, "ar"]
        elif own and shutil.which("cc") and shutil.which("ar"):
            self._cc, self._ar = ["cc"], ["ar"]
        else:
            raise MissingExtraError(
                f"building for {machine.name} needs a C compiler: pip install 'edgetok[native]'"
            )

    def compile(self, source: Path, out: Path, *flags: str) -> None:
        """Compile one file."""
        self.run(*FLAGS, *flags, "-c", str(source), "-o", str(out))

    def run(self, *arguments: str) -> None:
        """Run the compiler.

        Raises:
            EdgetokError: it fails; says what it said.
        """
        _run([*self._cc, *arguments])

    def archive(self, objects: Sequence[Path], out: Path, *, merge: bool = False) -> None:
        """Write a static library; `merge` takes the members of libraries in `objects` (ziglang)."""
        out.unlink(missing_ok=True)
        _run([*self._ar, "qcsL" if merge else "rcs", str(out), *map(str, objects)])


def build_library(
    machine: Machine,
    modules: Sequence[str],
    out: Path,
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    isas: Sequence[str] = (),
) -> list[Path]:
    """Build libedgetok.

    Args:
        machine: for which.
        modules: kernel modules that it holds, besides those that the C sources call.
        out: a folder that exists.
        cache_dir: where compiled kernels are kept.
        progress: called while kernels are compiled.
        isas: instruction sets; none takes the machine's.

    Returns:
        The static library and, where the machine has one, the shared one; where there is no C
        compiler for it, an archive of the kernels alone, beside the sources in `src`.

    Raises:
        MissingExtraError: there is no C compiler.
        EdgetokError: compiling fails.
    """
    sets = tuple(isas) or machine.isas
    modules = [*modules, *CACHE_MODULES, *PLAN_MODULES, *SESSION_MODULES, *TEXT_MODULES]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "abi.h").write_text(abi_header())
        objects = []
        for isa in sets:
            target = machine.target(isa)
            own = _own_modules(isa, sets, modules)
            for module, code in compiled_objects(target, cache_dir, progress, own).items():
                objects.append(folder / f"{isa}-{module}.o")
                objects[-1].write_bytes(code)
        (folder / "kernels.c").write_text(_table(machine, sets, modules))
        made = [out / "libedgetok.a"]
        if not machine.triple:
            kernels_only = MACHINES["arm64-macos" if machine.os == "ios" else "aarch64-linux"]
            made = [out / "libedgetok_kernels.a"]
            Compiler(kernels_only).archive(objects, made[0])
            sources = out / "src"
            sources.mkdir()
            for path in (*SOURCES, folder / "kernels.c", folder / "abi.h"):
                shutil.copy(path, sources)
            shutil.copy(_FOLDER / "src/internal.h", sources)
            return made
        compiler = Compiler(machine)
        for source in (*SOURCES, folder / "kernels.c"):
            objects.append(folder / f"{source.stem}.o")
            include = [f"-I{folder}", f"-I{INCLUDE}", f"-I{_FOLDER / 'src'}"]
            include += ["-msimd128"] if machine.os == "wasm" else []
            compiler.compile(source, objects[-1], *include)
        compiler.archive(objects, made[0])
        if machine.shared:
            made.append(out / machine.shared)
            if machine.os == "windows":
                objects.append(folder / "edgetok.def")
                objects[-1].write_text("\n".join(["EXPORTS", *dict.fromkeys(_SHOWN)]) + "\n")
            compiler.run("-o", str(made[1]), *map(str, objects), *_LINKING[machine.os])
        if machine.os == "wasm":
            made.append(Path(shutil.copy(_FOLDER / "edgetok.mjs", out)))
    return made


def _own_modules(isa: str, sets: Sequence[str], modules: Sequence[str]) -> list[str]:
    """The modules compiled for a set; where it extends a packed one, not those of the same code.

    i8mm has instructions of its own for products of integers alone.
    """
    if ISAS[isa].extends not in sets:
        return list(modules)
    return [module for module in modules if imports(module, "linear.rows")]


def _table(machine: Machine, isas: Sequence[str], modules: Sequence[str]) -> str:
    """`kernels.c`: the kernels by name."""
    lines = ['#include "internal.h"', ""]
    sets = []
    for isa in isas:
        own = _own_modules(isa, isas, modules)
        shared = [module for module in modules if module not in own]
        symbols = {
            name: symbol(compiled_for, name)
            for compiled_for, some in ((isa, own), (ISAS[isa].extends, shared))
            if some
            for name in kernel_names(machine.target(compiled_for), some)
        }
        lines += [f"kernel {function};" for function in symbols.values()]
        lines.append(f"static const named_kernel of_{isa}[] = {{")
        lines += [f'    {{"{name}", {function}}},' for name, function in symbols.items()]
        lines.append("};")
        sets.append(f'    {{"{isa}", of_{isa}, {len(symbols)}}},')
    lines += ["const kernel_set et_kernel_sets[] = {", *sets, "};"]
    lines.append(f"const size_t et_kernel_set_count = {len(sets)};")
    return "\n".join(lines) + "\n"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        found = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise EdgetokError(f"the C compiler failed: {found[0]:.300}")
