"""Compiles kernels in processes of its own, once for all processes that wait for them.

A lock in the cache directory makes one process compile; others watch its objects appear, and then
compile only what it left. The lock ends with its process, however that ends.

Progress and the order of work come from `_COSTS`, so that two cores end at about the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from edgetok.environment import read_settings
from edgetok.errors import EdgetokError
from edgetok.kernels_cpu.simd.target import Target

_BUILDER = "edgetok.kernels_cpu.program.build"
_LISTER = "edgetok.kernels_cpu.program.names"
LOCK_FILE = ".compiling"
_POLL_S = 0.2
_ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b")

# CPU time to compile a module for AVX2, in units of program.rows, 0.2 to 0.4 s. Modules not listed
# take 2.
_COSTS = {
    "attention.float16": 20,
    "attention.float32": 20,
    "attention.int4": 24,
    "attention.int6_int4": 26,
    "attention.int8": 23,
    "attention.kv_append": 12,
    "attention.merge": 8,
    "eviction.float16": 7,
    "eviction.float32": 7,
    "eviction.int4": 7,
    "eviction.int6_int4": 7,
    "eviction.int8": 7,
    "linear.exact": 30,
    "linear.float_rows": 15,
    "linear.q2": 35,
    "linear.q3": 40,
    "linear.q4": 39,
    "linear.q8": 32,
    "sampling.sample": 8,
}
_START_COST = 8  # of one more process, which imports numba

Progress = Callable[[int, int], None]


def read_object(path: Path) -> bytes | None:
    """Return the object in a cache file; None where the file is absent or damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    code = content[32:]
    return code if hashlib.sha256(code).digest() == content[:32] else None


def compile_missing(
    target: Target, missing: Mapping[str, Path], folder: Path, progress: Progress | None
) -> None:
    """Compile modules, or wait until another process has compiled them.

    Args:
        target: what to compile for.
        missing: the file to write for each module.
        folder: the private cache directory that holds them and the lock.
        progress: called with (work done, work in all) when it changes, and about once a second.

    Raises:
        EdgetokError: compiling failed.
    """
    total = sum(_cost(module) for module in missing)
    report = progress or (lambda done, total: None)
    report(0, total)

    def watch() -> None:
        report(sum(_cost(m) for m, path in missing.items() if path.exists()), total)

    with _exclusive(folder / LOCK_FILE, watch):
        left = {module: path for module, path in missing.items() if read_object(path) is None}
        before = total - sum(_cost(module) for module in left)
        if left:
            _compile(target, left, lambda done: report(before + done, total))
        else:
            report(total, total)


def _cost(module: str) -> int:
    return _COSTS.get(module, 2)


def _compile(target: Target, missing: dict[str, Path], progress: Callable[[int], None]) -> None:
    """Compile in as many processes as are worth it; each takes the next module when it can."""
    waiting = sorted(missing.items(), key=lambda item: -_cost(item[0]))
    work = sum(_cost(module) for module in missing)
    answers: queue.SimpleQueue[EdgetokError | str] = queue.SimpleQueue()
    useful = max(1, work // (2 * _START_COST))
    processes = [_start() for _ in range(min(os.cpu_count() or 1, len(waiting), useful))]
    threads = [
        threading.Thread(target=_feed, args=(process, waiting, answers, target.name))
        for process in processes
    ]
    done = count = 0
    try:
        for thread in threads:
            thread.start()
        while count < len(missing):
            try:
                answer = answers.get(timeout=1)
            except queue.Empty:
                progress(done)
                continue
            if isinstance(answer, EdgetokError):
                raise answer
            done, count = done + _cost(answer), count + 1
            progress(done)
    finally:
        waiting.clear()
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join()


def _feed(
    process: subprocess.Popen[str],
    waiting: list[tuple[str, Path]],
    answers: queue.SimpleQueue[EdgetokError | str],
    target_name: str,
) -> None:
    """Give one compiler module after module until none is left."""
    with process:
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        while stdin and stdout and stderr:
            try:
                module, path = waiting.pop(0)
            except IndexError:
                return
            try:
                stdin.write(f"{module} {target_name} {path}\n")
                stdin.flush()
                answer = stdout.readline()
            except OSError:
                answer = ""
            if not answer:
                process.kill()
                why = _reason(stderr.read()) or f"exit code {process.wait()}"
                answers.put(
                    EdgetokError(f"compiling kernels ({module}, {target_name}) failed: {why}")
                )
                return
            answers.put(module)


def _reason(said: str) -> str:
    """The line of a traceback that names the error, else the last line; Numba's errors go on."""
    lines = said.strip().splitlines()
    named = [line for line in lines if _ERROR_LINE.match(line)]
    return (named or lines or [""])[-1]


def kernel_names(target: Target, modules: Sequence[str]) -> list[str]:
    """Names of the kernels in modules.

    Raises:
        EdgetokError: they cannot be listed.
    """
    command = [_python(), "-m", _LISTER, target.name, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = _reason(done.stderr) or f"exit code {done.returncode}"
        raise EdgetokError(f"listing kernels ({target.name}) failed: {why}")
    return done.stdout.split()


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [_python(), "-m", _BUILDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _python() -> str:
    """The Python that compiles.

    Raises:
        EdgetokError: this process is an application with Python inside, which would start itself.
    """
    if named := read_settings().python:
        return str(named)
    if getattr(sys, "frozen", False) or not sys.executable:
        raise EdgetokError(
            "kernels have to be compiled and this application has no Python to do it; set "
            "EDGETOK_PYTHON to a Python that has edgetok, or ship a folder of compiled kernels "
            "and name it in EDGETOK_CACHE_DIR"
        )
    return sys.executable


@contextlib.contextmanager
def _exclusive(path: Path, watch: Callable[[], None]) -> Iterator[None]:
    """Hold a lock on a file; call `watch` about once a second while another process has it.

    Where the file system has no locks, two processes may compile the same: that wastes time alone,
    as objects are renamed into place.
    """
    with open(path, "a+b") as file:
        seconds = time.monotonic()
        while not _try_lock(file):
            time.sleep(_POLL_S)
            if time.monotonic() - seconds >= 1:
                seconds = time.monotonic()
                watch()
        yield


def _try_lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed; False: somebody else has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
