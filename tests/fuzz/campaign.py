"""Fuzz every reader of foreign bytes: `make fuzz MINUTES=n`.

    python -m tests.fuzz.campaign --minutes 10 [--reader gguf] [--seed 1] [--out out/fuzz]
    python -m tests.fuzz.campaign --minutes 600 --state counts.json

Each reader runs in a process of its own, batch after batch: a batch is a seed and a number of
inputs, so that whatever goes wrong can be repeated. Inputs that are faults are kept in --out. With
--state the counts of earlier runs are added to, and each batch is of the reader that is furthest
below the goals. The exit code is 1 where there was a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.readers import all_readers

SLOW_S = 10.0
MEMORY_BYTES = 6 << 30
CHEAP_GOAL = 10_000_000  # inputs of all readers that take less than a millisecond
COSTLY_GOAL = 100_000  # and of all others
BATCH_S = 240.0  # beginning one takes a second of CPU time, ten on a busy machine
# Rewriting a file takes 5 ms on ext4, which waits for the disk, and 50 us in memory.
MEMORY_FOLDER = Path("/dev/shm")


_LAST = "last"


@dataclass
class Outcome:
    """Counts and faults of a reader's inputs."""

    costly: bool = False

    inputs: int = 0
    accepted: int = 0
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_batch(name: str, seed: int, count: int, out: Path, seconds: float = 1e9) -> Outcome:
    """Fuzz one reader in this process, at most so long."""
    from edgetok.errors import EdgetokError

    outcome, kinds = Outcome(), Counter[str]()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        (place / "own").mkdir(mode=0o700)
        (place / "input").mkdir(mode=0o700)
        reader = all_readers()[name](place / "own")
        outcome.costly = reader.costly
        last = Path(tempfile.gettempdir()) / _LAST
        rng = random.Random(f"{name} {seed}")
        for seed_input in reader.seeds:  # a seed that is refused would hide everything
            reader.read(seed_input, place / "input")
        begun = time.perf_counter()
        while outcome.inputs < count and time.perf_counter() - begun < seconds:
            data = reader.mutate(rng.choice(reader.seeds), rng)
            outcome.inputs += 1
            if reader.costly:  # where a signal ends the process, this is the input
                last.write_bytes(data)
            since, fault = time.process_time(), None
            try:
                reader.read(data, place / "input")
                outcome.accepted += 1
            except EdgetokError as error:
                if "\n" in str(error):
                    fault = f"two lines: {str(error)!r:.200}"
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                frame = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(frame.filename).name}:{frame.lineno}"
                fault = f"{type(error).__name__} at {where}: {str(error)!r:.120}"
            took = time.process_time() - since
            outcome.slowest_s = max(outcome.slowest_s, took)
            if took > SLOW_S:
                fault = fault or f"{took:.1f} s"
            if fault is not None:
                kind = fault.partition(":")[0]
                kinds[kind] += 1
                if kinds[kind] <= 3:
                    digest = f"{seed}-{outcome.inputs}"
                    (out / f"{name.replace(' ', '-')}-{digest}").write_bytes(data)
                    outcome.faults.append(f"{digest}: {fault}")
    outcome.seconds = time.perf_counter() - begun
    return outcome


def _child(name: str, seed: int, count: int, out: Path, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    outcome = run_batch(name, seed, count, out, seconds)
    print(json.dumps(outcome.__dict__))


def _run(name: str, seed: int, out: Path, seconds: float) -> Outcome:
    """Run a batch in a process of its own; one that dies is a fault."""
    words = ["--child", name, "--seed", str(seed), "--out", str(out), "--seconds", str(seconds)]
    inside = MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=inside) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.campaign", *words],
            capture_output=True, text=True, env=os.environ | {"TMPDIR": folder},
        )  # fmt: skip
        if done.returncode == 0:
            return Outcome(**json.loads(done.stdout.splitlines()[-1]))
        if (last := Path(folder) / _LAST).exists():
            shutil.copy(last, out / f"{name.replace(' ', '-')}-{seed}.last")
    said = (done.stderr.strip().splitlines() or [""])[-1]
    return Outcome(faults=[f"batch {seed} ended with {done.returncode}: {said:.200}"])


def _neediest(told: dict[str, Outcome]) -> str:
    """Return the reader whose inputs are the smallest part of its share of a goal."""

    def part(name: str) -> float:
        costly = told[name].costly
        sharing = sum(one.costly == costly for one in told.values())
        return told[name].inputs * sharing / (COSTLY_GOAL if costly else CHEAP_GOAL)

    unknown = [name for name, one in told.items() if not one.inputs and not one.faults]
    return unknown[0] if unknown else min(told, key=part)


def _table(told: dict[str, Outcome]) -> str:
    lines = ["| reader | inputs | accepted | seconds | slowest (s) | faults |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    lines += [
        f"| {name} | {one.inputs:,} | {one.accepted:,} | {one.seconds:.0f} | "
        f"{one.slowest_s:.2f} | {len(one.faults)} |"
        for name, one in told.items()
    ]
    return "\n".join(lines)


def campaign(
    names: list[str], minutes: float, seed: int, out: Path, state: Path | None
) -> dict[str, Outcome]:
    """Run batches until the time is over; return the outcome for each reader.

    Args:
        names: readers.
        minutes: time for all of them together.
        seed: of the first batch; each next one has the next.
        out: folder for inputs that are faults.
        state: file of the counts of earlier runs. Without one every reader gets the same time.
    """
    told = {name: Outcome() for name in names}
    others: dict[str, dict[str, object]] = {}  # stay in the file as they are
    if state is not None and state.exists():
        found = json.loads(state.read_text())
        seed = found["next_seed"]
        others = {name: one for name, one in found["told"].items() if name not in told}
        told |= {n: Outcome(**one) for n, one in found["told"].items() if n not in others}
    until = time.monotonic() + 60 * minutes
    rounds = 0
    while time.monotonic() < until if state is not None else rounds < len(names):
        name = _neediest(told) if state is not None else names[rounds]
        share = BATCH_S if state is not None else 60 * minutes / len(names)
        one = _run(name, seed, out, min(share, max(1.0, until - time.monotonic())))
        for fault in one.faults:
            print(f"  {name} {fault}", file=sys.stderr, flush=True)
        before = told[name]
        told[name] = Outcome(
            costly=one.costly or before.costly,
            inputs=before.inputs + one.inputs,
            accepted=before.accepted + one.accepted,
            slowest_s=max(before.slowest_s, one.slowest_s),
            faults=before.faults + one.faults,
            seconds=before.seconds + one.seconds,
        )
        seed, rounds = seed + 1, rounds + 1
        if state is not None:
            part = state.with_name(state.name + ".part")
            everything = others | {n: outcome.__dict__ for n, outcome in told.items()}
            part.write_text(json.dumps({"next_seed": seed, "told": everything}, indent=1))
            part.replace(state)  # whole or not at all
    return told


def main() -> None:
    """Parse the command line, fuzz, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--reader", choices=list(all_readers()), help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--state", type=Path, help="file with the counts so far")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.child:
        return _child(given.child, given.seed, 1 << 60, given.out, given.seconds)
    names = [given.reader] if given.reader else list(all_readers())
    told = campaign(names, given.minutes, given.seed, given.out, given.state)
    print(_table(told))
    sys.exit(any(one.faults for one in told.values()))


if __name__ == "__main__":
    main()
