"""Processor time of a step, kind of instruction by kind: exact beside other work.

    python benchmarks/speed/step_kinds.py ARTEFACT [--tokens 128] [--depth 4096] [--repeats 4]

`edgetok bench --profile` takes the time stamp counter, which runs on while another process has the
core. This runs a step's instructions one after the other on the calling thread, each with the
thread's processor time around it, less what an empty program takes (3 us, as long as many an
instruction), and prints the least of the repeats. With --depth the cache has that many tokens
without contents: attention reads as much as it would, and the results are wrong.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from edgetok.kernels_cpu.linear.layout import MATMUL_QWEIGHT
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.cpu.team import Program

_CHUNK = 256
_EMPTY_RUNS = 200
Parts = list[tuple[str, Program]]


def split(backend: CpuBackend, program: Program) -> Parts:
    """One program an instruction, named by its kernel or, for products, by the weight."""
    names = backend._plan.kernels.names
    weights = {
        backend._artefact.address(f"{name}.{'qweight' if form.quantised else 'weight'}"): name
        for name, form in backend._artefact.formats.items()
    }
    parts: Parts = []
    before = []
    for row in program.table:
        name = names[int(row[0])]
        if name == "expert_operands":  # arguments of the next instruction
            before = [row]
            continue
        if name.startswith("matmul") or before:
            name = f"product {weights[int(row[MATMUL_QWEIGHT])].rpartition('.')[2]}"
        parts.append((name, Program([*before, row])))
        before = []
    return parts


def measure(backend: CpuBackend, tokens: int, depth: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each kind, one value a repeat, in the order of the first instruction."""
    cache = backend.new_cache(depth + tokens * (repeats + 1))
    for first in range(0, depth, _CHUNK):
        count = min(_CHUNK, depth - first)
        cache.reserve(count)
        cache.begin(count)
        cache.advance(count)
    rng = np.random.default_rng(0)
    parts: dict[int, Parts] = {}
    context = backend._tables.ctx.ctypes.data

    def run(part: Program) -> float:
        begin = time.thread_time()
        backend._team.run_alone(part, context)
        return time.thread_time() - begin

    nothing = Program([])
    empty = min(run(nothing) for _ in range(_EMPTY_RUNS))
    found: dict[str, list[float]] = {}
    spent: dict[str, float] = {}

    def compute(programs: Sequence[Program]) -> None:
        for program in programs:
            if id(program) not in parts:
                parts[id(program)] = split(backend, program)
            for name, part in parts[id(program)]:
                spent[name] = spent.get(name, 0.0) + max(0.0, run(part) - empty)

    backend._compute = compute  # type: ignore[method-assign]
    for repeat in range(repeats + 1):
        spent.clear()
        backend.forward(cache, rng.integers(0, backend.vocab_size, tokens, np.int32))
        if repeat:  # the first one maps pages
            for name, seconds in spent.items():
                found.setdefault(name, []).append(seconds)
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artefact")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=8)
    args = parser.parse_args()
    backend = CpuBackend(args.artefact, threads=1)
    found = measure(backend, args.tokens, args.depth, args.repeats)
    total = sum(min(values) for values in found.values())
    print(f"{total * 1e3:.2f} ms of processor time, {args.tokens / total:.1f} tokens/s\n")
    print("| kind | ms | share |\n|---|---:|---:|")
    for name, values in found.items():
        print(f"| {name} | {min(values) * 1e3:.3f} | {min(values) / total:.1%} |")


if __name__ == "__main__":
    main()
