"""The kernels' own tests again, compiled for Arm (NEON, dotprod) and run under qemu's user mode.

Test functions are imported, fixtures replaced: arrays lie in a file that a small C program, linked
with the kernels' objects and emulated, maps at the same address. Needs qemu-aarch64 (Debian:
qemu-user); the C compiler is ziglang's.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import platform
import shutil
import subprocess

import numpy as np
import pytest

from edgetok.kernels_cpu.linear import launch as launch_linear
from edgetok.kernels_cpu.linear import operands
from edgetok.kernels_cpu.program import loader
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS
from edgetok.kernels_cpu.program.tables import (
    LINE,
    TEAM_CTX,
    TEAM_DONE,
    TEAM_NEXT,
    TEAM_PROGRAM,
    TEAM_STEP,
)
from edgetok.kernels_cpu.simd.isa import ISAS
from edgetok.kernels_cpu.simd.target import Target
from edgetok.native.library import MACHINES, Compiler
from tests.kernels_cpu.attention import caches as attention
from tests.kernels_cpu.attention.test_attention import (
    test_a_row_does_not_depend_on_its_company,
    test_append_rounds_as_said,
    test_attention,
    test_float16_clamps_instead_of_overflowing,
    test_hadamard,
    test_windows_and_caps,
)
from tests.kernels_cpu.attention.test_mass import test_mass
from tests.kernels_cpu.elementwise.test_norm import (
    test_activation_mul,
    test_add_scaled,
    test_rms_norm,
    test_softcap,
)
from tests.kernels_cpu.elementwise.test_rope import test_rope
from tests.kernels_cpu.linear.test_embed import test_floats, test_quantised
from tests.kernels_cpu.linear.test_matmul import test_exact, test_float_weights, test_int8
from tests.kernels_cpu.linear.test_quantise import test_codes_and_scales
from tests.kernels_cpu.program.object_symbols import symbols
from tests.kernels_cpu.program.test_program import COUNT, Sums
from tests.kernels_cpu.simd.test_same_bits import (
    test_exact_company,
    test_float_company,
    test_int8_company,
)

__all__ = [
    "test_a_row_does_not_depend_on_its_company",
    "test_activation_mul",
    "test_add_scaled",
    "test_append_rounds_as_said",
    "test_attention",
    "test_codes_and_scales",
    "test_exact",
    "test_exact_company",
    "test_float16_clamps_instead_of_overflowing",
    "test_float_company",
    "test_float_weights",
    "test_floats",
    "test_hadamard",
    "test_int8",
    "test_int8_company",
    "test_mass",
    "test_quantised",
    "test_rms_norm",
    "test_rope",
    "test_softcap",
    "test_windows_and_caps",
]
pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="needs qemu-aarch64"),
    pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs ziglang"),
    pytest.mark.skipif(
        platform.machine().lower() in ("aarch64", "arm64"), reason="this machine is an Arm itself"
    ),
]

MODULES = (
    "linear.quantise_activations",
    "elementwise.norm",
    "elementwise.activation",
    "elementwise.rope",
    "linear.embed",
    "linear.q2",
    "linear.q3",
    "linear.q4",
    "linear.q8",
    "linear.float_rows",
    "linear.exact",
    "attention.kv_append",
    "attention.hadamard",
    "attention.int4",
    "attention.int6_int4",
    "attention.int8",
    "attention.float16",
    "attention.float32",
    "attention.merge",
    "program.interpreter",
)
# What processors are emulated: without the instructions of sets above theirs.
PROCESSORS = {"i8mm": "max", "neon": "cortex-a76"}
_ADDRESS = 0x10_0000_0000  # where nothing else is, in this process and in the emulated one
_BYTES = 256 << 20


class Arena:
    """Arrays in memory that both processes see; also a stand-in for the fixture `guard`."""

    def __init__(self, path):
        self.path = path
        path.write_bytes(b"")
        with path.open("r+b") as file:
            file.truncate(_BYTES)
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._libc.mmap.restype = ctypes.c_void_p
            self._libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
            fixed_noreplace = 0x100000
            flags = mmap.MAP_SHARED | fixed_noreplace
            found = self._libc.mmap(_ADDRESS, _BYTES, 3, flags, file.fileno(), 0)
        assert found == _ADDRESS, f"not mapped: {os.strerror(ctypes.get_errno())}"
        memory = (ctypes.c_uint8 * _BYTES).from_address(_ADDRESS)
        self._memory = np.frombuffer(memory, np.uint8)
        self._used = 0

    def allocate(self, nbytes):
        start = self._used
        self._used = -(-(start + nbytes + 64) // 64) * 64
        made = self._memory[start : start + nbytes]
        made[:] = 0
        return made

    def __call__(self, array, at_end=True):
        made = self.allocate(array.nbytes).view(array.dtype).reshape(array.shape)
        made[...] = array
        return made

    def clear(self):
        self._used = 0

    def close(self):
        """Give the address back, for the next arena of this process; its arrays are gone."""
        assert self._libc.munmap(ctypes.c_void_p(_ADDRESS), ctypes.c_size_t(_BYTES)) == 0


class Emulated:
    """Kernels as launchers and tests want them (`loader.Kernels`), in an emulated process."""

    def __init__(self, isa, modules, cache, folder, arena):
        self.isa, self.arena = isa, arena
        objects = []
        target = Target(isa, "linux")
        for module, code in loader.compiled_objects(target, cache, modules=modules).items():
            objects.append(folder / f"{module}.o")
            objects[-1].write_bytes(code)
        names = []
        for path in objects:
            found = symbols(path.read_bytes())
            names += [
                name.removeprefix(f"edgetok_{isa.name}_")
                for name, (defined, visible) in found.items()
                if defined and visible
            ]
            assert not any("Py" in name for name in found)
        header = "".join(f"KERNEL({name})\n" for name in names)
        (folder / "kernels.h").write_text(header)
        source = __file__.replace("test_aarch64.py", "emulated_aarch64.c")
        driver = folder / "driver"
        compiler = Compiler(MACHINES["aarch64-linux"], "aarch64-linux-musl")
        linked = [source, *map(str, objects), "-lm", "-o", str(driver)]
        compiler.run("-O1", "-static", f"-I{folder}", f"-DISA={isa.name}", *linked)
        self.process = subprocess.Popen(
            [
                "qemu-aarch64",
                "-cpu",
                PROCESSORS[isa.name],
                driver,
                arena.path,
                str(_ADDRESS),
                str(_BYTES),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._addresses = {}
        while line := self.process.stdout.readline().strip():
            name, address = line.split()
            self._addresses[name] = int(address)

    def address(self, name):
        return self._addresses[name]

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        self.process.stdout.close()

    def call(self, *numbers):
        self.process.stdin.write(" ".join(str(int(number)) for number in numbers) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", f"exit code {self.process.wait()}"


@pytest.fixture(scope="module")
def each_kernels(tmp_path_factory, kernel_cache):
    folder = tmp_path_factory.mktemp("aarch64")
    made = Emulated(ISAS["neon"], MODULES, kernel_cache, folder, Arena(folder / "memory"))
    yield made
    made.close()
    made.arena.close()


@pytest.fixture
def guard(each_kernels, monkeypatch):
    arena = each_kernels.arena
    arena.clear()
    for module in (launch_linear, operands):
        monkeypatch.setattr(module, "aligned_bytes", arena.allocate)
    monkeypatch.setattr(attention, "call", each_kernels.call)
    return arena


@pytest.fixture
def run(each_kernels):
    def run(kernels, instruction, tokens, threads=1):
        ctx = np.zeros(32, np.int64)
        ctx[0] = tokens
        shared = [kernels.arena(np.ascontiguousarray(a)).ctypes.data for a in (instruction, ctx)]
        for tid in range(threads):
            kernels.call(instruction[0], *shared, tid, threads)

    return run


def test_programs_alone(each_kernels, guard):
    """The interpreter, and its shares where one thread does all of a team's."""
    sums = Sums(each_kernels, [True, False] * (COUNT // 2), guard)
    run, lead = each_kernels.address("run_program"), each_kernels.address("team_lead")
    each_kernels.call(run, sums.header.ctypes.data, sums.ctx.ctypes.data, 0, 1)
    sums.check(1)
    assert (sums.ticks > 0).any()
    counters = guard(np.zeros(3 * LINE, np.int64))
    team = guard(np.zeros(INSTR_SLOTS, np.int64))
    for i, slot in enumerate((TEAM_STEP, TEAM_NEXT, TEAM_DONE)):
        team[slot] = counters.ctypes.data + 8 * LINE * i
    team[TEAM_PROGRAM], team[TEAM_CTX] = sums.header.ctypes.data, sums.ctx.ctypes.data
    for runs in (2, 3):
        each_kernels.call(lead, team.ctypes.data, sums.ctx.ctypes.data, 0, 3)
        sums.check(runs)
    assert counters[LINE] == counters[2 * LINE] == 2 * (len(sums.starts) - 1) * 3
