"""The chat in a real terminal: a pseudo-terminal, typed keys, what the screen gets."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="needs pseudo-terminals")

LONG = "abcdefghij" * 12


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.master, slave = pty.openpty()
        environment = {
            **os.environ,
            "TERM": "xterm",
            "HOME": str(folder),
            "PYTHONPATH": str(repository),
            "PYTHONUTF8": "1",
            "EDGETOK_HISTORY": str(folder / "history"),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.chat_driver", "chat", str(folder / "m")],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=repository,
            env=environment,
            start_new_session=True,
            preexec_fn=_control,
        )
        os.close(slave)
        self.raw = b""

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def until(self, text: str, seconds: float = 30) -> str:
        """Read until `text` is on the screen; return everything up to it, without colours."""
        end = time.monotonic() + seconds
        while text.encode() not in (seen := re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]|\r", b"", self.raw)):
            left = end - time.monotonic()
            assert left > 0, f"{text!r} never came; on the screen: {seen!r}"
            if select.select([self.master], [], [], left)[0]:
                self.raw += os.read(self.master, 65536)
        place = seen.index(text.encode()) + len(text.encode())
        self.raw = seen[place:]
        return seen[:place].decode()

    def press(self, key: str, text: str) -> str:
        """Press a key until `text` is on the screen.

        Python checks for signals before it waits for a key: one that comes between is seen at the
        next key, and a person would press again.
        """
        for _ in range(5):
            self.type(key)
            with contextlib.suppress(AssertionError):
                return self.until(text, 5)
        return self.until(text, 5)

    def close(self) -> int:
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            os.close(self.master)


def _control() -> None:
    """Make the pseudo-terminal the child's own, so that Ctrl-C in it is a signal."""
    import fcntl
    import signal
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Ignored signals are inherited, and a shell starts background jobs with this one ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def terminal(repository: Path, tmp_path: Path) -> Iterator[Terminal]:
    result = Terminal(repository, tmp_path)
    yield result
    result.process.kill()
    result.process.wait()


def test_a_conversation(terminal: Terminal, tmp_path: Path) -> None:
    terminal.until("› ")
    terminal.type("hello 🙂\n")
    assert "1:HELLO 🙂!" in terminal.until("tokens · ")
    terminal.until("› ")

    # Ctrl-C stops the answer and nothing else
    terminal.type(LONG + "\n")
    terminal.until("2:ABCDE")
    terminal.type("\x03")
    terminal.until("stopped")
    terminal.until("› ")
    terminal.type("after\n")
    terminal.until("3:AFTER!")
    terminal.until("› ")

    # many lines: a backslash, and a block
    terminal.type("one\\\n")
    terminal.until("… ")
    terminal.type("two\n")
    terminal.until("4:ONE\nTWO!")
    terminal.until("› ")
    terminal.type('"""first\n')
    terminal.until("… ")
    terminal.type('second"""\n')
    terminal.until("5:FIRST\nSECOND!")
    terminal.until("› ")

    # commands
    terminal.type("/undo\n")
    terminal.until("removed: first")
    terminal.type("/system Be kind\n")
    terminal.until("Be kind\n")
    terminal.type("/retry\n")
    terminal.until("Be kind:4:ONE\nTWO!")
    terminal.until("› ")
    terminal.type("/set temperature 0.5\n")
    terminal.until("temperature          0.5")
    terminal.type("/set temperature\n")
    terminal.until("temperature          0.5")
    terminal.type("/set heat\n")
    terminal.until("unknown option 'heat'")
    terminal.type("/set temperature hot\n")
    terminal.until("expected a number")
    terminal.type("/set temperature 0\n")
    terminal.until("temperature          0.0")
    terminal.type(f"/save {tmp_path}/talk.json\n")
    terminal.until("saved to")
    terminal.type("/clear\n")
    terminal.until("a new conversation")
    terminal.type(f"/load {tmp_path}/talk.json\n")
    terminal.until("› after")
    terminal.until("› ")
    terminal.type("/load nowhere.json\n")
    terminal.until("nowhere.json: cannot be read")
    terminal.type("/hlep\n")
    terminal.until("did you mean /help?")
    terminal.type("/help\n")
    terminal.until("/retry")
    terminal.until("› ")

    # Ctrl-C at the prompt empties the line; Ctrl-D leaves
    terminal.type("half a line")
    terminal.until("half a line")
    terminal.press("\x03", "/exit ends")
    terminal.until("› ")
    terminal.type("x\n")
    terminal.until("Be kind:5:X!")
    terminal.until("› ")
    terminal.type("\x04")
    assert terminal.close() == 0
    history = tmp_path / "history"
    assert "half" not in history.read_text()
    assert "hello 🙂" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_exit_and_a_bad_message(terminal: Terminal) -> None:
    terminal.until("› ")
    terminal.type("y" * 990 + "\n")
    terminal.until("the prompt has 1,0")
    terminal.until("› ")
    terminal.type("/exit\n")
    assert terminal.close() == 0
