"""Several models by name, within one budget."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgetok.errors import OptionError
from edgetok.models.bundled import bundled_model
from edgetok.serve.budget import MemoryBudget
from edgetok.serve.models import ModelPool
from edgetok.serve.server import _listen
from tests.serve.conftest import Process

CLIENTS = 6


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Process]:
    """Two names, and memory for one model at a time; idle ones go after a second."""
    shutil.copytree(bundled_model(), tmp_path / "copy")
    made = Process(
        f"one={bundled_model()}",
        str(tmp_path / "copy"),
        "--memory",
        "64MiB",
        "--unload-after",
        "1",
        name="one",
    )
    yield made
    made.stop()


def loaded(server: Process) -> dict[str, bool]:
    found = httpx.get(server.url + "/v1/models").json()["data"]
    return {one["id"]: one["loaded"] for one in found}


def test_on_demand_and_away_when_idle(two: Process) -> None:
    assert any("memory budget 67 MB" in line for line in two.lines)
    assert loaded(two) == {"one": True, "copy": False}
    texts = set()
    for name in ("one", "copy", "one"):
        response = two.chat("Hi", model=name, temperature=0, max_tokens=5)
        assert response.status_code == 200
        assert response.json()["model"] == name
        assert loaded(two)[name]
        texts.add(response.json()["choices"][0]["message"]["content"])
    assert len(texts) == 1
    begun = time.monotonic()
    while any(loaded(two).values()):
        assert time.monotonic() - begun < 120
        time.sleep(0.1)
    assert two.gauge("memory_models_bytes") == 0
    assert two.chat("Hi", temperature=0, max_tokens=5).status_code == 200


def test_weights_that_were_changed_under_it(two: Process, tmp_path: Path) -> None:
    """A clear error, and it recovers when the files are whole again."""
    data = tmp_path / "copy" / "model.onnx.data"
    whole = data.read_bytes()
    assert two.chat("Hi", model="copy", max_tokens=2).status_code == 200
    data.write_bytes(whole[: len(whole) // 2])
    response = two.chat("Hi there", model="copy", max_tokens=2)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_unavailable"
    assert two.chat("Hi", model="one", max_tokens=2).status_code == 200
    data.write_bytes(whole)
    assert two.chat("Hi", model="copy", max_tokens=2).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_weights_that_are_written_to_while_many_ask(tmp_path: Path, path: str) -> None:
    """Those who have the old weights get one clear error; nobody else does, and it goes on."""
    shutil.copytree(bundled_model(), tmp_path / "copy")
    data = tmp_path / "copy" / "model.onnx.data"
    made = Process(str(tmp_path / "copy"), "--memory", "128MiB")
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
        "/v1/embeddings": {"input": "Hi"},
    }
    changed, stop = threading.Event(), threading.Event()
    found: list[list[tuple[int, str]]] = [[] for _ in range(CLIENTS)]

    def ask(seen: list[tuple[int, str]]) -> None:
        after = 0
        while after < 5 and not stop.is_set():
            began_after = changed.is_set()
            response = made.post(path, **bodies[path])
            error = response.json().get("error") or {"code": ""}
            seen.append((response.status_code, error["code"]))
            after += began_after and response.status_code == 200

    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            asking = [pool.submit(ask, seen) for seen in found]
            while not all(len(seen) > 2 for seen in found):
                time.sleep(0.01)
            data.write_bytes(data.read_bytes())
            changed.set()
            try:
                for one in asking:
                    one.result(120)
            finally:
                stop.set()
        statuses = Counter(one for seen in found for one in seen)
        assert set(statuses) <= {(200, ""), (503, "model_unavailable")}
        assert 0 < statuses[503, "model_unavailable"] <= 2 * CLIENTS
        assert all(seen[-1] == (200, "") for seen in found)
        assert made.gauge("memory_caches_bytes") == 0
    finally:
        made.stop()


def test_too_little_memory(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="at least"):
        Process(str(bundled_model()), "--memory", "1MB")


def test_a_model_that_never_fits_is_refused_at_the_start() -> None:
    """Requests for it would wait for memory that never comes."""
    with pytest.raises(AssertionError) as raised:
        Process(str(bundled_model()), "--memory", "64MiB", "--prefix-cache", "66MB")
    (line,) = str(raised.value).splitlines()
    assert line.startswith("error: a memory budget of 67,108,864 bytes; default-4bit needs 68,")
    assert "66,000,000 of them for beginnings of prompts" in line


def test_interrupted_at_once() -> None:
    """Whoever reads its address may end it: no traceback."""
    for end, code in ((signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)):
        made = Process(str(bundled_model()))
        made.process.send_signal(end)
        assert made.stop() == code
        assert len("".join(made.lines).strip().splitlines()) == 2, made.lines


def test_names(tmp_path: Path) -> None:
    from edgetok.cli.commands.serve import _place

    place = bundled_model()
    assert _place(f"a={place}") == ("a", place)
    assert _place(str(place)) == ("default-4bit", place)
    shutil.copytree(place, tmp_path / "x=y")
    assert _place(f"{tmp_path}/x=y")[0] == "x=y"
    with pytest.raises(OptionError, match="two models are called"):
        ModelPool([("a", place), ("a", place)], MemoryBudget(1, most_running=1, most_waiting=1))


def test_two_servers_that_start_together_at_one_port() -> None:
    with contextlib.closing(_listen("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match="in use") as refused:
            _listen("127.0.0.1", port)
    assert refused.value.filename == f"127.0.0.1:{port}"


def test_a_folder_that_is_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="error: ") as raised:
        Process(str(tmp_path))
    assert str(raised.value).count("\n") == 1
