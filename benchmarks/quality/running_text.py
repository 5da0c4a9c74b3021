"""Perplexity of long running text in a bounded cache, beside separate windows.

    python benchmarks/quality/running_text.py ARTEFACT TEXT --tokens 50000 --slots 1024 \
        --policies retain window

One pass of each over the same tokens: with every policy in a cache of `--slots` that is never
emptied, and in windows of the trained length, each of which begins with nothing. Sixths of the text
show whether anything grows with distance.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

import edgetok
from edgetok.cache.limits import CacheLimits
from edgetok.cache.protocol import KVCache
from edgetok.evaluation.perplexity import running_losses
from edgetok.runtime.backend import Backend
from edgetok.runtime.cpu.backend import CpuBackend


def losses(
    backend: Backend, cache: KVCache, ids: npt.NDArray[np.int32], what: str
) -> npt.NDArray[np.float64]:
    """-log p of every token but the first, in a cache that begins empty."""
    with Progress() as bar:
        task = bar.add_task(what, total=len(ids) - 1)
        result = []
        for part in running_losses(backend, cache, ids):
            result.append(part)
            bar.advance(task, len(part))
    return np.concatenate(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--skip", type=int, default=0, help="characters at the beginning")
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--policies", nargs="+", default=["retain", "window"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with edgetok.load(args.artefact, device="cpu", threads=args.threads) as model:
        backend, tokenizer = model.backend, model.tokenizer
        if not isinstance(backend, CpuBackend) or tokenizer is None or backend.spec is None:
            raise SystemExit(f"{args.artefact}: needs the CPU backend and a tokenizer")
        text = args.text.read_text(encoding="utf-8")[args.skip :]
        ids = np.array(tokenizer.encode(text, special=False)[: args.tokens + 1], np.int32)
        trained = backend.spec.context_tokens
        result = {
            f"afresh every {trained:,}": losses(backend, backend.new_cache(trained), ids, "afresh")
        }
        for policy in args.policies:
            cache = backend.new_bounded_cache(args.slots, CacheLimits(policy=policy))
            result[policy] = losses(backend, cache, ids, policy)
    print(f"{len(ids) - 1:,} tokens, {args.slots:,} slots; perplexity")
    first = next(iter(result.values()))
    sixth = len(first) // 6
    for name, each in result.items():
        change = each[trained:].mean() - first[trained:].mean()
        parts = " ".join(f"{math.exp(part.mean()):6.2f}" for part in np.split(each[: 6 * sixth], 6))
        print(
            f"{name:18} first {trained:,}: {math.exp(each[:trained].mean()):6.2f}  then: "
            f"{math.exp(each[trained:].mean()):6.2f} ({math.expm1(change):+.1%})  sixths: {parts}"
        )


if __name__ == "__main__":
    main()
