"""Compiled objects hold our kernels, nothing of Python, nothing that a host does not have."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetok.errors import OptionError
from edgetok.kernels_cpu.elementwise import launch
from edgetok.kernels_cpu.linear import layout  # noqa: F401 - marks what it shares
from edgetok.kernels_cpu.program import loader
from edgetok.kernels_cpu.program.abi import (
    CTX_SLOTS,
    CTX_TOKENS,
    REGISTRY,
    SHARED,
    kernel,
    symbol,
)
from edgetok.kernels_cpu.program.compiling import read_object
from edgetok.kernels_cpu.program.loader import load
from edgetok.kernels_cpu.simd.isa import ISAS, host_isas
from edgetok.kernels_cpu.simd.target import Target
from tests.kernels_cpu.program.object_symbols import symbols

MODULES = (
    "program.interpreter",
    "linear.quantise_activations",
    "linear.q3",
    "linear.q8",
    "linear.float_rows",
    "linear.embed",
)
# All else must be inside: the host lets threads wait, compilers call the rest for plain loops.
HOST = {"edgetok_wait", "edgetok_wake", "edgetok_yield"}
FROM_OUTSIDE = HOST | {"memset", "memcpy", "memmove"}
# Microsoft's linker wants to know that floats are used.
FROM_WINDOWS = {"_fltused"}
CONSTANT = re.compile(r"__([xyz]mm|real)@[0-9a-f]+$")
TARGETS = {
    "avx512": ("x86_64", ("linux", "windows", "macos")),
    "avxvnni": ("x86_64", ("linux", "windows", "macos")),
    "avx2": ("x86_64", ("linux", "windows", "macos")),
    "i8mm": ("aarch64", ("linux", "macos", "ios", "windows")),
    "neon": ("aarch64", ("linux", "macos", "ios", "windows")),
    "portable": ("x86_64", ("linux", "windows", "macos")),
    "portable-arm": ("aarch64", ("linux", "macos", "ios", "windows")),
    "portable-wasm": ("wasm32", ("wasm",)),
}
EMITTED = ("program.interpreter", "linear.q8")


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF objects")
@pytest.mark.parametrize("module", MODULES)
def test_symbols(each_kernels, kernel_cache, module):
    target = Target.here(each_kernels.isa)
    content = loader.object_path(target, module, kernel_cache).read_bytes()
    check(content[32:], target)
    assert b"PyErr" not in content
    assert b"NRT_" not in content


@pytest.mark.parametrize("kind", TARGETS)
def test_every_target(kind, kernel_cache):
    """Objects for other machines, from this one; those that the cache lacks, by one process."""
    arch, systems = TARGETS[kind]
    found = [Target(ISAS[kind.partition("-")[0]], os, arch) for os in systems]
    kernel_cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    places = {
        (module, target.name): loader.object_path(target, module, kernel_cache)
        for module in EMITTED
        for target in found
    }
    missing = {key: path for key, path in places.items() if read_object(path) is None}
    if missing:
        lines = [f"{module} {target} {path}\n" for (module, target), path in missing.items()]
        done = subprocess.run(
            [sys.executable, "-m", "edgetok.kernels_cpu.program.build"],
            input="".join(lines), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    shown = set()
    for (module, name), path in places.items():
        content = path.read_bytes()
        check(content[32:], Target.parse(name))
        if module == "program.interpreter":
            wanted = {s for s, (defined, _) in symbols(content[32:]).items() if not defined}
            assert wanted >= HOST
        shown |= {s for s, (defined, seen) in symbols(content[32:]).items() if defined and seen}
    assert shown > {symbol(found[0].isa.name, name) for name in ("run_program", "team_lead")}


_HOST_C = """
#include <stdint.h>
void edgetok_wait(int64_t address, int64_t value) { (void)address, (void)value; }
void edgetok_wake(int64_t address) { (void)address; }
void edgetok_yield(void) {}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="links ELF objects")
@pytest.mark.skipif(shutil.which("cc") is None, reason="linking needs a C compiler, cc")
def test_all_sets_link_into_one_library(tmp_path, kernel_cache):
    """Link like a C program: no Python, no loader, a host in C, and every set of this machine."""
    objects = []
    for name in host_isas():
        load(ISAS[name], kernel_cache, modules=("elementwise.angles", "program.interpreter"))
        for module in ("elementwise.angles", "program.interpreter"):
            place = loader.object_path(Target.here(ISAS[name]), module, kernel_cache)
            objects.append(tmp_path / f"{name}-{module}.o")
            objects[-1].write_bytes(place.read_bytes()[32:])
    (tmp_path / "host.c").write_text(_HOST_C)
    library = tmp_path / "kernels.so"
    flags = ["-shared", "-fPIC", "-Wl,-z,defs", "-Wl,-z,text"]  # nothing undefined, nothing moved
    subprocess.run(["cc", *flags, tmp_path / "host.c", *objects, "-o", library], check=True)
    linked = ctypes.CDLL(library)
    positions, frequencies = np.arange(5, dtype=np.int32), np.array([1.0, 0.25])
    angles = positions[:, None] * frequencies
    for name in host_isas():
        cos, sin = (np.full((5, 2), np.nan, np.float32) for _ in range(2))
        call = getattr(linked, symbol(name, "angles"))
        one = launch.angles(
            _Nowhere(), positions=positions.ctypes.data, frequencies=frequencies.ctypes.data,
            factor=1.0, pairs=2, cos=cos.ctypes.data, sin=sin.ctypes.data, wait=False,
        )  # fmt: skip
        instruction, ctx = np.array(one, np.int64), np.zeros(CTX_SLOTS, np.int64)
        ctx[CTX_TOKENS] = 5
        call.argtypes, call.restype = [ctypes.c_int64] * 4, None
        call(instruction.ctypes.data, ctx.ctypes.data, 0, 1)
        np.testing.assert_allclose(cos, np.cos(angles), rtol=6e-8)
        np.testing.assert_allclose(sin, np.sin(angles), rtol=6e-8)


class _Nowhere:
    def address(self, name):
        return 0


def check(code, target):
    """The object is the target's, shows kernels under their names and wants nothing unexpected."""
    kinds = {
        "linux": b"\x7fELF",
        "macos": b"\xcf\xfa\xed\xfe",
        "ios": b"\xcf\xfa\xed\xfe",
        "wasm": b"\0asm",
        "windows": b"\x64\x86" if target.arch == "x86_64" else b"\x64\xaa",
    }
    assert code.startswith(kinds[target.os])
    found = symbols(code)
    allowed = FROM_OUTSIDE | (FROM_WINDOWS if target.os == "windows" else set())
    assert {name for name, (defined, _) in found.items() if not defined} <= allowed
    shown = {name for name, (defined, seen) in found.items() if defined and seen}
    if target.os == "windows":  # constants, of which a linker keeps one each
        shown = {name for name in shown if not CONSTANT.match(name)}
    assert shown
    assert all(name.startswith(symbol(target.isa.name, "")) for name in shown)


def test_targets_that_are_none():
    assert Target.parse("aarch64-ios-neon") == Target(ISAS["neon"], "ios")
    assert Target(ISAS["portable"], "wasm").name == "wasm32-wasm-portable"
    for isa, os, arch in (("neon", "linux", "x86_64"), ("avx2", "wasm", ""), ("avx2", "ios", "")):
        with pytest.raises(OptionError, match=f"no kernels for {isa}"):
            Target(ISAS[isa], os, arch)
    for name in ("avx2", "x86_64-linux", "x86_64-linux-avx9"):
        with pytest.raises(OptionError, match="expected one such as x86_64-linux-avx2"):
            Target.parse(name)


def test_two_kernels_of_one_name():
    def twice(instr, ctx, tid, threads):
        pass

    kernel(twice)
    try:
        with pytest.raises(ValueError, match="two kernels are called twice"):
            kernel(twice)
    finally:
        del REGISTRY["twice"]


def test_modules_compile_alone(tmp_path):
    """A module needs nothing that comes from another one compiled before in the process."""
    done = subprocess.run(
        [sys.executable, "-m", "edgetok.kernels_cpu.program.build"],
        input=f"experts.products x86_64-linux-avx2 {tmp_path / 'a.o'}\n",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_layout_functions_of_kernels_are_shared():
    """Any other plain function compiles only where some module before made Numba know it."""
    folder = Path(loader.__file__).parents[1]
    shared = {function.__name__ for function in SHARED}
    for path in folder.rglob("*.py"):
        text = path.read_text()
        if "simd.emit import" in text:
            called = set(re.findall(r"\blayout\.([a-z]\w+)\(", text))
            assert called <= shared, path
