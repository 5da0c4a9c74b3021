"""Varied requests for a long time, a tenth given up: no errors, no growth, the budget kept.

    python benchmarks/serving/soak.py --requests 100000
    python benchmarks/serving/soak.py --requests 100000 --into soak.jsonl  # resume
    python benchmarks/serving/soak.py --minutes 10 --memory 256MB

Starts `edgetok serve` with the bundled model and asks it in every protocol: streams and whole
answers, schemas, tools, stop texts, several answers, vectors, prompts that begin alike, bodies that
are wrong. One request in ten is given up within 25 ms, and now and then, in the middle of it all,
one and the same question is asked, whose answer must stay the same. Prints the requests by status,
the server's memory and its growth a request after the first tenth, and the most that models and
caches took of the budget; errors, and memory now and then, as they come. With `--into` the requests
so far are noted in a file, where another run goes on. The model's files must not be written to
meanwhile. Exits with 1 where an answer that was not given up has another status than expected,
where something is left behind, or where memory grows by more than 1 KiB a request and what an
allocator holds now and then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from serving import serving

CLIENTS = 16
KINDS = 11
ABORTED_S = 0.025
SETTLED = 1000  # requests after which caches of prompts are full at the latest
MOST_GROWTH = 1024  # bytes a request
SHOWN = 2000  # requests between two lines on the way
NOISE = 8 << 20  # bytes that the allocator may hold at one moment and not at another
WORDS = ["dog", "cat", "tree", "Tom", "run", "sea", "little", "happy"]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {}}}
SYSTEMS = [f"You are {who}. " + "The dog ran to the tree. " * 12 for who in ("Tom", "a cat", "old")]
HI = [{"role": "user", "content": "Hi"}]
# Bodies that must be refused, and how.
WRONG: list[tuple[int, str, dict[str, Any] | bytes]] = [
    (400, "/v1/chat/completions", b'{"messages": ['),
    (400, "/v1/chat/completions", {"messages": "Hi"}),
    (400, "/v1/chat/completions", {"messages": HI, "temperature": -1}),
    (400, "/v1/chat/completions", {"messages": HI, "logit_bias": {"5": 1}}),
    (400, "/v1/completions", {"prompt": [1 << 40]}),
    (400, "/v1/completions", {"prompt": "dog " * 3000}),
    (400, "/v1/messages", {"messages": HI, "max_tokens": 0}),
    (400, "/v1/embeddings", {"input": {}}),
    (404, "/v1/chat/completions", {"model": "nobody", "messages": HI}),
    (404, "/v1/nothing", {}),
]
JSON = {"content-type": "application/json"}
PROBE = {"messages": HI, "temperature": 0, "max_tokens": 24}


@dataclass
class Told:
    """Observations of a run."""

    statuses: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)  # requests so far, resident bytes
    probes: set[str] = field(default_factory=set)  # different answers to the fixed question
    most_bytes: float = 0.0  # of models and caches by the server's own account

    def wrong(self, line: str) -> None:
        """Note an error, and show it at once: a run may be stopped before its end."""
        self.errors.append(line)
        print(f"ERROR {line}", file=sys.stderr, flush=True)


def refuse_traceback(said: str) -> None:
    """End with what a server said if an error of its own is in it."""
    if "Traceback" in said:
        raise SystemExit(said)


def request(number: int, chance: random.Random, kind: int) -> tuple[str, dict[str, Any]]:
    """Return the path and body of a request of a kind."""
    text = f"{number} " + " ".join(chance.choices(WORDS, k=chance.randrange(80)))
    said = [{"role": "user", "content": text}]
    limit, stream = 1 + int(24 * chance.random() ** 3), chance.random() < 0.5
    shared: dict[str, Any] = {"model": "default-4bit", "stream": stream}
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
    elif kind == 8:
        body["messages"] = [{"role": "system", "content": chance.choice(SYSTEMS)}, *said]
    return "/v1/chat/completions", body


async def ask(client: httpx.AsyncClient, number: int, kind: int | None, told: Told) -> None:
    """Send one request, and perhaps give it up."""
    chance = random.Random(number)
    kind = chance.randrange(KINDS) if kind is None else kind
    expected = 200
    if kind == KINDS - 1:
        expected, path, wrong = chance.choice(WRONG)
        if isinstance(wrong, bytes):
            work = client.post(path, content=wrong, headers=JSON)
        else:
            work = client.post(path, json={"model": "default-4bit"} | wrong)
    else:
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
    failed = '"error":{' in response.text.replace(" ", "")
    if response.status_code != expected or failed != (expected != 200):
        told.wrong(f"{number} {path}: {response.status_code} {response.text[:200]}")


async def gauge(client: httpx.AsyncClient, name: str) -> float:
    """Return a number that the server tells."""
    text = (await client.get("/metrics")).text
    match = re.search(rf"^edgetok_{name} (\S+)$", text, re.MULTILINE)
    assert match, name
    return float(match[1])


async def probe(client: httpx.AsyncClient, told: Told) -> None:
    """Ask the question whose answer never changes."""
    response = await client.post("/v1/chat/completions", json={"model": "default-4bit"} | PROBE)
    told.probes.add(response.json()["choices"][0]["message"]["content"])
    if len(told.probes) > 1:
        told.wrong(f"other answers to the same question: {told.probes}")


async def soak(
    url: str, process: psutil.Process, numbers: range, seconds: float, kind: int | None, into: Path
) -> Told:
    """Send requests until there were enough of them, or the time is over."""
    told, end, noted = Told(), time.monotonic() + seconds, Counter[str]()
    left = iter(numbers)
    limits = httpx.Limits(max_connections=CLIENTS + 1)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def look(number: int) -> None:
            nonlocal noted
            models = await gauge(client, "memory_models_bytes")
            caches = await gauge(client, "memory_caches_bytes")
            resident = process.memory_info().rss
            told.most_bytes = max(told.most_bytes, models + caches)
            told.memory.append((number - numbers.start, resident))
            if number % SHOWN == 0:
                await probe(client, told)
                print(f"{number:,}: {resident / 1e6:,.1f} MB", file=sys.stderr, flush=True)
                note(into, number, told.statuses - noted, len(told.errors), resident)
                noted = told.statuses.copy()

        async def work() -> None:
            for number in left:
                if time.monotonic() > end:
                    return
                await ask(client, number, kind, told)
                if number % 100 == 0:
                    await look(number)

        await probe(client, told)
        await asyncio.gather(*(work() for _ in range(CLIENTS)))
        over = time.monotonic() + 60
        while await gauge(client, "running") and time.monotonic() < over:
            await asyncio.sleep(0.05)
        for name in ("running", "waiting", "memory_caches_bytes"):
            if await gauge(client, name):
                told.wrong(f"{name} is {await gauge(client, name):,.0f} at the end")
        await probe(client, told)
        budget = await gauge(client, "memory_budget_bytes")
        if told.most_bytes > budget:
            told.wrong(f"{told.most_bytes:,.0f} bytes of a budget of {budget:,.0f}")
        done, resident = sum(told.statuses.values()), process.memory_info().rss
        told.memory.append((done, resident))
        note(into, numbers.start + done, told.statuses - noted, len(told.errors), resident)
    return told


def note(into: Path, number: int, statuses: Counter[str], errors: int, resident: int) -> None:
    """Append what came since the note before: a run that is stopped loses little."""
    line = {"number": number, "statuses": statuses, "errors": errors, "resident": resident}
    with into.open("a") as file:
        file.write(json.dumps(line) + "\n")


def so_far(into: Path) -> tuple[int, Counter[str]]:
    """Return where runs before this one ended, and the statuses of all of them."""
    lines = [json.loads(line) for line in into.read_text().splitlines()] if into.exists() else []
    total = Counter[str]()
    for line in lines:
        total.update(line["statuses"])
    return max((line["number"] for line in lines), default=0), total


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
    parser.add_argument("--kind", type=int, help="of the kinds of request only this one")
    parser.add_argument("--memory", default="128MiB", help="the server's budget")
    parser.add_argument("--into", type=Path, default=os.devnull, help="notes to go on from")
    given = parser.parse_args()
    first, _ = so_far(given.into)
    begun = time.monotonic()
    with serving("--memory", given.memory, told=refuse_traceback) as (url, process):
        told = asyncio.run(
            soak(
                url,
                process,
                range(first, given.requests),
                given.minutes * 60,
                given.kind,
                given.into,
            )
        )
        threads, resident = process.num_threads(), process.memory_info().rss
    done = so_far(given.into)[1] or told.statuses
    for status, count in sorted(done.items()):
        print(f"{status}: {count:,}")
    grown, during = growth(told)
    print(f"seconds: {time.monotonic() - begun:,.0f}, threads: {threads}")
    print(f"memory: {resident / 1e6:,.0f} MB, growth: {grown / during:,.0f} bytes a request")
    shown = sorted(told.memory)[:: max(1, len(told.memory) // 8)]
    print("on the way:", ", ".join(f"{at:,}: {now / 1e6:,.1f} MB" for at, now in shown))
    print(f"most of the budget for models and caches: {told.most_bytes / 1e6:,.0f} MB")
    print(f"different answers to the same question: {len(told.probes):,}")
    print(f"errors: {len(told.errors):,}")
    raise SystemExit(bool(told.errors) or grown > MOST_GROWTH * during + NOISE)


if __name__ == "__main__":
    main()
