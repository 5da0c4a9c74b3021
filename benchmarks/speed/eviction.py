"""Share of decode time that eviction takes in a bounded cache, by kernel and with NumPy.

    python benchmarks/speed/eviction.py ARTEFACT --slots 512

Both caches are filled, then take turns: a block of tokens, which makes every head evict, and decode
steps. A share is one eviction beside a block of decode steps, after which the next one is due.
Times are the least of all repeats: CPU time of all threads, and wall time in brackets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from edgetok.cache.limits import CacheLimits
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.cpu.cache_memory import CacheStore, CpuCache, new_cache


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU and wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def evicting(cache: CpuCache, into: list[tuple[float, float]]) -> None:
    """Note how long every eviction takes from now on."""
    make_room = cache._make_room
    cache._make_room = lambda *given: into.append(timed(partial(make_room, *given)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--slots", type=int, default=512)
    parser.add_argument("--policy", default="content")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evictions", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12, help="decode steps after each eviction")
    args = parser.parse_args()
    backend = CpuBackend(args.artefact, threads=args.threads)
    kernel = backend.new_bounded_cache(args.slots, CacheLimits(policy=args.policy))
    bounds = kernel.bounds
    if bounds is None or args.steps >= bounds.block_tokens:
        raise SystemExit("expected fewer steps than tokens that are evicted at once")
    plain = new_cache(
        backend.spec,
        CacheStore(args.threads),
        capacity_tokens=backend.context_tokens,
        kv_bits=kernel.kv_bits,
        block_tokens=bounds.block_tokens,
        bounds=bounds,
    )
    caches = {"NumPy": plain, "kernels": kernel}
    block = bounds.block_tokens
    length = bounds.slots + args.evictions * (block + args.steps)
    ids = np.random.default_rng(0).integers(0, backend.vocab_size, length).astype(np.int32)
    for cache in caches.values():
        backend.forward(cache, ids[: bounds.slots])
    evictions: dict[str, list[tuple[float, float]]] = {name: [] for name in caches}
    steps: dict[str, list[tuple[float, float]]] = {name: [] for name in caches}
    for name, cache in caches.items():
        evicting(cache, evictions[name])
    for i in range(args.evictions):
        at = bounds.slots + i * (block + args.steps)
        for cache in caches.values():
            backend.forward(cache, ids[at : at + block])
        for token in ids[at + block : at + block + args.steps]:
            for name, cache in caches.items():
                count = len(evictions[name])
                seconds = timed(partial(backend.forward, cache, np.array([token])))
                if len(evictions[name]) == count:
                    steps[name].append(seconds)
    print(f"{bounds.slots:,} slots, {kernel.chosen.table.rows if kernel.chosen else 0} heads")
    for name in caches:
        cpu, wall = np.min(evictions[name], axis=0)
        step, step_wall = np.min(steps[name], axis=0)
        share, share_wall = (cpu / (cpu + block * step), wall / (wall + block * step_wall))
        print(
            f"{name:8} eviction {1e3 * cpu:6.1f} ms ({1e3 * wall:.1f}), step {1e3 * step:.1f} ms "
            f"({1e3 * step_wall:.1f}); of {block} steps {share:.2%} ({share_wall:.2%})"
        )


if __name__ == "__main__":
    main()
