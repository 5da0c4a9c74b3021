"""What compiled objects hold: our kernels, nothing of Python, nothing that is not in every libc."""

from __future__ import annotations

import struct
import sys

import pytest

from edgetok.kernels_cpu.program import loader
from edgetok.kernels_cpu.program.abi import REGISTRY, kernel

MODULES = (
    "program.interpreter",
    "linear.quantise_activations",
    "linear.q3",
    "linear.q8",
    "linear.float_rows",
    "linear.embed",
)
# Everything else must be inside: `sched_yield` and `syscall` let threads wait, the rest is what
# compilers call for plain loops.
FROM_OUTSIDE = {"sched_yield", "syscall", "usleep", "memset", "memcpy", "memmove"}


def symbols(code: bytes) -> dict[str, tuple[bool, bool]]:
    """Name -> (defined, visible to others) of the symbols of a 64-bit little-endian ELF object."""
    assert code[:6] == b"\x7fELF\x02\x01"
    (at,) = struct.unpack_from("<Q", code, 40)
    size, count = struct.unpack_from("<HH", code, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, at + i * size) for i in range(count)]
    found = {}
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = sections[link][4]
        for i in range(1, length // 24):
            name, info, _, section = struct.unpack_from("<IBBH", code, offset + 24 * i)
            text = code[names + name : code.index(b"\0", names + name)].decode()
            if info & 15 < 3:  # not a section or file
                found[text] = (section != 0, info >> 4 != 0)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF objects")
@pytest.mark.parametrize("module", MODULES)
def test_symbols(each_kernels, kernel_cache, module):
    content = loader.object_path(each_kernels.isa.name, module, kernel_cache).read_bytes()
    found = symbols(content[32:])
    outside = {name for name, (defined, _) in found.items() if name and not defined}
    assert outside <= FROM_OUTSIDE
    visible = {name for name, (defined, shown) in found.items() if name and defined and shown}
    assert visible
    assert all(name.startswith("edgetok_") for name in visible)
    assert b"PyErr" not in content
    assert b"NRT_" not in content


def test_two_kernels_of_one_name():
    def twice(instr, ctx, tid, threads):
        pass

    kernel(twice)
    try:
        with pytest.raises(ValueError, match="two kernels are called twice"):
            kernel(twice)
    finally:
        del REGISTRY["twice"]
