"""Compiles kernels in processes of its own, once for all processes that wait for them.

A lock in the cache directory makes one process compile; others read in a file beside it how much is
left, and then compile only what it left. The lock ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from edgetok.environment import read_settings
from edgetok.errors import NOT_WRITTEN, EdgetokError, MissingExtraError, OutputError
from edgetok.kernels_cpu.program.costs import START_COST, Meter, cost, cost_of, in_order, span
from edgetok.kernels_cpu.simd.target import Target

_BUILDER = "edgetok.kernels_cpu.program.build"
_LISTER = "edgetok.kernels_cpu.program.names"
LOCK_FILE = ".compiling"
LEFT_FILE = ".compiling.left"
_POLL_S = 0.2
_ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b")
_SYSTEM_ERROR = re.compile(r"\w*Error: \[Errno (\d+)\] ([^:]+)")

Progress = Callable[[int, int], None]
_Event = tuple[int, str, float, bool]  # process, module, its CPU time in seconds, whether it ends


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
        MissingExtraError: there is no compiler; nothing was told.
        OutputError: the folder cannot be written, such as on a full disk.
        EdgetokError: compiling failed.
    """
    _python()
    processes = _useful_processes(missing)
    total = told = 0

    def report(modules: Mapping[str, int]) -> None:
        nonlocal total, told
        if 0 < total == told:  # the end is told once
            return
        left = span(modules, processes)
        total = max(total, left)  # the other process compiles more than this one needs
        told = max(told, total - left)
        if progress is not None:
            progress(told, total)

    def watch() -> None:
        own = [module for module, path in missing.items() if not path.exists()]
        others = _read_left(folder)
        report(others | {module: cost(module) for module in own if module not in others})

    report(in_order(missing, processes))
    with _exclusive(folder / LOCK_FILE, watch):
        left = {module: path for module, path in missing.items() if read_object(path) is None}
        if left:
            _compile(target, left, folder, report)
        report({})


def planned_work(modules: Collection[str]) -> int:
    """Work of compiling modules here, in the units of `Progress`; 0 for none."""
    processes = _useful_processes(modules)
    return span(in_order(modules, processes), processes) if modules else 0


def _read_left(folder: Path) -> dict[str, int]:
    """Work that the process that compiles has left, by module; empty where it is not known."""
    try:
        left = json.loads((folder / LEFT_FILE).read_text())
        return {str(module): int(work) for module, work in left.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write_left(folder: Path, left: Mapping[str, int]) -> None:
    """Tell processes that wait; they only guess where this fails."""
    aside = folder / f"{LEFT_FILE}.{os.getpid()}"
    try:
        aside.write_text(json.dumps(dict(left)))
        aside.replace(folder / LEFT_FILE)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()


def _useful_processes(modules: Collection[str]) -> int:
    """How many processes are worth it, at least 1."""
    useful = cost_of(modules) // (2 * START_COST)
    return max(1, min(os.cpu_count() or 1, len(modules), useful))


def _compile(
    target: Target,
    missing: dict[str, Path],
    folder: Path,
    report: Callable[[Mapping[str, int]], None],
) -> None:
    """Compile in as many processes as are worth it; each takes the next module when it can."""
    count = _useful_processes(missing)
    left = in_order(missing, count)
    waiting = [(module, missing[module]) for module in left]
    events: queue.SimpleQueue[EdgetokError | _Event] = queue.SimpleQueue()
    processes = {process.pid: process for process in (_start() for _ in range(count))}
    threads = [
        threading.Thread(target=_feed, args=(process, waiting, events, target.name))
        for process in processes.values()
    ]
    meter = Meter()

    def tell() -> None:
        now = left | meter.left({pid: _cpu_s(pid) for pid in processes})
        _write_left(folder, now)
        report(now)

    try:
        for thread in threads:
            thread.start()
        tell()
        while left:
            with contextlib.suppress(queue.Empty):
                event = events.get(timeout=1)
                if isinstance(event, EdgetokError):
                    raise event
                pid, module, cpu_s, finished = event
                if finished:
                    meter.end(pid, cpu_s)
                    del left[module]
                else:
                    meter.begin(pid, module, left[module], cpu_s)
            tell()
    finally:
        waiting.clear()
        for process in processes.values():
            process.kill()
        for thread in threads:
            thread.join()
        _write_left(folder, {})


def _cpu_s(pid: int) -> float:
    """CPU time of a process so far; 0 where it has ended."""
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _feed(
    process: subprocess.Popen[str],
    waiting: list[tuple[str, Path]],
    events: queue.SimpleQueue[EdgetokError | _Event],
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
            events.put((process.pid, module, _cpu_s(process.pid), False))
            try:
                stdin.write(f"{module} {target_name} {path}\n")
                stdin.flush()
                answer = stdout.readline()
            except OSError:
                answer = ""
            if not answer:
                process.kill()
                why = _reason(stderr.read()) or f"exit code {process.wait()}"
                events.put(_failure(f"{module}, {target_name}", path.parent, why))
                return
            events.put((process.pid, module, _cpu_s(process.pid), True))


def _failure(what: str, folder: Path, why: str) -> EdgetokError:
    """The error for a compiler that ended because of `why`."""
    refused = _SYSTEM_ERROR.match(why)
    if refused and int(refused[1]) in NOT_WRITTEN:
        return OutputError(
            f"{folder}: cannot hold compiled kernels: {refused[2]}; free some space, or name "
            "another folder with EDGETOK_CACHE_DIR"
        )
    return EdgetokError(f"compiling kernels ({what}) failed: {why}")


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
        MissingExtraError: this process is an application with Python inside, which would start
            itself; or numba is not installed.
    """
    if named := read_settings().python:
        return str(named)
    if getattr(sys, "frozen", False) or not sys.executable:
        raise MissingExtraError(
            "kernels have to be compiled and this application has no Python to do it; set "
            "EDGETOK_PYTHON to a Python that has edgetok, or ship a folder that `edgetok compile` "
            "wrote and name it in EDGETOK_KERNELS"
        )
    if importlib.util.find_spec("numba") is None:
        raise MissingExtraError(
            "kernels have to be compiled and the compiler, numba, is not installed: pip install "
            "'edgetok[compile]', or name a folder that `edgetok compile` wrote in EDGETOK_KERNELS"
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
