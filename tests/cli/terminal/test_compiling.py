"""Progress of compiling, as a user sees it."""

from __future__ import annotations

import io
import sys

import pytest

from edgetok.cli.terminal import compiling
from edgetok.cli.terminal.compiling import Compiling


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


STEPS = ((0, 0), (2, 0), (4, 50), (5, 50), (16, 75), (20, 100))


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    now = [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(compiling, "cores", lambda: 2)
    progress = Compiling(lambda: now[0])
    for seconds, done in STEPS:
        now[0] = seconds
        progress(done, 100)
    return stream.getvalue()


def test_a_terminal_shows_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    title = "compiling kernels for this machine, once"
    assert shown(monkeypatch, Terminal()).split("\r\x1b[K") == [
        "",
        f"{title} ...",
        f"{title}: about 3 s left",
        f"{title}: 50 %, about 4 s left",
        f"{title}: 50 %, about 3 s left",
        f"{title}: 75 %, about 5 s left",
        f"{title}: took 20 s\n",
    ]


def test_a_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    assert [line.rpartition("once")[2] for line in lines] == [
        " ...",
        ": 75 %, about 5 s left",
        ": took 20 s",
    ]
