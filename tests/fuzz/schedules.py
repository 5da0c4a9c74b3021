"""Run random schedules for long: `python -m tests.fuzz.schedules --minutes 10 [--seed 1]`.

Each round takes a family, the bits of its cache and a policy by chance, or none, and runs a few
schedules of `tests/schedules.py`. What fails is printed with what repeats it. With --state the
counts of earlier runs are added to. The exit code is 1 where something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from edgetok.cache.policies.policy import POLICIES
from edgetok.kernels_cpu.attention.launch import KV_BITS
from edgetok.runtime.cpu.backend import CpuBackend
from tests.schedules import Alone, check_evicting, check_plain, write_random
from tests.tiny import ALL_FAMILIES

PLAIN = "plain"
SCHEDULES = 10  # of one backend


def run_round(folder: Path, case: tuple[str, int, str], seed: int, options: dict[str, int]) -> None:
    """Run a case's schedules.

    Raises:
        AssertionError: a token's logits are not those of its sequence alone.
    """
    _, kv_bits, policy = case
    backend = CpuBackend(folder, kv_bits=kv_bits, **options)
    try:
        alone = Alone(backend)
        for one in range(seed, seed + SCHEDULES):
            if policy == PLAIN:
                check_plain(backend, alone, one)
            else:
                check_evicting(backend, policy, one)
    finally:
        backend.close()


def main() -> None:
    """Parse the command line and run schedules until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=ALL_FAMILIES, help="only this one")
    parser.add_argument("--state", type=Path, help="file with the counts so far")
    given = parser.parse_args()
    counts, failed = Counter[str](), 0
    if given.state is not None and given.state.exists():
        counts.update(json.loads(given.state.read_text()))
    until = time.monotonic() + 60 * given.minutes
    seed = given.seed + counts.total()
    with tempfile.TemporaryDirectory() as root:
        while time.monotonic() < until:
            rng = random.Random(seed)
            family = given.family or rng.choice(ALL_FAMILIES)
            policy = rng.choice([PLAIN, PLAIN, *sorted(POLICIES)])
            case = family, rng.choice(KV_BITS), policy
            folder = Path(root) / family
            if not folder.exists():
                write_random(family, folder)
            options = {"threads": rng.choice([1, 2, 3]), "block_tokens": rng.choice([24, 32, 48])}
            try:
                run_round(folder, case, seed, options)
            except Exception:
                failed += 1
                print(f"seed {seed}: {case} {options}", file=sys.stderr)
                traceback.print_exc()
            counts["/".join(map(str, case))] += SCHEDULES
            seed += SCHEDULES
            if given.state is not None:
                part = given.state.with_name(given.state.name + ".part")
                part.write_text(json.dumps(counts, indent=1, sort_keys=True))
                os.replace(part, given.state)
    print(f"{counts.total():,} schedules of {len(counts)} cases, {failed} rounds failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
