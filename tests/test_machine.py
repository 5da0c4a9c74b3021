"""Performance cores, by what real systems say of their processors."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edgetok
from edgetok import machine
from edgetok.machine import linux_performance_cores, windows_performance_cores


def cpu(devices: Path, number: int, *, capacity: int | None = None, siblings: str = "") -> None:
    folder = devices / f"system/cpu/cpu{number}"
    (folder / "topology").mkdir(parents=True)
    (folder / "topology/thread_siblings_list").write_text(f"{siblings or number}\n")
    if capacity is not None:
        (folder / "cpu_capacity").write_text(f"{capacity}\n")


# Capacities as these machines have them in their device trees.
ARM = {
    "Raspberry Pi 5": ([1024] * 4, None),
    "RK3588": ([414] * 4 + [1024] * 4, 4),
    "RK3399": ([485] * 4 + [1024] * 2, 2),
    "Snapdragon 888": ([250] * 4 + [848] * 3 + [1024], 4),
    "Tensor": ([160] * 4 + [498] * 2 + [1024] * 2, 2),
    "Jetson": ([1024] * 6, None),
}


@pytest.mark.parametrize("name", ARM)
def test_arm_by_capacity(name: str, tmp_path: Path) -> None:
    capacities, wanted = ARM[name]
    for number, capacity in enumerate(capacities):
        cpu(tmp_path, number, capacity=capacity)
    assert linux_performance_cores(range(len(capacities)), tmp_path) == wanted


def test_only_cores_that_may_be_used_count(tmp_path: Path) -> None:
    for number, capacity in enumerate(ARM["Snapdragon 888"][0]):
        cpu(tmp_path, number, capacity=capacity)
    assert linux_performance_cores({0, 1, 6, 7}, tmp_path) == 2
    assert linux_performance_cores({0, 1, 2, 3}, tmp_path) is None
    assert linux_performance_cores({6}, tmp_path) is None


@pytest.fixture
def alder_lake(tmp_path: Path) -> Path:
    """A Core i7-12700: 8 P cores with two threads each, 4 E cores."""
    for number in range(16):
        first = number // 2 * 2
        cpu(tmp_path, number, siblings=f"{first}-{first + 1}")
    for number in range(16, 20):
        cpu(tmp_path, number)
    for kind, cpus in (("cpu_core", "0-15"), ("cpu_atom", "16-19")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "cpus").write_text(f"{cpus}\n")
    return tmp_path


def test_intel_hybrids(alder_lake: Path) -> None:
    assert linux_performance_cores(range(20), alder_lake) == 8
    assert linux_performance_cores({0, 1, 2, 16, 17}, alder_lake) == 2
    assert linux_performance_cores({16, 17, 18}, alder_lake) is None
    assert linux_performance_cores(range(16), alder_lake) is None
    (alder_lake / "cpu_core/cpus").write_text("0,2,4\n")
    assert linux_performance_cores(range(20), alder_lake) == 3


@pytest.mark.parametrize("content", ["", "\n", "x-y\n"])
def test_what_cannot_be_read_is_as_if_it_were_not_there(alder_lake: Path, content: str) -> None:
    (alder_lake / "cpu_atom/cpus").write_text(content)
    assert linux_performance_cores(range(20), alder_lake) is None


def test_cores_that_are_all_alike(tmp_path: Path) -> None:
    for number in range(4):
        cpu(tmp_path, number, siblings=f"{number % 2},{number % 2 + 2}")
    assert linux_performance_cores(range(4), tmp_path) is None
    assert linux_performance_cores(range(4), tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("said", "wanted"), [("2\n8\n", 8), ("1\n4\n", None), ("", None), ("2\n", None)]
)
def test_macos_by_sysctl(said: str, wanted: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An M1 Pro, and machines without levels."""
    asked: list[Any] = []

    def run(command: list[str], **more: Any) -> Any:
        asked.append(command)
        return SimpleNamespace(stdout=said)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.performance_cores() == wanted
    assert asked == [["/usr/sbin/sysctl", "-n", "hw.nperflevels", "hw.perflevel0.physicalcpu"]]


def test_macos_without_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **more: Any) -> Any:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.performance_cores() is None


def record(efficiency: int, threads: int, relation: int = 0) -> bytes:
    """SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX of a core, with one group of processors."""
    body = struct.pack("<BB20xH", threads > 1, efficiency, 1)
    body += struct.pack("<QH6x", (1 << threads) - 1, 0)
    return struct.pack("<II", relation, 8 + len(body)) + body


def test_windows_by_efficiency_class() -> None:
    hybrid = record(1, 2) * 6 + record(0, 1) * 8
    assert windows_performance_cores(hybrid) == 6
    assert windows_performance_cores(record(0, 1) * 8 + record(1, 2) * 6) == 6
    assert windows_performance_cores(hybrid + record(9, 1, relation=2)) == 6  # a cache
    assert windows_performance_cores(record(0, 2) * 4) is None
    assert windows_performance_cores(b"") is None
    assert windows_performance_cores(hybrid[:-40] + bytes(3)) == 6  # cut
    assert windows_performance_cores(bytes(64)) is None  # records without a size


def test_threads_default_to_performance_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(machine, "cores", lambda: 12)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    for found, wanted in ((4, 4), (None, 8), (20, 8)):
        monkeypatch.setattr(machine, "performance_cores", lambda found=found: found)
        assert machine.physical_cores() == wanted


def test_it_is_imported_without_posix_modules() -> None:
    program = (
        "import sys; sys.modules['resource'] = None; sys.modules['fcntl'] = None;"
        "from edgetok import machine; print(machine.cores())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(done.stdout) >= 1, done.stderr


# As on Windows, without what only POSIX systems have; modules of others came before. Kernels and
# how threads wait are this system's.
WITHOUT_POSIX = """
import os, signal, sys
import asyncio, click, filelock, jinja2, multiprocessing.connection, numpy, sysconfig
import platformdirs, prompt_toolkit.input.defaults, psutil, rich.live, rich.markdown, tokenizers
from llvmlite import binding
from types import SimpleNamespace
from edgetok.kernels_cpu.simd import target
from edgetok.kernels_cpu.program import waiting
target.sys = waiting.sys = SimpleNamespace(platform=sys.platform)
from edgetok import private_folder
sysconfig.get_config_vars()
for name in ("fcntl", "resource", "termios", "tty", "pwd", "grp"):
    sys.modules[name] = None
for name in ("fork", "getuid", "sched_getaffinity", "sched_yield", "sysconf", "O_NOFOLLOW"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGURG", "SIGTSTP", "SIGWINCH", "setitimer"):
    if hasattr(signal, name):
        delattr(signal, name)
signal.SIGBREAK = 21
sys.platform = "win32"
private_folder.os = SimpleNamespace(**{**vars(os), "name": "nt"})
import edgetok.chat, edgetok.cli.main, edgetok.model, edgetok.native.binding
import edgetok.cli.commands.chat, edgetok.cli.commands.generate
import edgetok.runtime.cpu.backend, edgetok.kernels_cpu.program.loader, edgetok.session
with edgetok.load(threads=2, context=256) as model:
    print(model.new_chat(max_tokens=8, temperature=0.0).send("Hello!").run().text)
    print(edgetok.machine.physical_cores() > 0, edgetok.machine.peak_memory_mb() > 1)
"""


def test_it_loads_and_chats_where_posix_is_not_there(
    kernel_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
    with edgetok.load(threads=2, context=256) as model:
        said = model.new_chat(max_tokens=8, temperature=0.0).send("Hello!").run().text
    assert said
    done = subprocess.run([sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True)
    assert done.stdout == f"{said}\nTrue True\n", done.stderr[-600:]
