"""The interpreter: runs a program's instructions on a team of threads, in one compiled call.

Each thread enters `run_program` with its own number. Instructions that say so are followed by a
barrier: an arrival counter that only grows, so that no thread can miss a phase. A waiting thread
spins for a moment and then yields its core, because the machine may be busy with something else.

Instruction arguments: none. Program header: see `TEAM_*` and `PROGRAM_*`.
"""

from __future__ import annotations

from numba import njit

from edgetok.kernels_cpu.abi import INSTR_SLOTS, kernel
from edgetok.kernels_cpu.simd import (
    atomic_add,
    atomic_load,
    call_kernel,
    pause,
    read_i64,
    sched_yield,
    ticks,
    write_i64,
)

# Slots of the table that `run_program` gets as its `instr`.
PROGRAM_FIRST = 2  # address of the first instruction
PROGRAM_COUNT = 3  # how many there are
PROGRAM_BARRIER = 4  # address of the team's arrival counter (int64, alone in its cache line)
PROGRAM_ARRIVALS = 5  # address of int64 [threads]: arrivals that each thread has waited for so far
PROGRAM_TICKS = (
    6  # address of int64 [count] for thread 0's ticks per instruction, added up; 0: not wanted
)

SPINS_BEFORE_YIELD = (
    4000  # about 40 us of pauses: longer than any phase's imbalance when undisturbed
)


@njit(error_model="numpy")
def barrier(counter: int, target: int) -> None:
    """Arrive, then wait until `target` arrivals have been counted."""
    atomic_add(counter, 1)
    spins = 0
    while atomic_load(counter) < target:
        pause()
        spins += 1
        if spins > SPINS_BEFORE_YIELD:
            sched_yield()


@kernel
def run_program(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Run all instructions of a program in order; every thread of the team calls this."""
    address = read_i64(instr + 8 * PROGRAM_FIRST)
    count = read_i64(instr + 8 * PROGRAM_COUNT)
    counter = read_i64(instr + 8 * PROGRAM_BARRIER)
    mine = read_i64(instr + 8 * PROGRAM_ARRIVALS) + 8 * tid
    arrivals = read_i64(mine)
    profile = read_i64(instr + 8 * PROGRAM_TICKS)
    since = ticks()
    for _ in range(count):
        call_kernel(read_i64(address), address, ctx, tid, threads)
        if threads > 1 and read_i64(address + 8) != 0:
            arrivals += threads
            barrier(counter, arrivals)
        if profile != 0 and tid == 0:
            now = ticks()
            write_i64(profile, read_i64(profile) + now - since)
            since = now
            profile += 8
        address += 8 * INSTR_SLOTS
    write_i64(mine, arrivals)
