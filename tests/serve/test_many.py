"""Many at once on the bundled model, and what is shared between conversations."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgetok.models.bundled import bundled_model
from edgetok.serve import answers
from tests.serve.conftest import Process, Rule

CLIENTS = 32
LONG = "The dog went to the big tree and sat under it with his friend the cat. " * 20


async def asked(client: httpx.AsyncClient, i: int, stream: bool) -> Any:
    """The answer to question i: its text, and why it ended."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"Tell me {i % 8} of a dog. " * (1 + i % 5)}],
        "max_tokens": 24,
        "seed": i,
        "stream": stream,
    }
    body |= {"temperature": 0} if i % 2 else {}
    path = "/v1/chat/completions"
    if not stream:
        found = (await client.post(path, json=body)).json()["choices"][0]
        return found["message"]["content"], found["finish_reason"]
    text, reason = "", None
    async with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choice = httpx.Response(200, text=line[6:]).json()["choices"][0]
                text += choice["delta"].get("content", "")
                reason = choice["finish_reason"] or reason
    return text, reason


def test_32_clients_get_the_answers_of_one(server: Process) -> None:
    async def run() -> None:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            alone = [await asked(client, i, False) for i in range(CLIENTS)]
            for stream in (True, False):
                together = await asyncio.gather(*(asked(client, i, stream) for i in range(CLIENTS)))
                assert list(together) == alone

    asyncio.run(run())
    assert server.gauge("memory_caches_bytes") == 0


def test_schemas_that_take_long_keep_only_each_other_waiting(
    rule: Callable[..., Rule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them at once than there are threads for anything else."""
    released, ready = threading.Event(), answers.prepare

    def slowly(model: Any, request: Any) -> Any:
        assert request.grammar is None or released.wait(60)
        return ready(model, request)

    monkeypatch.setattr(answers, "prepare", slowly)
    api = rule()
    count = 40
    schema = {"structured_outputs": {"regex": "a"}, "max_tokens": 1}
    with ThreadPoolExecutor(count) as threads:
        try:
            held = [threads.submit(api.chat, "x", **schema) for _ in range(count)]
            while api.writer.budget._coming < count:
                time.sleep(0.01)
            assert api.chat("hello").status_code == 200
            assert not any(one.done() for one in held)
        finally:
            released.set()
        for one in held:
            one.result(60)


def test_beginnings_are_read_once(server: Process) -> None:
    """A second conversation with the same system message, and a second turn."""
    system = {"role": "system", "content": LONG}
    said = [system, {"role": "user", "content": "Hi"}]
    first = server.chat("", messages=said, temperature=0, max_tokens=20).json()
    details = first["usage"]["prompt_tokens_details"]
    prompt = first["usage"]["prompt_tokens"]
    assert details["cached_tokens"] < 20
    other = [system, {"role": "user", "content": "Who are you?"}]
    second = server.chat("", messages=other, temperature=0, max_tokens=20).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > prompt - 20
    said += [first["choices"][0]["message"], {"role": "user", "content": "Tell me more."}]
    third = server.chat("", messages=said, temperature=0, max_tokens=20).json()
    cached = third["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= prompt + first["usage"]["completion_tokens"] - 2
    # The same as without any cache.
    import edgetok

    with edgetok.load(bundled_model()) as model:
        text = model.chat(said, temperature=0.0, max_tokens=20).text
    assert third["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("given_up", [False, True])
def test_prompts_that_come_together_read_their_beginning_once(
    server: Process, given_up: bool
) -> None:
    """Also where the client goes away whose prompt the others wait for."""
    system = {"role": "system", "content": f"Together{given_up}. " + 4 * LONG}

    async def run() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:

            async def ask(i: int) -> Any:
                said = [system, {"role": "user", "content": f"Who are you, {i}?"}]
                body = {"model": "tiny", "messages": said, "max_tokens": 2}
                return (await client.post("/v1/chat/completions", json=body)).json()["usage"]

            first = asyncio.create_task(ask(-1))
            await asyncio.sleep(0.02)
            others = [asyncio.create_task(ask(i)) for i in range(6)]
            if given_up:
                await asyncio.sleep(0.01)
                first.cancel()
            return await asyncio.gather(*others)

    found = asyncio.run(run())
    cached = sorted(usage["prompt_tokens_details"]["cached_tokens"] for usage in found)
    shared = found[0]["prompt_tokens"] - 20
    # One of them reads for all: whichever came first, or the next where that one is given up.
    assert min(cached[1:]) > shared > 1000


def test_several_answers_read_their_prompt_once(server: Process) -> None:
    prompt = "Once there was a bird. " + LONG
    body = {"prompt": prompt, "n": 4, "max_tokens": 4, "temperature": 0}
    before = server.gauge("cached_tokens_total")
    found = server.post("/v1/completions", **body).json()
    assert len({one["text"] for one in found["choices"]}) == 1
    reused = server.gauge("cached_tokens_total") - before
    assert reused >= 3 * (found["usage"]["prompt_tokens"] - 2)


def test_a_bounded_cache_says_what_it_evicted() -> None:
    made = Process(str(bundled_model()), "--context", "128", "--kv-policy", "retain")
    try:
        short = made.chat("Hi", max_tokens=5, temperature=0).json()["usage"]
        assert "evicted_tokens" not in short
        for path, fields in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
            ("/v1/responses", {"input": LONG}),
            ("/v1/messages", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 5}),
        ):
            usage = made.post(path, **fields).json()["usage"]
            prompt = usage.get("prompt_tokens") or (
                usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
            )
            assert prompt > 300
            seen = prompt + (usage.get("completion_tokens") or usage["output_tokens"])
            assert prompt - 128 <= usage["evicted_tokens"] < seen
            assert 0 < usage["attention_loss"] < 1
    finally:
        made.stop()


@pytest.mark.slow
def test_a_soak(repository: Path) -> None:
    """Varied answers, a tenth of them given up: no errors, no growth, the budget kept."""
    script = str(repository / "benchmarks/serving/soak.py")
    run = subprocess.run(
        [sys.executable, script, "--requests", "1500", "--kind", "6"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    given_up = re.search(r"^given up: (\d+)$", run.stdout, re.MULTILINE)
    assert given_up
    assert int(given_up[1]) > 50
    assert re.search(r"^200: 1,3\d\d$", run.stdout, re.MULTILINE)
