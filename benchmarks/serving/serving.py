"""`edgetok serve` as a process of a benchmark's own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def serving(
    *arguments: str, told: Callable[[str], None], end_s: float = 60, **environment: str
) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server on a free port until the end of the block; its address and its process.

    Args:
        arguments: of `edgetok serve`.
        told: called at the end with what the server wrote to stderr while it ran.
        end_s: seconds that it may take to end.
        environment: variables besides this process's.

    Raises:
        SystemExit: it does not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetok.cli", "serve", *arguments, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        # A shell that runs a benchmark in the background leaves it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r"at (http://\S+)/v1$", line):
                break
        else:
            raise SystemExit("".join(lines))
        os.set_blocking(process.stderr.fileno(), False)
        yield match[1], psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(end_s)
        said = process.stderr.read() or ""
        process.stderr.close()
        told(said)
