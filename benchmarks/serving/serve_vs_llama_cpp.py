"""The server beside llama.cpp's, on one model, asked in turn.

    python benchmarks/serving/serve_vs_llama_cpp.py MODEL.gguf ARTEFACT --server PATH/llama-server \
        --into out/serve.jsonl

ARTEFACT is what `edgetok convert MODEL.gguf` makes: it keeps the file's integers, so both compute
with the same weights. Both servers run all the time with the same number of threads, slots and
tokens of context, else with their defaults, and are asked alternately: 1, 8 and 32 clients, each of
which asks as soon as its answer is there. Prompts have 10 to 120 words of their own, once behind a
system message that all clients of a cell share and once without. Answers are greedy and streamed.

Printed for each cell: generated tokens a second of all clients together; CPU seconds of the server
a generated token (prompts included), which other work on the machine disturbs least; time to first
token; time between two pieces of text; tokens of prompts that were not computed again; and the
server's resident memory after the cell, of which pages of files are shared with other processes
that map the same file. Each cell is a line in the file, and cells that are there are not measured
again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from serve_peers import SERVERS, Server, edgetok_server, llama_cpp_server

from edgetok.converter.calibrate import calibration_text

WORDS = (10, 120)  # of a prompt, from and to; short ones are as frequent as long ones
SYSTEM_WORDS = 120
LEAST_REQUESTS = 4  # of a cell
TEXTS = Path(calibration_text.__file__).with_name("text") / "compared"
Cell = dict[str, Any]


def prompts(count: int, shared: bool, seed: int) -> list[list[dict[str, str]]]:
    """Return the messages of `count` requests: the same for the same seed.

    With `shared` each begins with the same system message.
    """
    texts = [path.read_text() for path in sorted(TEXTS.iterdir())]
    words = [word for text in texts for word in text.split() if word.isascii()]
    chance = random.Random(seed)

    def piece(size: int) -> str:
        first = chance.randrange(len(words) - size)
        return " ".join(words[first : first + size])

    system = {"role": "system", "content": f"You know this text. {piece(SYSTEM_WORDS)}"}
    made = []
    for _ in range(count):
        size = round(math.exp(chance.uniform(*map(math.log, WORDS))))
        asked = {"role": "user", "content": f"What comes next? {piece(size)}"}
        made.append([system, asked] if shared else [asked])
    return made


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the values that `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def ask(port: int, messages: list[dict[str, str]], tokens: int, cell: Cell) -> None:
    """Ask for one streamed answer and note when its pieces came.

    A client of its own: a general one takes as long for a piece as a small model for a token.
    """
    body = {
        "model": "model",
        "messages": messages,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + data)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"port {port}: {status!r} {await reader.read()!r}")
    last = None
    usage: dict[str, Any] = {}
    async for line in reader:  # lengths of chunks stand between, and are skipped like comments
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        if any(choice["delta"].get("content") for choice in event["choices"]):
            now = time.perf_counter()
            if last is None:
                cell["first_s"].append(round(now - begun, 4))
            else:
                cell["between_s"].append(round(now - last, 5))
            last = now
    writer.close()
    cell["generated"] += usage["completion_tokens"]
    cell["prompt"] += usage["prompt_tokens"]
    details = usage.get("prompt_tokens_details") or {}
    cell["cached"] += details.get("cached_tokens", 0)


async def measure(
    server: Server, clients: int, shared: bool, repeat: int, tokens: int, requests: int
) -> Cell:
    """Measure one cell: `requests` of each client, and not less than LEAST_REQUESTS together."""
    count = max(LEAST_REQUESTS, clients * requests)
    left = iter(prompts(count, shared, seed=hash((clients, shared, repeat))))
    cell: Cell = {"generated": 0, "prompt": 0, "cached": 0, "first_s": [], "between_s": []}

    async def client() -> None:
        for messages in left:
            await ask(server.port, messages, tokens, cell)

    used, begun = server.cpu_s(), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    cell["seconds"] = time.perf_counter() - begun
    cell["cpu_s"] = server.cpu_s() - used
    return cell | server.memory()


def table(cells: Sequence[Cell]) -> str:
    """Return the table of all cells: repeats of the same one are taken together."""
    lines = [
        "| system message | clients | server | tokens/s | CPU ms a token "
        "| first token s, p50 | p95 | between ms, p95 "
        "| prompt tokens | of them cached | resident MB | of it files |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for shared, clients in sorted({(one["shared"], one["clients"]) for one in cells}):
        for name in SERVERS:
            same = [
                one
                for one in cells
                if (one["shared"], one["clients"], one["server"]) == (shared, clients, name)
            ]
            if not same:
                continue
            total = {
                key: sum(one[key] for one in same)
                for key in ("generated", "prompt", "cached", "seconds", "cpu_s")
            }
            first = [value for one in same for value in one["first_s"]]
            between = [value for one in same for value in one["between_s"]]
            lines.append(
                f"| {'shared' if shared else 'none'} | {clients} | {name} "
                f"| {total['generated'] / total['seconds']:,.1f} "
                f"| {1e3 * total['cpu_s'] / total['generated']:.1f} "
                f"| {statistics.median(first):.2f} | {percentile(first, 0.95):.2f} "
                f"| {1e3 * percentile(between, 0.95):,.0f} "
                f"| {total['prompt']:,} | {total['cached']:,} "
                f"| {same[-1]['resident_mb']:,.0f} | {same[-1]['files_mb']:,.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--server", type=Path, required=True, help="llama.cpp's llama-server")
    parser.add_argument("--into", type=Path, required=True, help="cells that were measured")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer, at most")
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--context", type=int, default=2048, help="tokens of one conversation")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    parser.add_argument("--memory", default="1GiB", help="edgetok's budget")
    given = parser.parse_args()
    given.into.parent.mkdir(parents=True, exist_ok=True)
    lines = given.into.read_text().splitlines() if given.into.exists() else []
    cells: list[Cell] = [json.loads(line) for line in lines]
    plan = [
        {"server": name, "clients": clients, "shared": shared, "repeat": repeat}
        for repeat in range(given.repeats)
        for clients in given.clients
        for shared in (False, True)
        for name in (SERVERS if repeat % 2 == 0 else SERVERS[::-1])
    ]
    missing = [one for one in plan if not any(one.items() <= cell.items() for cell in cells)]
    if missing:
        slots = max(given.clients)
        with edgetok_server(given, slots) as ours, llama_cpp_server(given, slots) as theirs:
            servers = dict(zip(SERVERS, (ours, theirs), strict=True))
            for server in servers.values():  # what the first answer of a process takes is not meant
                asyncio.run(measure(server, 1, False, -1, 4, 1))
            for one in missing:
                print(one, file=sys.stderr, flush=True)
                server = servers[one["server"]]
                found = asyncio.run(
                    measure(
                        server,
                        one["clients"],
                        one["shared"],
                        one["repeat"],
                        given.tokens,
                        given.requests,
                    )
                )
                cells.append(one | found)
                with given.into.open("a") as file:
                    file.write(json.dumps(cells[-1]) + "\n")
    print(table(cells))


if __name__ == "__main__":
    main()
