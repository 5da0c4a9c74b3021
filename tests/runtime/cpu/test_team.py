"""The thread team: right after many steps, sleeps when idle, ends when told to."""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import pytest

from edgetok.errors import EdgetokError
from edgetok.kernels_cpu.elementwise import launch as launch_elementwise
from edgetok.kernels_cpu.program import loader
from edgetok.kernels_cpu.program.abi import CTX_SLOTS
from edgetok.kernels_cpu.simd import isa
from edgetok.runtime.cpu.team import Program, Team

TOKENS, SIZE = 6, 32


@pytest.fixture(scope="module")
def kernels(kernel_cache):
    return loader.load(
        isa.choose(), kernel_cache, modules=("program.interpreter", "elementwise.norm")
    )


class Adds:
    """A program that adds y to x so many times, and its memory."""

    def __init__(self, kernels, times):
        self.x = np.zeros((TOKENS, SIZE), np.float32)
        self.y = np.ones((TOKENS, SIZE), np.float32)
        self.ctx = np.zeros(CTX_SLOTS, np.int64)
        self.ctx[0] = TOKENS
        one = launch_elementwise.add_scaled(
            kernels,
            x=self.x.ctypes.data,
            y=self.y.ctypes.data,
            size=SIZE,
            scale=1.0,
            wait=True,
        )
        self.program = Program([one] * times, profile=True)


def names():
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("edgetok-"))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_steps(kernels, threads):
    team, adds = Team(kernels, threads), Adds(kernels, 7)
    try:
        for _ in range(100):
            team.run(adds.program, adds.ctx.ctypes.data)
        np.testing.assert_array_equal(adds.x, 700)
        assert (adds.program.ticks > 0).all()
        assert names() == [f"edgetok-{i}" for i in range(1, threads)]
    finally:
        team.close()
    assert names() == []


def test_idle_threads_sleep_and_wake(kernels):
    team, adds = Team(kernels, 3), Adds(kernels, 3)
    try:
        for step in range(1, 6):
            team.run(adds.program, adds.ctx.ctypes.data)
            np.testing.assert_array_equal(adds.x, 3 * step)
            sleepers = team._workers.counters[1:]  # beside the number of the step
            deadline = time.monotonic() + 20
            while sleepers[0] < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert sleepers[0] == 2
        before = time.process_time()
        time.sleep(1)
        assert time.process_time() - before < 0.5  # two that spin would take two seconds
    finally:
        team.close()


def test_close_twice_and_run_afterwards(kernels):
    team, adds = Team(kernels, 2), Adds(kernels, 1)
    team.run(adds.program, adds.ctx.ctypes.data)
    team.close()
    team.close()
    with pytest.raises(EdgetokError, match="was closed"):
        team.run(adds.program, adds.ctx.ctypes.data)


def test_never_started(kernels):
    Team(kernels, 4).close()
    assert names() == []


def test_collected(kernels):
    team, adds = Team(kernels, 2), Adds(kernels, 1)
    team.run(adds.program, adds.ctx.ctypes.data)
    assert names() == ["edgetok-1"]
    del team
    gc.collect()
    assert names() == []


def test_two_teams_and_many_callers(kernels):
    teams = [Team(kernels, 2), Team(kernels, 2)]
    adds = [Adds(kernels, 2), Adds(kernels, 2)]

    def call(i):
        for _ in range(20):
            with teams[i].turn:
                teams[i].run(adds[i].program, adds[i].ctx.ctypes.data)

    callers = [threading.Thread(target=call, args=(n % 2,)) for n in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for team in teams:
        team.close()
    for one in adds:
        np.testing.assert_array_equal(one.x, 4 * 20 * 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_child_process_has_its_own_threads(kernels):
    team, adds = Team(kernels, 2), Adds(kernels, 5)
    team.run(adds.program, adds.ctx.ctypes.data)
    team.turn.acquire()  # as if another thread were computing
    child = os.fork()
    if child == 0:
        good = False
        try:
            with team.turn:
                team.run(adds.program, adds.ctx.ctypes.data)
            good = bool((adds.x == 10).all())
            team.close()
        finally:
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    team.turn.release()
    team.run(adds.program, adds.ctx.ctypes.data)
    np.testing.assert_array_equal(adds.x, 10)
    team.close()
