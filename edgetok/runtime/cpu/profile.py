"""Measure the time of a decode step, kind by kind.

A step runs with the interpreter's profile on: ticks of the first share of every instruction. What
is left of a step's wall time is waiting: for other threads at barriers, and outside of the compiled
call. The counter's speed is found by running one product alone, whose wall time is known.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from edgetok.kernels_cpu.linear.layout import MATMUL_QWEIGHT
from edgetok.runtime.backend import Tokens
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.cpu.cache_memory import CpuCache
from edgetok.runtime.cpu.team import Program

WAITING = "waiting, and outside"
_CALIBRATIONS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One kind of work in a decode step.

    Attributes:
        name: layers' names for products ("gate_proj"), the kernel's for the rest.
        count: instructions a step.
        seconds: a step, of the first share.
        read_bytes: of weights, or of keys and values, that all threads read a step; 0 where the
            work stays in the caches.
    """

    name: str
    count: int
    seconds: float
    read_bytes: int


def profile_steps(backend: CpuBackend, cache: CpuCache, tokens: Tokens) -> list[Phase]:
    """Run one decode step a token, timed instruction by instruction.

    Args:
        backend: nobody else may use it meanwhile.
        cache: with room for the tokens; its length is the depth.
        tokens: int32 [steps].

    Returns:
        Phases in the order of their first instruction, then `WAITING`; their seconds add up to a
        step's wall time.
    """
    plan = backend._plan
    program = Program(plan.step, profile=True)
    ticks = program.ticks
    kept, backend._step = backend._step, [program]
    try:
        backend.forward(cache, tokens[:1])  # wakes the team
        ticks[:] = 0
        begin = time.perf_counter()
        for i in range(1, len(tokens)):
            backend.forward(cache, tokens[i : i + 1])
        wall = (time.perf_counter() - begin) / (len(tokens) - 1)
    finally:
        backend._step = kept
    seconds = ticks / (len(tokens) - 1) / _ticks_per_second(backend, program)
    used = min(cache.length_tokens, cache.capacity_tokens)
    most = sum(group.most_bytes for group in cache.memory.groups)  # keys and values, no states
    cached = most * used // cache.capacity_tokens
    weights = {
        backend._artefact.address(f"{name}.{'qweight' if form.quantised else 'weight'}"): name
        for name, form in backend._artefact.formats.items()
    }
    names = plan.kernels.names
    phases: dict[str, Phase] = {}
    for row, spent in zip(program.table, seconds, strict=True):
        name, read = names[int(row[0])], 0
        if name.startswith("matmul"):
            weight = weights[int(row[MATMUL_QWEIGHT])]
            name, read = weight.rpartition(".")[2], plan.weight_bytes(weight)
        elif name.startswith("attention_") and name != "attention_merge":
            read = cached // len(backend._spec.attention_layers)
        old = phases.get(name, Phase(name=name, count=0, seconds=0.0, read_bytes=0))
        phases[name] = Phase(
            name=name,
            count=old.count + 1,
            seconds=old.seconds + float(spent),
            read_bytes=old.read_bytes + read,
        )
    rest = wall - sum(phase.seconds for phase in phases.values())
    return [*phases.values(), Phase(name=WAITING, count=1, seconds=rest, read_bytes=0)]


def _ticks_per_second(backend: CpuBackend, program: Program) -> float:
    """Return the rate of the kernels' counter: the longest instruction alone, one thread."""
    one = Program([program.table[int(np.argmax(program.ticks))]], profile=True)
    rates = []
    for _ in range(_CALIBRATIONS):
        one.ticks[:] = 0
        begin = time.perf_counter()
        backend._team.run_alone(one, backend._tables.ctx.ctypes.data)
        rates.append(int(one.ticks[0]) / (time.perf_counter() - begin))
    return float(np.median(rates))
