"""A program in a pseudo-terminal, and what a terminal of that size would show (pyte)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte


class _Screen(pyte.HistoryScreen):
    """A screen that answers questions about the cursor, as terminals do."""

    def __init__(self, columns: int, lines: int, master: int) -> None:
        super().__init__(columns, lines, history=5000, ratio=0.5)
        self._master = master

    def write_process_input(self, data: str) -> None:
        os.write(self._master, data.encode())


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(
        self,
        repository: Path,
        folder: Path,
        *words: str,
        columns: int = 80,
        lines: int = 24,
        program: tuple[str, ...] = ("-m", "tests.cli.chat_driver", "chat"),
        **variables: str,
    ) -> None:
        self.master, slave = pty.openpty()
        self._resize(slave, columns, lines)
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "HOME": str(folder),
            "PYTHONPATH": str(repository),
            "PYTHONUTF8": "1",
            "EDGETOK_HISTORY": str(folder / "history"),
            **variables,
        }
        for size in ("COLUMNS", "LINES"):  # of another terminal, where one says so
            environment.pop(size, None) if size not in variables else None
        environment.pop("NO_COLOR", None) if "NO_COLOR" not in variables else None
        self.process = subprocess.Popen(
            [sys.executable, *program, *(words or (str(folder / "m"),))],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=repository,
            env=environment,
            start_new_session=True,
            preexec_fn=_control,
        )
        os.close(slave)
        self._screen = _Screen(columns, lines, self.master)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self._seen = 0  # lines of the transcript that `until` has matched

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def paste(self, text: str) -> None:
        """Send what a terminal sends for a pasted block."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, lines: int) -> None:
        self._screen.resize(lines, columns)
        self._resize(self.master, columns, lines)

    def _resize(self, file: int, columns: int, lines: int) -> None:
        fcntl.ioctl(file, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def lines(self) -> list[str]:
        """All lines so far, those that have scrolled off included."""
        columns = range(self._screen.columns)
        top = ["".join(line[i].data for i in columns) for line in self._screen.history.top]
        return [line.rstrip() for line in [*top, *self._screen.display]]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()

    def read(self, seconds: float) -> None:
        """Let the program write for a while, or until it ends."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.master], [], [], left)[0]:
                return
            try:
                data = os.read(self.master, 65536)
            except OSError:  # Linux's end of a pseudo-terminal
                return
            self.raw += data
            self._stream.feed(data)
            return

    def until(self, text: str, seconds: float = 30, *, keep: bool = False) -> str:
        """Read until `text` stands below what was matched before; return the lines up to it.

        The line that it is in counts as matched, unless it is to be kept: it may still change.
        """
        end = time.monotonic() + seconds
        while True:
            lines = self.lines
            below = "\n".join(lines[self._seen :])
            if text in below:
                before = below[: below.index(text) + len(text)]
                self._seen += before.count("\n") + (not keep)
                return before
            assert time.monotonic() < end, f"{text!r} never came; on the screen:\n{self.text}"
            self.read(0.1)

    def prompt(self) -> None:
        """Wait until the program reads a line."""
        end = time.monotonic() + 60
        while self.lines[self._row()].rstrip() not in ("›", "…"):
            assert time.monotonic() < end, f"no prompt; on the screen:\n{self.text}"
            self.read(0.1)

    def _row(self) -> int:
        return len(self._screen.history.top) + self._screen.cursor.y

    def close(self) -> int:
        """Wait for the program's end; return its exit code."""
        end = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < end:
            self.read(0.1)
        try:
            return self.process.wait(1)
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self.master)


def _control() -> None:
    """Make the pseudo-terminal the child's own, so that Ctrl-C in it is a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Ignored signals are inherited, and a shell starts background jobs with this one ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
