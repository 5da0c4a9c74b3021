"""A long conversation's next turns over HTTP: what the first token of each costs.

    python benchmarks/serving/second_turn.py ARTEFACT --folder out/second-turn --threads 2

Starts `edgetok serve` with a prefix cache in FOLDER, has it read a prompt of random tokens, and
asks for one token behind it, with 8, 16 and 32 new tokens each time; then in other processes, which
find the conversation on disk. Prints seconds and CPU seconds of the server for each turn, and how
many tokens were computed. The first reading takes minutes; where FOLDER already has it, it is not
done again. Where other work disturbs, threads that wait for each other count as CPU seconds: give
`--threads 1`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import psutil
from serving import serving

NEW = (8, 16, 32)  # tokens of a turn
IDLE_PERCENT = 2.0  # of a core


def server(given: argparse.Namespace) -> AbstractContextManager[tuple[str, psutil.Process]]:
    """Run the server; its address and its process."""
    return serving(
        f"long={given.artefact}",
        *("--context", str(given.tokens + 1024), "--threads", str(given.threads)),
        *("--memory", given.memory, "--prefix-cache", given.prefix_cache),
        told=lambda said: print(said, end="", file=sys.stderr),
        end_s=600,
        EDGETOK_CACHE_DIR=str(given.folder.absolute()),
    )


def settle(process: psutil.Process) -> None:
    """Wait until the server computes and writes nothing any more, as between a person's turns."""
    while process.cpu_percent(0.5) > IDLE_PERCENT:
        pass


def turn(url: str, process: psutil.Process, said: list[int], what: str) -> None:
    """Ask for one token behind a conversation, as a stream, and print what it took."""
    settle(process)
    body = {
        "model": "long",
        "prompt": said,
        "max_tokens": 1,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    used, begun, seconds = process.cpu_times(), time.perf_counter(), None
    usage: dict[str, Any] = {}
    with httpx.stream("POST", url + "/v1/completions", json=body, timeout=None) as response:
        if response.status_code != 200:
            response.read()
            raise SystemExit(response.text)
        for line in response.iter_lines():
            if line.startswith("data: {"):
                if seconds is None:
                    seconds, now = time.perf_counter() - begun, process.cpu_times()
                usage = json.loads(line.removeprefix("data: ")).get("usage") or usage
    if seconds is None or not usage:
        raise SystemExit("no token came")
    computed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    cpu_s = now.user + now.system - used.user - used.system
    print(
        f"{what}: {len(said):,} tokens, {computed:,} computed, first token after {seconds:.2f} s, "
        f"{cpu_s:.2f} CPU s, {process.memory_info().rss / 1e6:,.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="kernels and the prefix cache")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--prefix-cache", default="1500MB")
    given = parser.parse_args()
    given.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    chance = random.Random(given.tokens)
    said = chance.choices(range(3, given.vocabulary), k=given.tokens)
    chance.seed(time.time_ns())  # turns that no earlier run has made
    with server(given) as (url, process):
        turn(url, process, said, "the whole prompt")
        for new in NEW:
            turn(
                url, process, said + chance.choices(range(3, given.vocabulary), k=new), f"{new} new"
            )
    for new in NEW:
        with server(given) as (url, process):
            turn(
                url,
                process,
                said + chance.choices(range(3, given.vocabulary), k=new),
                f"{new} new, another process",
            )


if __name__ == "__main__":
    main()
