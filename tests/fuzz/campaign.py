"""Fuzz every reader of foreign bytes: `make fuzz MINUTES=n`.

    python -m tests.fuzz.campaign --minutes 10 [--reader gguf] [--seed 1] [--out out/fuzz]

Each reader runs in a process of its own, batch after batch: a batch is a seed and a number of
inputs, so that whatever goes wrong can be repeated. Inputs that are faults are kept in --out. The
exit code is 1 where there was one.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
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


@dataclass
class Outcome:
    """What came of a reader's inputs."""

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
        rng = random.Random(f"{name} {seed}")
        for seed_input in reader.seeds:  # a seed that is refused would hide everything
            reader.read(seed_input, place / "input")
        begun = time.perf_counter()
        while outcome.inputs < count and time.perf_counter() - begun < seconds:
            data = reader.mutate(rng.choice(reader.seeds), rng)
            outcome.inputs += 1
            if reader.costly:  # where a signal ends the process, this is the input
                (out / f"{name.replace(' ', '-')}.last").write_bytes(data)
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
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.campaign", *words], capture_output=True, text=True
    )
    if done.returncode == 0:
        return Outcome(**json.loads(done.stdout.splitlines()[-1]))
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return Outcome(faults=[f"batch {seed} ended with {done.returncode}: {last:.200}"])


def main() -> None:
    """Parse the command line, fuzz, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--reader", choices=list(all_readers()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.child:
        return _child(given.child, given.seed, 1 << 60, given.out, given.seconds)
    names = [given.reader] if given.reader else list(all_readers())
    share = 60 * given.minutes / len(names)
    faults = 0
    print("| reader | inputs | accepted | seconds | slowest (s) | faults |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in names:
        outcome = _run(name, given.seed, given.out, share)
        faults += len(outcome.faults)
        print(
            f"| {name} | {outcome.inputs:,} | {outcome.accepted:,} | {outcome.seconds:.0f} | "
            f"{outcome.slowest_s:.2f} | {len(outcome.faults)} |",
            flush=True,
        )
        for fault in outcome.faults:
            print(f"  {fault}", file=sys.stderr, flush=True)
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
