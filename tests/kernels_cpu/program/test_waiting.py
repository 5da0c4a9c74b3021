"""The functions that the loader gives compiled kernels, on every system that it knows."""

from __future__ import annotations

import sys

import pytest
from llvmlite import binding

from edgetok.kernels_cpu.program.waiting import waiting_code
from tests.kernels_cpu.program.object_symbols import symbols

SYSTEMS = {
    "linux": ("x86_64-unknown-linux-gnu", {"syscall", "sched_yield"}),
    "darwin": ("arm64-apple-macosx11.0.0", {"__ulock_wait", "__ulock_wake", "sched_yield"}),
    "win32": ("x86_64-pc-windows-msvc", {"WaitOnAddress", "WakeByAddressAll", "SwitchToThread"}),
    "freebsd14": ("x86_64-unknown-freebsd", {"usleep", "sched_yield"}),
}
FUNCTIONS = {"edgetok_wait", "edgetok_wake", "edgetok_yield"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_they_compile_and_call_by_address(system):
    triple, expected = SYSTEMS[system]
    asked = []

    def address(name):
        asked.append(name)
        return 0x1234_5678_9ABC

    code = waiting_code(system, address)
    assert set(asked) == expected
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = binding.parse_assembly(code)
    module.triple = triple
    module.verify()
    machine = binding.Target.from_triple(triple).create_target_machine(reloc="pic")
    found = symbols(machine.emit_object(module))
    shown = {name for name, (defined, seen) in found.items() if defined and seen}
    assert shown - {"_fltused"} == FUNCTIONS
    assert {name for name, (defined, _) in found.items() if not defined} <= {"_fltused"}


def test_this_system():
    assert waiting_code().count("define void") == len(FUNCTIONS), sys.platform
