"""Varied requests for a long time, a tenth given up: no errors, no growth, the budget kept.

    python benchmarks/soak.py --requests 100000
    python benchmarks/soak.py --minutes 10 --memory 256MB

Starts `edgetok serve` with the bundled model and asks it in every protocol: streams and whole
answers, schemas, tools, stop texts, several answers, vectors. One request in ten is given up within
25 ms. Prints the requests by status, the server's memory and its growth a request after the first
tenth, and the most that models and caches took of the budget; errors, and memory now and then, as
they come. The model's files must not be written to meanwhile. Exits with 1 where an answer that was
not given up has a status other than 200, where something is left behind, or where memory grows by
more than 1 KiB a request and what an allocator holds now and then.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

CLIENTS = 16
ABORTED_S = 0.025
SETTLED = 1000  # requests after which caches of prompts are full at the latest
MOST_GROWTH = 1024  # bytes a request
SHOWN = 2000  # requests between two lines on the way
NOISE = 8 << 20  # bytes that the allocator may hold at one moment and not at another
WORDS = ["dog", "cat", "tree", "Tom", "run", "sea", "little", "happy"]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {}}}


@dataclass
class Told:
    """Observations of a run."""

    statuses: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)  # requests so far, resident bytes
    most_bytes: float = 0.0  # of models and caches by the server's own account

    def wrong(self, line: str) -> None:
        """Note an error, and show it at once: a run may be stopped before its end."""
        self.errors.append(line)
        print(f"ERROR {line}", file=sys.stderr, flush=True)


@contextmanager
def server(memory: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run the server; its address and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetok.cli", "serve", "--port", "0", "--memory", memory],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r"at (http://\S+)/v1$", line):
                break
        else:
            raise SystemExit("".join(lines))
        os.set_blocking(process.stderr.fileno(), False)
        yield match[1], psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        said = process.stderr.read() or ""
        process.stderr.close()
        if "Traceback" in said:
            raise SystemExit(said)


def request(
    number: int, chance: random.Random, kind: int | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the path and body of a request, of any kind or a given one."""
    text = f"{number} " + " ".join(chance.choices(WORDS, k=chance.randrange(80)))
    said = [{"role": "user", "content": text}]
    limit, stream = chance.randint(1, 24), chance.random() < 0.5
    shared: dict[str, Any] = {"model": "default-4bit", "stream": stream}
    kind = chance.randrange(10) if kind is None else kind
    if kind == 0:
        return "/v1/completions", shared | {"prompt": text, "max_tokens": limit}
    if kind == 1:
        return "/v1/responses", shared | {"input": text, "max_output_tokens": limit}
    if kind == 2:
        return "/v1/messages", shared | {"messages": said, "max_tokens": limit}
    if kind == 3:
        return "/v1/embeddings", {"model": "default-4bit", "input": [text, "a dog"]}
    body = shared | {"messages": said, "max_tokens": limit, "seed": number}
    if kind == 4:
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    elif kind == 5:
        body["tools"] = [{"type": "function", "function": TOOL}]
    elif kind == 6:
        body |= {"n": 2, "stop": ["."]}
    elif kind == 7:
        body |= {"logprobs": True, "top_logprobs": 2}
    return "/v1/chat/completions", body


async def ask(client: httpx.AsyncClient, number: int, kind: int | None, told: Told) -> None:
    """Send one request, and perhaps give it up."""
    chance = random.Random(number)
    path, body = request(number, chance, kind)
    work = client.post(path, json=body)
    if number % 10 == 0:
        try:
            await asyncio.wait_for(work, chance.random() * ABORTED_S)
        except (TimeoutError, httpx.HTTPError):
            told.statuses["given up"] += 1
            return
        told.statuses["ended before it was given up"] += 1
        return
    try:
        response = await work
    except httpx.HTTPError as error:
        told.wrong(f"{number} {path}: {error!r}")
        return
    told.statuses[f"{response.status_code}"] += 1
    if response.status_code != 200 or '"error":{' in response.text.replace(" ", ""):
        told.wrong(f"{number} {path}: {response.status_code} {response.text[:200]}")


async def gauge(client: httpx.AsyncClient, name: str) -> float:
    """Return a number that the server tells."""
    text = (await client.get("/metrics")).text
    match = re.search(rf"^edgetok_{name} (\S+)$", text, re.MULTILINE)
    assert match, name
    return float(match[1])


async def soak(
    url: str, process: psutil.Process, requests: int, seconds: float, kind: int | None
) -> Told:
    """Send requests until there were enough of them, or the time is over."""
    told, end = Told(), time.monotonic() + seconds
    numbers = iter(range(requests))
    limits = httpx.Limits(max_connections=CLIENTS + 1)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def work() -> None:
            for number in numbers:
                if time.monotonic() > end:
                    return
                await ask(client, number, kind, told)
                if number % 100 == 0:
                    models = await gauge(client, "memory_models_bytes")
                    caches = await gauge(client, "memory_caches_bytes")
                    told.most_bytes = max(told.most_bytes, models + caches)
                    told.memory.append((number, process.memory_info().rss))
                if number % SHOWN == 0:
                    print(f"{number:,}: {process.memory_info().rss / 1e6:,.1f} MB", file=sys.stderr)

        await asyncio.gather(*(work() for _ in range(CLIENTS)))
        left = time.monotonic() + 60
        while await gauge(client, "running") and time.monotonic() < left:
            await asyncio.sleep(0.05)
        for name in ("running", "waiting", "memory_caches_bytes"):
            if await gauge(client, name):
                told.wrong(f"{name} is {await gauge(client, name):,.0f} at the end")
        budget = await gauge(client, "memory_budget_bytes")
        if told.most_bytes > budget:
            told.wrong(f"{told.most_bytes:,.0f} bytes of a budget of {budget:,.0f}")
        told.memory.append((sum(told.statuses.values()), process.memory_info().rss))
    return told


def growth(told: Told) -> tuple[int, int]:
    """Return bytes, and in how many requests, from where memory has settled to the end."""
    last = told.memory[-1][0]
    settled = [one for one in sorted(told.memory) if one[0] >= max(SETTLED, last // 10)]
    if len(settled) < 2:
        raise SystemExit(f"{last:,} requests are too few to see growth; give more than {SETTLED:,}")
    (first, before), (last, after) = settled[0], settled[-1]
    return after - before, last - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1 << 40)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--kind", type=int, help="of the ten kinds of request only this one")
    parser.add_argument("--memory", default="128MiB", help="the server's budget")
    given = parser.parse_args()
    begun = time.monotonic()
    with server(given.memory) as (url, process):
        told = asyncio.run(soak(url, process, given.requests, given.minutes * 60, given.kind))
        threads, resident = process.num_threads(), process.memory_info().rss
    for status, count in sorted(told.statuses.items()):
        print(f"{status}: {count:,}")
    grown, during = growth(told)
    print(f"seconds: {time.monotonic() - begun:,.0f}, threads: {threads}")
    print(f"memory: {resident / 1e6:,.0f} MB, growth: {grown / during:,.0f} bytes a request")
    shown = sorted(told.memory)[:: max(1, len(told.memory) // 8)]
    print("on the way:", ", ".join(f"{at:,}: {now / 1e6:,.1f} MB" for at, now in shown))
    print(f"most of the budget for models and caches: {told.most_bytes / 1e6:,.0f} MB")
    print(f"errors: {len(told.errors):,}")
    raise SystemExit(bool(told.errors) or grown > MOST_GROWTH * during + NOISE)


if __name__ == "__main__":
    main()
