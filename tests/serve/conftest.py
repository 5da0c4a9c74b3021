"""Real servers for real clients: a process with the bundled model, and one in this process whose
model answers by a rule, as slowly as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

from edgetok.cache.prefix_cache import PrefixCache  # noqa: E402
from edgetok.models.bundled import bundled_model  # noqa: E402
from edgetok.serve.answers import Writer  # noqa: E402
from edgetok.serve.budget import MemoryBudget  # noqa: E402
from edgetok.serve.metrics import Metrics  # noqa: E402
from edgetok.serve.models import ModelPool, Served  # noqa: E402
from edgetok.serve.options import ServeOptions  # noqa: E402
from edgetok.serve.server import make_server  # noqa: E402
from tests.fake import fake_model  # noqa: E402

START_S = 120


class Api:
    """A server's address, and short ways to ask it."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def post(self, path: str, /, **body: Any) -> Any:
        body = {"model": self.name} | body
        return httpx.post(self.url + path, json=body, timeout=60)

    def chat(self, text: str, **body: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", **({"messages": messages} | body))

    def gauge(self, name: str) -> float:
        text = httpx.get(self.url + "/metrics", timeout=30).text
        match = re.search(rf"^edgetok_{name} (\S+)$", text, re.MULTILINE)
        assert match, name
        return float(match[1])

    def wait_until(self, name: str, value: float, seconds: float = 60) -> None:
        """Wait until a gauge has a value."""
        begun = time.monotonic()
        while self.gauge(name) != value:
            assert time.monotonic() - begun < seconds, f"{name} is {self.gauge(name)}"
            time.sleep(0.01)


class Process(Api):
    """`edgetok serve` in a process of its own."""

    def __init__(self, *arguments: str, name: str = "", **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgetok.cli", "serve", *arguments, "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            # A shell that runs the tests in the background leaves it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            match = re.match(r"serving (\S+?),? .*at (http://\S+)/v1$", line)
            match = match or re.match(r"serving (\S+) at (http://\S+)/v1$", line)
            if match:
                super().__init__(match[2], name or match[1])
                break
        else:
            self.process.wait(START_S)
            self.process.stderr.close()
            raise AssertionError("".join(self.lines))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(120)
        self._reader.join(60)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


class Rule(Api):
    """A server in this process, over a model that answers by a rule."""

    def __init__(self, model: Any, *, parallel: int = 32, queue: int = 64, **options: Any) -> None:
        self.model = model
        self.budget = MemoryBudget(1 << 30, most_running=parallel, most_waiting=queue)
        pool = ModelPool([], self.budget)
        pool.models["fake"] = Served(
            name="fake", path=Path("fake"), created=0, identity="ab" * 32, weight_bytes=0
        )
        pool.models["fake"].model = model
        pool.models["fake"].used_s = time.monotonic()  # else it is idle, and cannot be loaded again
        model.engine.prefixes = PrefixCache("ab" * 32, 1 << 20)
        self.writer = Writer(pool, self.budget, Metrics())
        self._server = make_server(self.writer, ServeOptions(**options))
        self._socket = socket.create_server(("127.0.0.1", 0))
        super().__init__(f"http://127.0.0.1:{self._socket.getsockname()[1]}", "fake")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(120)
        assert not self._thread.is_alive()
        self._socket.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Process]:
    """The bundled model, served by a process."""
    made = Process(f"tiny={bundled_model()}", "--memory", "1GiB")
    yield made
    made.stop()
    assert "Traceback" not in "".join(made.lines), "".join(made.lines)


@pytest.fixture
def rule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Rule]]:
    """A maker of servers whose model says which turn it is and repeats the user, shouting.

    In the end asyncio has nothing to report: no error that nobody looked at.
    """
    with contextlib.ExitStack() as stack:

        def make(*, server: Any = None, **model: Any) -> Rule:
            made = Rule(fake_model(tmp_path / "fake", **model), **(server or {}))
            stack.callback(made.stop)
            return made

        yield make
    gc.collect()
    reported = [one.getMessage() for one in caplog.get_records("call") if one.name == "asyncio"]
    reported += [one.getMessage() for one in caplog.records if one.name == "asyncio"]
    assert not reported
