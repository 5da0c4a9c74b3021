"""The programs in examples/ run, and are short."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Process

openai = pytest.importorskip("openai")
NAMES = ("complete", "extract", "notes", "voice")
SERVERS = ("ray_serve",)  # see test_ray.py


def start(repository: Path, server: Process, name: str, *words: str, **more: Any) -> Any:
    return subprocess.Popen(
        [sys.executable, str(repository / f"examples/{name}.py"), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENAI_BASE_URL": server.url + "/v1"} | more,
    )


def output(repository: Path, server: Process, name: str, *words: str, **more: Any) -> str:
    out, _ = (made := start(repository, server, name, *words, **more)).communicate(timeout=60)
    assert made.returncode == 0
    return str(out)


def test_they_are_short_and_listed(repository: Path) -> None:
    files = sorted(path.stem for path in (repository / "examples").glob("*.py"))
    assert files == sorted(NAMES + SERVERS)
    told = (repository / "examples/README.md").read_text()
    for name in NAMES + SERVERS:
        assert len((repository / f"examples/{name}.py").read_text().splitlines()) < 60
        assert f"`{name}.py`" in told


def test_extract(repository: Path, server: Process) -> None:
    pytest.importorskip("llguidance")
    found = json.loads(output(repository, server, "extract", "Rex is a dog, 3 years old."))
    assert found.keys() == {"name", "kind", "age"}
    assert 0 <= found["age"] <= 200


def test_notes(repository: Path, server: Process, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    place = tmp_path / "notes.json"
    out = output(repository, server, "notes", "Remember the milk.", NOTES=str(place))
    assert out.strip()
    spec = importlib.util.spec_from_file_location("notes", repository / "examples/notes.py")
    assert spec is not None
    assert spec.loader is not None
    notes: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notes)
    notes.FILE = tmp_path / "other.json"
    assert notes.call("ListNotes", "{}") == "There are no notes."
    assert notes.call("AddNote", '{"text": "milk"}') == "milk"
    assert notes.call("ListNotes", "{}") == "milk"


def test_complete(repository: Path, server: Process, tmp_path: Path) -> None:
    text = "Once there was a dog called Rex.\n" * 12 + "Once there was a dog ca"
    place = tmp_path / "story.txt"
    place.write_text(text)
    out = output(
        repository, server, "complete", str(place), "13", str(len("Once there was a dog ca") + 1)
    )
    expected = server.post("/v1/completions", prompt=text, max_tokens=24, temperature=0, stop="\n")
    assert out == expected.json()["choices"][0]["text"] + "\n"
    assert expected.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 64


def test_voice_is_interrupted(repository: Path, server: Process) -> None:
    made = start(repository, server, "voice")
    made.stdin.write("Tell me a long story of a dog.\n")
    made.stdin.flush()
    first = made.stdout.read(10)  # it speaks
    made.stdin.write("Stop. Who are you?\n")
    made.stdin.flush()
    time.sleep(1)
    rest, _ = made.communicate(timeout=60)
    assert made.returncode == 0
    lines = (first + rest).splitlines()
    assert len(lines) >= 2
    server.wait_until("running", 0)
