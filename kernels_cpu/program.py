"""The interpreter: runs a program's instructions on a team of threads, in one compiled call.

The leader calls `team_lead` for each step, every other thread of the team stays in `team_work`.
Instructions that say so are followed by a barrier: an arrival counter that only grows, so that no
thread can miss a phase. A waiting thread spins for a moment and then sleeps in the operating system
(futex), because the machine may be busy with something else.

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
SPINS_BEFORE_SLEEP = 4000
# Between steps a worker yields for about 1 ms before it sleeps: longer than sampling a token takes.
YIELDS_BETWEEN_STEPS = 2000


@njit(error_model="numpy", forceinline=True)
def arrive(counter: int, target: int) -> None:
    """Count one arrival; whoever reaches `target` wakes those who sleep."""
    if atomic_add(counter, 1) + 1 >= target and atomic_load(counter + 8) > 0:
        wake_sleepers(counter)


@njit(error_model="numpy")
def wait_for(counter: int, target: int) -> None:
    """Wait until the counter has reached `target`; the int64 after it counts sleepers.

    On a busy machine the thread that is waited for may have no core. Sleeping leaves it this one,
    and a thread that has slept gets a core before those that compute all the time; one that spins
    or yields waits its turn among them at every barrier.
    """
    spins = 0
    seen = atomic_load(counter)
    while seen < target:
        spins += 1
        if spins <= SPINS_BEFORE_SLEEP:
            pause()
        else:
            # Sleepers are counted before the system compares the counter, arrivals before the last
            # one looks for sleepers: one of the two sees the other.
            atomic_add(counter + 8, 1)
            sleep_while_equal(counter, seen)
            atomic_add(counter + 8, -1)
        seen = atomic_load(counter)


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
            arrive(counter, arrivals)
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
    number = atomic_add(step, 1) + 1
    if atomic_load(step + 8) > 0:
        wake_sleepers(step)
    program = read_i64(instr + 8 * TEAM_PROGRAM)
    _run(program, ctx, 0, threads)
    wait_for(read_i64(instr + 8 * TEAM_DONE), number * (threads - 1))


@kernel
def team_work(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Do share `tid` of every step until the team is closed. `ctx` is the last step seen."""
    step = read_i64(instr + 8 * TEAM_STEP)
    done = read_i64(instr + 8 * TEAM_DONE)
    seen = ctx
    while True:
        yields = 0
        while atomic_load(step) == seen and yields < YIELDS_BETWEEN_STEPS:
            sched_yield()
            yields += 1
        wait_for(step, seen + 1)
        if atomic_load(instr + 8 * TEAM_CLOSED) != 0:
            return
        seen += 1
        program = read_i64(instr + 8 * TEAM_PROGRAM)
        _run(program, read_i64(instr + 8 * TEAM_CTX), tid, threads)
        arrive(done, seen * (threads - 1))


@kernel
def team_close(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Let every thread of `team_work` return."""
    step = read_i64(instr + 8 * TEAM_STEP)
    atomic_store(instr + 8 * TEAM_CLOSED, 1)
    atomic_add(step, 1)
    wake_sleepers(step)
