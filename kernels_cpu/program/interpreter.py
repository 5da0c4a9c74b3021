"""The interpreter: runs a program's instructions on a team of threads, in one compiled call.

A program is cut into phases at the instructions after which all threads wait. Each phase has as
many shares as the team has threads, and a share may be done by any thread: share s runs the phase's
instructions one after the other as thread s. Shares are numbered through, from step to step; a
thread claims the next one only when every earlier phase is done. So a thread that has lost its core
holds up nobody unless it is in the middle of a share: the others do its work. This matters because
the machine may be busy with something else.

Whoever has to wait spins for a moment and then sleeps in the operating system (`edgetok_wait`).

Tables: `program/tables.py`.
"""

from __future__ import annotations

from edgetok.kernels_cpu.program.abi import INSTR_SLOTS, kernel
from edgetok.kernels_cpu.program.tables import (
    PROGRAM_FIRST,
    PROGRAM_PHASES,
    PROGRAM_STARTS,
    PROGRAM_TICKS,
    TEAM_CLOSED,
    TEAM_CTX,
    TEAM_DONE,
    TEAM_END,
    TEAM_NEXT,
    TEAM_PROGRAM,
    TEAM_STEP,
)
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import read_i64, write_i64
from edgetok.kernels_cpu.simd.threads import (
    atomic_add,
    atomic_load,
    atomic_replace,
    atomic_store,
    call_kernel,
    pause,
    sleep_while_equal,
    ticks,
    wake_sleepers,
    yield_core,
)

# About 40 us of pauses: longer than any phase's imbalance when undisturbed.
SPINS_BEFORE_SLEEP = 4000
# Between steps a worker yields for about 1 ms before it sleeps: longer than sampling a token takes.
YIELDS_BETWEEN_STEPS = 2000


@outline
def _wait_for(counter: int, target: int) -> None:
    """Wait until the counter has reached `target`; the int64 after it counts sleepers."""
    spins = 0
    seen = atomic_load(counter)
    while seen < target:
        spins += 1
        if spins <= SPINS_BEFORE_SLEEP:
            pause()
        else:
            # Sleepers are counted before the system compares the counter; whoever changes it looks
            # for sleepers afterwards: one of the two sees the other.
            atomic_add(counter + 8, 1)
            sleep_while_equal(counter, seen)
            atomic_add(counter + 8, -1)
        seen = atomic_load(counter)


@inline
def _share(program: int, ctx: int, phase: int, share: int, shares: int) -> None:
    """Run one phase's instructions as thread `share`."""
    starts = read_i64(program + 8 * PROGRAM_STARTS) + 8 * phase
    address = read_i64(starts)
    end = read_i64(starts + 8)
    profile = read_i64(program + 8 * PROGRAM_TICKS)
    while address < end:
        since = ticks()
        call_kernel(read_i64(address), address, ctx, share, shares)
        if profile != 0 and share == 0:
            index = (address - read_i64(program + 8 * PROGRAM_FIRST)) // (8 * INSTR_SLOTS)
            spent = read_i64(profile + 8 * index) + ticks() - since
            write_i64(profile + 8 * index, spent)
        address += 8 * INSTR_SLOTS


@outline
def _work(instr: int, program: int, ctx: int, end: int, shares: int) -> None:
    """Do shares until the step that ends before share number `end` has none left."""
    following = read_i64(instr + 8 * TEAM_NEXT)
    done = read_i64(instr + 8 * TEAM_DONE)
    while True:
        number = atomic_load(following)
        if number >= end:
            return
        before = number // shares * shares
        if atomic_load(done) < before:
            _wait_for(done, before)
            continue
        if atomic_replace(following, number, number + 1) == 0:
            continue
        # An unclaimed share of this step was there, so the step goes on and its tables are valid.
        begin = end - shares * read_i64(program + 8 * PROGRAM_PHASES)
        _share(program, ctx, (number - begin) // shares, number % shares, shares)
        if (atomic_add(done, 1) + 1) % shares == 0 and atomic_load(done + 8) > 0:
            wake_sleepers(done)


@kernel
def run_program(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Run all phases alone, with one share each. `instr` is the program's table."""
    for phase in range(read_i64(instr + 8 * PROGRAM_PHASES)):
        _share(instr, ctx, phase, 0, 1)


@kernel
def team_lead(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Run one step with the team: post it, wake who sleeps, do shares, wait for the last ones."""
    step = read_i64(instr + 8 * TEAM_STEP)
    program = read_i64(instr + 8 * TEAM_PROGRAM)
    phases = read_i64(program + 8 * PROGRAM_PHASES)
    end = atomic_load(read_i64(instr + 8 * TEAM_NEXT)) + phases * threads
    atomic_store(instr + 8 * TEAM_END, end)
    atomic_add(step, 1)
    if atomic_load(step + 8) > 0:
        wake_sleepers(step)
    _work(instr, program, ctx, end, threads)
    _wait_for(read_i64(instr + 8 * TEAM_DONE), end)


@kernel
def team_work(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Help with every step until the team is closed."""
    step = read_i64(instr + 8 * TEAM_STEP)
    seen = 0
    while True:
        waits = 0
        while atomic_load(step) == seen and waits < SPINS_BEFORE_SLEEP + YIELDS_BETWEEN_STEPS:
            waits += 1
            if waits <= SPINS_BEFORE_SLEEP:
                pause()
            else:
                yield_core()
        _wait_for(step, seen + 1)
        if atomic_load(instr + 8 * TEAM_CLOSED) != 0:
            return
        seen = atomic_load(step)
        # END first: the leader writes it last. Where it is an old step's, all shares before it are
        # claimed and the rest is of no use; where it is this step's, so is the rest.
        end = atomic_load(instr + 8 * TEAM_END)
        program = atomic_load(instr + 8 * TEAM_PROGRAM)
        state = atomic_load(instr + 8 * TEAM_CTX)
        _work(instr, program, state, end, threads)


@kernel
def team_close(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Let every thread of `team_work` return."""
    step = read_i64(instr + 8 * TEAM_STEP)
    atomic_store(instr + 8 * TEAM_CLOSED, 1)
    atomic_add(step, 1)
    wake_sleepers(step)
