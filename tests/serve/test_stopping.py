"""A server that is told to stop while it works refuses what it has begun."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from edgetok.models.bundled import bundled_model
from tests.serve.conftest import Process, Rule

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/embeddings": {"input": "x"},
}


@pytest.fixture
def stuck(rule: Callable[..., Rule], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that takes very long, and how to wait until it has begun."""
    begun, released = threading.Event(), threading.Event()

    def never(*_: Any, **__: Any) -> Any:
        begun.set()
        released.wait(60)
        return np.ones((1, 8), np.float32)

    def slowly(tokens: list[int]) -> int:
        begun.set()
        return 65

    api = rule(rule=slowly, step_s=0.05)
    monkeypatch.setattr(api.model, "embed", never)
    yield api, begun
    released.set()


@pytest.mark.parametrize("path", BODIES)
def test_what_is_not_done_is_refused(stuck: tuple[Rule, threading.Event], path: str) -> None:
    api, begun = stuck
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(api.post, path, **BODIES[path])
        assert begun.wait(60)
        api._server.should_exit = True
        response = waiting.result(60)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "server_stopping"
    assert response.headers["retry-after"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", BODIES["/v1/chat/completions"]),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", BODIES["/v1/chat/completions"] | {"max_tokens": 900}),
    ],
)
def test_a_stream_ends_with_an_error(path: str, fields: dict[str, Any]) -> None:
    """In a process, which ends by the signal as soon as its last clean-up is done."""
    server = Process(f"tiny={bundled_model()}", "--memory", "1GiB", "--pace", "0.5")
    try:
        body = {"model": "tiny", "stream": True} | fields
        with httpx.stream("POST", server.url + path, json=body, timeout=60) as response:
            text = ""
            for piece in response.iter_text():
                if not text:
                    server.process.send_signal(signal.SIGTERM)
                text += piece
        assert "the server is stopping" in text.split("\n\n")[-2]
    finally:
        server.stop()


def test_dimensions_are_looked_at_first(
    stuck: tuple[Rule, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the model runs, which would take forever here."""
    api, begun = stuck
    monkeypatch.setattr(api.model.backend, "spec", SimpleNamespace(vector_size=8))
    for wrong in (0, 9, -1):
        response = api.post("/v1/embeddings", input="x", dimensions=wrong)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "dimensions"
        assert "expected 1 to 8" in response.json()["error"]["message"]
    assert not begun.is_set()
