"""Clients that go away: their sequence ends, and nothing of it stays."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from edgetok.serve import answers
from edgetok.serve.prompts import prepare
from tests.serve.conftest import Process, Rule


def begin(api: Any, text: str, **fields: Any) -> socket.socket:
    """Send a request and return its connection."""
    body = {"model": api.name, "messages": [{"role": "user", "content": text}]} | fields
    data = json.dumps(body).encode()
    made = socket.create_connection(api.address, timeout=30)
    made.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    )
    return made


def reset(made: socket.socket) -> None:
    """Close at once, as a process that was killed."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("close", [reset, socket.socket.close])
@pytest.mark.parametrize("moment", ["prefill", "decode"])
def test_the_sequence_ends_within_a_second(
    rule: Callable[..., Rule], stream: bool, close: Any, moment: str
) -> None:
    api = rule(step_s=0.05, rule=lambda tokens: 65)
    made = begin(api, "x" * (900 if moment == "prefill" else 10), stream=stream)
    api.wait_until("running", 1)
    time.sleep(0.5)
    steps = len(api.model.backend.computed)
    assert steps
    rows = api.model.backend.computed[-1][0]
    assert (rows > 1) == (moment == "prefill")
    close(made)
    api.wait_until("running", 0)
    assert len(api.model.backend.computed) - steps <= 20  # of 0.05 s
    steps = len(api.model.backend.computed)
    time.sleep(0.3)
    assert len(api.model.backend.computed) <= steps + 1
    assert api.budget.cache_bytes == 0
    assert api.gauge("abandoned_total") == 1


def test_while_it_waits_in_the_queue(rule: Callable[..., Rule]) -> None:
    api = rule(step_s=0.02, rule=lambda tokens: 65, server={"parallel": 1})
    first = begin(api, "x", stream=True)
    api.wait_until("running", 1)
    second = begin(api, "x", stream=True)
    api.wait_until("waiting", 1)
    reset(second)
    api.wait_until("waiting", 0)
    reset(first)
    api.wait_until("running", 0)


def test_while_its_schema_compiles(
    rule: Callable[..., Rule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place is free while the thread still compiles, and the model is kept for the thread.

    Requests that wait for such a thread and lose their client are not prepared at all.
    """
    begun, go_on = threading.Semaphore(0), threading.Event()
    prepared = []

    def slow(model: Any, request: Any) -> Any:
        prepared.append(request)
        begun.release()
        assert go_on.wait(60)
        return prepare(model, request)

    monkeypatch.setattr(answers, "prepare", slow)
    api = rule(server={"parallel": 1, "queue": 3})
    served = api.writer.models.find("fake")
    made = [begin(api, "x", response_format={"type": "json_object"}) for _ in range(4)]
    try:
        for _ in range(2):  # threads that compile
            assert begun.acquire(timeout=60)
        while served.holders < 4:
            time.sleep(0.01)
        for one in made:
            reset(one)
        held = api.budget.most_running + api.budget.most_waiting
        gone = 'requests_total{route="chat",status="499"} 4'
        while gone not in httpx.get(api.url + "/metrics").text:
            time.sleep(0.01)
        with contextlib.ExitStack() as places:
            for _ in range(held):
                places.enter_context(api.budget.place())
        assert served.holders == 4
    finally:
        go_on.set()
    while served.holders:
        time.sleep(0.01)
    assert len(prepared) == 2
    assert api.chat("x", max_tokens=1).status_code == 200


def test_a_full_queue_is_503_with_a_time(rule: Callable[..., Rule]) -> None:
    api = rule(step_s=0.02, rule=lambda tokens: 65, server={"parallel": 1, "queue": 1})
    held = [begin(api, "x", stream=True)]
    api.wait_until("running", 1)
    held.append(begin(api, "x", stream=True))
    api.wait_until("waiting", 1)
    for stream in (False, True):
        response = api.chat("x", stream=stream)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["code"] == "server_busy"
    for made in held:
        reset(made)
    api.wait_until("running", 0)
    assert api.chat("x", max_tokens=1).status_code == 200


def test_a_burst_is_refused_before_its_streams_begin(rule: Callable[..., Rule]) -> None:
    """All come while none has begun: one is written, two wait, the others get a status."""
    api = rule(step_s=0.1, server={"parallel": 1, "queue": 2})
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda i: api.chat("x", stream=True, max_tokens=9), range(20)))
    codes = [response.status_code for response in found]
    assert set(codes) <= {200, 503}
    assert codes.count(200) >= 3
    assert codes.count(503) > 0
    for response in found:
        if response.status_code == 200:
            assert "server_busy" not in response.text
            assert response.text.rstrip().endswith("[DONE]")
    api.wait_until("memory_caches_bytes", 0)


def test_the_openai_package_waits_and_tries_again(rule: Callable[..., Rule]) -> None:
    openai = pytest.importorskip("openai")
    api = rule(step_s=0.02, rule=lambda tokens: 65, server={"parallel": 1, "queue": 0})
    first = begin(api, "x", stream=True)
    api.wait_until("running", 1)
    threading.Timer(1.0, reset, (first,)).start()
    with openai.OpenAI(base_url=api.url + "/v1", api_key="x", max_retries=4) as client:
        found = client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "x"}], max_tokens=2
        )
    assert found.choices[0].finish_reason == "length"


def test_1000_resets_leak_nothing(server: Process) -> None:
    """On the real model: at every moment from the first byte to the last."""
    import psutil

    process = psutil.Process(server.process.pid)
    expected = server.chat("Tell me a story.", temperature=0, max_tokens=30).json()
    before = 0
    for i in range(1000):
        made = begin(server, f"Tell me a story of {i}. " * (1 + i % 7), stream=bool(i % 2))
        if i % 3:
            time.sleep(0.001 * (i % 11))
        reset(made)
        if i == 300:
            server.wait_until("running", 0)
            before = process.memory_info().rss
    server.wait_until("running", 0)
    assert server.gauge("memory_caches_bytes") == 0
    assert server.gauge("waiting") == 0
    assert process.num_fds() < 60
    assert process.memory_info().rss - before < 64 << 20
    found = server.chat("Tell me a story.", temperature=0, max_tokens=30).json()
    assert found["choices"] == expected["choices"]
