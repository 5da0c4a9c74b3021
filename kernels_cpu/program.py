"""The interpreter: runs a program's instructions on a team of threads, in one compiled call.

The leader calls `team_lead` for each step, every other thread of the team stays in `team_work`.
Instructions that say so are followed by a barrier: an arrival counter that only grows, so that no
thread can miss a phase. A waiting thread spins for a moment and then yields its core, because the
machine may be busy with something else; between steps it finally sleeps in the kernel (futex).

Tables: `launch_program.py`.
"""

from __future__ import annotations

from numba import njit

from edgetok.kernels_cpu.abi import INSTR_SLOTS, kernel
from edgetok.kernels_cpu.launch_program import (
    LINE,
    PROGRAM_ARRIVALS,
    PROGRAM_BARRIER,
    PROGRAM_COUNT,
    PROGRAM_FIRST,
    PROGRAM_TICKS,
    TEAM_CLOSED,
    TEAM_CTX,
    TEAM_DONE,
    TEAM_PROGRAM,
    TEAM_SLEEPERS,
    TEAM_STEP,
)
from edgetok.kernels_cpu.simd import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_kernel,
    pause,
    read_i64,
    sched_yield,
    sleep_while_equal,
    ticks,
    wake_sleepers,
    write_i64,
)

# About 40 us of pauses: longer than any phase's imbalance when undisturbed.
SPINS_BEFORE_YIELD = 4000
# Then about 1 ms of yields before a worker sleeps: longer than sampling a token takes.
YIELDS_BEFORE_SLEEP = 2000


@njit(error_model="numpy")
def wait_for(counter: int, target: int) -> None:
    """Wait until the counter has reached `target`."""
    spins = 0
    while atomic_load(counter) < target:
        pause()
        spins += 1
        if spins > SPINS_BEFORE_YIELD:
            sched_yield()


@njit(error_model="numpy")
def _run(instr: int, ctx: int, tid: int, threads: int) -> None:
    address = read_i64(instr + 8 * PROGRAM_FIRST)
    count = read_i64(instr + 8 * PROGRAM_COUNT)
    counter = read_i64(instr + 8 * PROGRAM_BARRIER)
    mine = read_i64(instr + 8 * PROGRAM_ARRIVALS) + 8 * LINE * tid
    arrivals = read_i64(mine)
    profile = read_i64(instr + 8 * PROGRAM_TICKS)
    since = ticks()
    for _ in range(count):
        call_kernel(read_i64(address), address, ctx, tid, threads)
        if threads > 1 and read_i64(address + 8) != 0:
            arrivals += threads
            atomic_add(counter, 1)
            wait_for(counter, arrivals)
        if profile != 0 and tid == 0:
            now = ticks()
            write_i64(profile, read_i64(profile) + now - since)
            since = now
            profile += 8
        address += 8 * INSTR_SLOTS
    write_i64(mine, arrivals)


@kernel
def run_program(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Run all instructions of a program in order; every thread of the team calls this."""
    _run(instr, ctx, tid, threads)


@kernel
def team_lead(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Run one step with the team: post it, wake who sleeps, do share 0, wait for the others."""
    step = read_i64(instr + 8 * TEAM_STEP)
    sleepers = read_i64(instr + 8 * TEAM_SLEEPERS)
    number = atomic_add(step, 1) + 1
    if atomic_load(sleepers) > 0:
        wake_sleepers(step)
    program = read_i64(instr + 8 * TEAM_PROGRAM)
    _run(program, ctx, 0, threads)
    wait_for(read_i64(instr + 8 * TEAM_DONE), number * (threads - 1))


@kernel
def team_work(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Do share `tid` of every step until the team is closed. `ctx` is the last step seen."""
    step = read_i64(instr + 8 * TEAM_STEP)
    done = read_i64(instr + 8 * TEAM_DONE)
    sleepers = read_i64(instr + 8 * TEAM_SLEEPERS)
    seen = ctx
    while True:
        spins = 0
        while atomic_load(step) == seen:
            pause()
            spins += 1
            if spins > SPINS_BEFORE_YIELD + YIELDS_BEFORE_SLEEP:
                # The leader adds to `step` before it looks for sleepers, and the kernel compares
                # `step` after this thread has been counted: one of the two sees the other.
                atomic_add(sleepers, 1)
                sleep_while_equal(step, seen)
                atomic_add(sleepers, -1)
            elif spins > SPINS_BEFORE_YIELD:
                sched_yield()
        if atomic_load(instr + 8 * TEAM_CLOSED) != 0:
            return
        seen += 1
        program = read_i64(instr + 8 * TEAM_PROGRAM)
        _run(program, read_i64(instr + 8 * TEAM_CTX), tid, threads)
        atomic_add(done, 1)


@kernel
def team_close(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Let every thread of `team_work` return."""
    step = read_i64(instr + 8 * TEAM_STEP)
    atomic_store(instr + 8 * TEAM_CLOSED, 1)
    atomic_add(step, 1)
    wake_sleepers(step)
