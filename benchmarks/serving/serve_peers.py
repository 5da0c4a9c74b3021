"""Servers of language models as processes: where they listen, and what they use."""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

START_S = 600
SERVERS = ("edgetok", "llama.cpp")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    Attributes:
        port: of this machine.
        process: whose time and memory count.
    """

    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        """Return the seconds of processor time that it has used, of all threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def memory(self) -> dict[str, float]:
        """Return resident megabytes, and those of them that are pages of files."""
        found = self.process.memory_info()
        return {"resident_mb": found.rss / 1e6, "files_mb": found.shared / 1e6}


@contextmanager
def running(command: list[str], port: int) -> Iterator[Server]:
    """Run a server until the end of the block.

    Raises:
        SystemExit: it ends, or does not answer `/health` in time.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        begun = time.monotonic()
        while not _answers(port):
            if process.poll() is not None or time.monotonic() - begun > START_S:
                raise SystemExit(f"does not serve: {' '.join(command)}")
            time.sleep(0.2)
        yield Server(port, psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def edgetok_server(given: argparse.Namespace, slots: int) -> contextmanager[Server]:
    """Serve `given.artefact` with edgetok, as "model"."""
    port = free_port()
    command = [sys.executable, "-m", "edgetok.cli", "serve", f"model={given.artefact}"]
    command += ["--port", str(port), "--threads", str(given.threads), "--parallel", str(slots)]
    command += ["--context", str(given.context), "--memory", given.memory]
    return running(command, port)


def llama_cpp_server(given: argparse.Namespace, slots: int) -> contextmanager[Server]:
    """Serve `given.model` with llama.cpp, whose context is that of all slots together."""
    port = free_port()
    command = [str(given.server), "--model", str(given.model), "--port", str(port)]
    command += ["--threads", str(given.threads), "--parallel", str(slots), "--no-ui"]
    command += ["--ctx-size", str(given.context * slots), "--host", "127.0.0.1"]
    return running(command, port)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
