"""How much work compiling a module is, and how much of it is left."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

# CPU time to compile a module for AVX2 after one that shares its helpers, in tenths of a second on
# a busy AMD EPYC with two cores. The ratios matter: an estimate of the time left measures the pace.
_COSTS = {
    "attention.float16": 30,
    "attention.float32": 30,
    "attention.hadamard": 6,
    "attention.int4": 45,
    "attention.int6_int4": 44,
    "attention.int8": 54,
    "attention.keep_queries": 2,
    "attention.kv_append": 32,
    "attention.merge": 13,
    "bandwidth.kernels": 1,
    "elementwise.activation": 7,
    "elementwise.angles": 3,
    "elementwise.columns": 3,
    "elementwise.layer_norm": 3,
    "elementwise.norm": 5,
    "elementwise.position_scale": 2,
    "elementwise.rope": 2,
    "elementwise.streams": 8,
    "elementwise.ungated": 6,
    "elementwise.unit_norm": 2,
    "eviction.choose": 5,
    "eviction.float16": 18,
    "eviction.float32": 18,
    "eviction.int4": 27,
    "eviction.int6_int4": 27,
    "eviction.int8": 19,
    "eviction.renumber": 4,
    "experts.products": 10,
    "experts.route": 10,
    "linear.embed": 10,
    "linear.embed_grouped": 8,
    "linear.exact": 57,
    "linear.exact_grouped": 57,
    "linear.float_rows": 33,
    "linear.q2": 98,
    "linear.q3": 120,
    "linear.q3_supers": 130,
    "linear.q4": 130,
    "linear.q4_offsets": 135,
    "linear.q4_table": 135,
    "linear.q5": 135,
    "linear.q6": 135,
    "linear.q6_scales": 135,
    "linear.q8": 147,
    "linear.quantise_activations": 8,
    "program.interpreter": 4,
    "program.rows": 2,
    "recurrent.gated_delta": 7,
    "recurrent.short_conv": 4,
    "recurrent.state_space": 8,
    "sampling.sample": 21,
}
_OTHERS = 5
START_COST = 15  # of one more process, which imports numba
_UNITS_PER_S = 10.0
_MOST = 0.97  # of a module is never done before it is done
_FIRST_SHARE = 12


def cost(module: str) -> int:
    """Work of compiling a module, at least 1."""
    return _COSTS.get(module, _OTHERS)


def cost_of(modules: Iterable[str]) -> int:
    """Work of compiling modules."""
    return sum(map(cost, modules))


def in_order(modules: Iterable[str], processes: int) -> dict[str, int]:
    """Sort modules so that processes that take the next one end at about the same time.

    The costly ones come first, but for one small module a process, which shows how fast this
    machine compiles before the time left has to be told.

    Returns:
        The work of each module, in order; the first ones' with that of starting a process.
    """
    waiting = sorted(modules, key=lambda module: (-cost(module), module))
    most = cost_of(waiting) / _FIRST_SHARE
    first = [module for module in waiting if cost(module) <= most][:processes]
    order = first + [module for module in waiting if module not in first]
    return {m: cost(m) + START_COST * (place < processes) for place, m in enumerate(order)}


def span(left: Mapping[str, int], processes: int) -> int:
    """Return how long processes take for what is left, times their number.

    That is the sum, unless there are too few modules for all processes at the end.

    Args:
        left: work of modules; those that are being compiled, then the others in order.
        processes: how many there are.
    """
    ends = [0] * processes
    for work in left.values():
        heapq.heapreplace(ends, ends[0] + work)
    return max(ends) * processes


class Meter:
    """Work that is left of modules, from the CPU time of the processes that compile them."""

    def __init__(self) -> None:
        self._units = self._seconds = 0.0
        self._running: dict[int, tuple[str, int, float]] = {}

    def begin(self, process: int, module: str, work: int, cpu_s: float) -> None:
        """A process takes a module, having used `cpu_s` seconds of CPU time so far."""
        self._running[process] = (module, work, cpu_s)

    def end(self, process: int, cpu_s: float) -> None:
        """A process has compiled its module."""
        _, work, since = self._running.pop(process)
        self._units += work
        self._seconds += cpu_s - since

    def left(self, cpu_s: Mapping[int, float]) -> dict[str, int]:
        """Return the work left of each module that is being compiled, at least 1.

        Args:
            cpu_s: CPU time of each process so far.
        """
        pace = self._units / self._seconds if self._seconds > 0 else _UNITS_PER_S
        left = {}
        for process, (module, work, since) in self._running.items():
            done = (cpu_s.get(process, since) - since) * pace / work
            left[module] = max(1, round(work * (1 - max(0.0, min(_MOST, done)))))
        return left
