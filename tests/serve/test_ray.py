"""Two copies of the server behind Ray Serve on this machine: whole, streamed, and by session."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgetok.models.bundled import bundled_model
from tests.serve.conftest import Api

pytest.importorskip("ray", reason="needs ray: pip install 'edgetok[ray]'")
openai = pytest.importorskip("openai")
SESSIONS, TURNS = 8, 3
START_S = 600
# Ray gives up on a busy machine after 30 seconds.
RAY = {"RAY_raylet_start_wait_time_s": "300", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def copies(repository: Path) -> Iterator[Api]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, str(repository / "examples/ray_serve.py"), str(bundled_model())),
            *("--replicas", "2", "--memory", "256MB", "--port", str(port)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | RAY | {"RAY_AUTH_TOKEN": secrets.token_hex(32)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    lines: list[str] = []
    watch = threading.Timer(START_S, process.kill)
    watch.start()
    for line in process.stdout:
        lines.append(line)
        if match := re.match(r"serving (\S+) at (http://\S+)/v1$", line):
            break
    else:
        raise AssertionError("".join(lines))
    watch.cancel()
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    yield Api(match[2], match[1])
    process.send_signal(signal.SIGINT)
    process.wait(120)
    reader.join(60)
    process.stdout.close()


def answered(api: Api, session: str) -> int:
    """How many conversations the copy of a session has answered."""
    text = httpx.get(api.url + "/metrics", headers={"x-session-id": session}, timeout=60).text
    lines = re.findall(r'^edgetok_requests_total\{.*route="chat".*\} (\d+)', text, re.MULTILINE)
    return sum(map(int, lines))


def test_sessions_keep_their_copy(copies: Api) -> None:
    with openai.OpenAI(base_url=copies.url + "/v1", api_key="x", max_retries=0) as client:
        for session in range(SESSIONS):
            messages: list[Any] = []
            before = 0
            for turn in range(TURNS):
                messages.append({"role": "user", "content": f"Tell me of dog {session}. " * 40})
                found = client.chat.completions.create(
                    model=copies.name,
                    messages=messages,
                    max_tokens=8,
                    extra_headers={"x-session-id": str(session)},
                )
                messages.append(found.choices[0].message.model_dump(exclude_none=True))
                if turn:  # only the copy that answered before holds the beginning
                    held = found.usage.prompt_tokens_details.cached_tokens
                    assert held > before
                before = found.usage.prompt_tokens
    counts = [answered(copies, str(session)) for session in range(SESSIONS)]
    assert all(count and count % TURNS == 0 for count in counts)
    assert max(counts) < SESSIONS * TURNS  # both copies have answered


def test_a_stream(copies: Api) -> None:
    with openai.OpenAI(base_url=copies.url + "/v1", api_key="x", max_retries=0) as client:
        options: dict[str, Any] = {
            "model": copies.name,
            "messages": [{"role": "user", "content": "Hello"}],
            "temperature": 0,
            "max_tokens": 20,
        }
        whole = client.chat.completions.create(**options).choices[0].message.content
        chunks = list(client.chat.completions.create(stream=True, **options))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
        assert len(chunks) > 5
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**(options | {"model": "other"}))
