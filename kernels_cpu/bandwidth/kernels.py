"""A plain read loop: what the memory gives when nothing is computed."""

from __future__ import annotations

from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.simd.emit import VB
from edgetok.kernels_cpu.simd.memory import load_u8, read_i64, store_u8
from edgetok.kernels_cpu.simd.ops import xor_u8


@kernel
def read_all(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Read this thread's share of a buffer and keep what its bytes xor to.

    Slots of instr: 2 address, 3 how many runs of 8 * VB bytes, 4 address of VB bytes a thread.
    """
    buffer = read_i64(instr + 8 * 2)
    runs = read_i64(instr + 8 * 3)
    sink = read_i64(instr + 8 * 4) + tid * VB
    first, end = tid * runs // threads, (tid + 1) * runs // threads
    a, b = load_u8(sink), load_u8(sink)
    c, d = load_u8(sink), load_u8(sink)
    for run in range(first, end):
        p = buffer + run * (8 * VB)
        a = xor_u8(xor_u8(a, load_u8(p)), load_u8(p + 4 * VB))
        b = xor_u8(xor_u8(b, load_u8(p + VB)), load_u8(p + 5 * VB))
        c = xor_u8(xor_u8(c, load_u8(p + 2 * VB)), load_u8(p + 6 * VB))
        d = xor_u8(xor_u8(d, load_u8(p + 3 * VB)), load_u8(p + 7 * VB))
    store_u8(sink, xor_u8(xor_u8(a, b), xor_u8(c, d)))
