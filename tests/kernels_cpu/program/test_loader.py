"""The cache of compiled kernels: private, keyed by what they depend on, mended when damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from edgetok.errors import EdgetokError, OptionError, OutputError
from edgetok.kernels_cpu.bandwidth.measure import read_bandwidth
from edgetok.kernels_cpu.program import compiling, costs, loader
from edgetok.kernels_cpu.simd import isa
from edgetok.kernels_cpu.simd.target import Target

MODULES = ("bandwidth.kernels",)  # small, so that it compiles quickly
WORK = costs.START_COST + costs.cost_of(MODULES)
ISA = isa.choose()
TARGET = Target.here(ISA)


@pytest.mark.skipif(os.name != "posix", reason="asks for POSIX permissions")
def test_directory_must_be_private(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(OutputError, match=r"others own or may write .* EDGETOK_CACHE_DIR"):
        loader.load(ISA, shared, modules=MODULES)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match="file"):
        loader.load(ISA, file, modules=MODULES)
    link = tmp_path / "link"
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    link.symlink_to(mine)
    with pytest.raises(OutputError, match="expected a directory"):
        loader.load(ISA, link, modules=MODULES)
    monkeypatch.setattr(os, "getuid", lambda: mine.stat().st_uid + 1)
    with pytest.raises(OutputError, match="others own"):
        loader.load(ISA, mine, modules=MODULES)
    with pytest.raises(OutputError, match=r"cannot hold compiled kernels: .*EDGETOK_CACHE_DIR"):
        loader.load(ISA, file / "below", modules=MODULES)


def test_compiles_once_and_mends_damage(tmp_path):
    seen = []
    folder = tmp_path / "cache"
    loader.load(ISA, folder, lambda *p: seen.append(p), modules=MODULES)
    assert (seen[0], seen[-1], seen.count((WORK, WORK))) == ((0, WORK), (WORK, WORK), 1)
    (path,) = folder.glob("*.o")
    assert path == loader.object_path(TARGET, MODULES[0], folder)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], whole[:200] + b"\1" + whole[201:]):
        path.write_bytes(damaged)
        assert compiling.read_object(path) is None
    seen.clear()
    kernels = loader.load(ISA, folder, lambda *p: seen.append(p), modules=MODULES)
    assert (seen[0], seen[-1]) == ((0, WORK), (WORK, WORK))
    assert [p.name for p in folder.glob("*.o")] == [path.name]
    seen.clear()
    loader.load(ISA, folder, lambda *p: seen.append(p), modules=MODULES)
    assert not seen
    assert kernels.address("read_all") > 0
    with pytest.raises(EdgetokError, match="no compiled kernel is called 'nothing'"):
        kernels.address("nothing")


def test_several_at_once(tmp_path):
    results = []

    def work():
        kernels = loader.load(ISA, tmp_path / "cache", modules=MODULES)
        results.append(read_bandwidth(kernels, 1, megabytes=1))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert min(results) > 0
    assert len(list((tmp_path / "cache").glob("*.o"))) == 1


LOAD = (
    "import sys; from pathlib import Path; from edgetok.kernels_cpu.program import loader;"
    "from edgetok.kernels_cpu.simd import isa;"
    "loader.load(isa.choose(), Path(sys.argv[1]), lambda *p: print(*p, flush=True),"
    f" modules={MODULES!r})"
)


def start_loading(cache, python):
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, str(cache)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "EDGETOK_PYTHON": str(python)},
    )  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="a shell script counts compilers")
def test_processes_that_wait_share_one_compiler(tmp_path):
    """Also when the process that compiles is killed: a waiting one goes on, and compiles once."""
    started, python = tmp_path / "started", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho >> "{started}"; sleep 1; exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    cache = tmp_path / "cache"
    first = start_loading(cache, python)
    assert first.stdout.readline() == f"0 {WORK}\n"
    others = [start_loading(cache, python) for _ in range(2)]
    for other in others:
        assert other.stdout.readline() == f"0 {WORK}\n"
    while not started.exists():
        time.sleep(0.01)
    first.kill()
    first.communicate()
    for other in others:
        assert other.communicate()[0].splitlines()[-1] == f"{WORK} {WORK}"
        assert other.returncode == 0
    assert len(started.read_text()) == 2  # the killed one's, and one for both that waited


def test_costs_name_modules():
    assert costs._COSTS.keys() == set(loader.MODULES)


def test_failure_names_the_module(tmp_path):
    with pytest.raises(EdgetokError, match=r"compiling kernels \(no_such_module, .*No module"):
        loader.load(ISA, tmp_path / "cache", modules=("no_such_module",))


@pytest.mark.skipif(os.name != "posix", reason="asks for limits of POSIX")
def test_a_folder_that_takes_no_more_is_one_line(tmp_path):
    """Files may not grow beyond 512 bytes, in the compiler's process either."""
    cache = tmp_path / "cache"
    program = (
        "import resource, sys; from pathlib import Path; from edgetok.errors import OutputError;"
        "from edgetok.kernels_cpu.program import loader;"
        "from edgetok.kernels_cpu.simd import isa;"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))\n"
        f"try: loader.load(isa.choose(), Path({str(cache)!r}), modules={MODULES!r})\n"
        "except OutputError as error: sys.exit(str(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.stderr == (
        f"{cache}: cannot hold compiled kernels: File too large; free some space, or name another "
        "folder with EDGETOK_CACHE_DIR\n"
    )
    assert [path.name for path in cache.iterdir() if path.suffix in (".o", ".partial")] == []


def test_warm_start_imports_no_numba(kernels, kernel_cache):
    program = (
        "import sys; from pathlib import Path; from edgetok.kernels_cpu.program import loader;"
        "from edgetok.kernels_cpu.simd import isa;"
        f"loader.load(isa.choose(), Path({str(kernel_cache)!r}), modules={MODULES!r});"
        "sys.exit('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 0


def test_read_bandwidth(each_kernels):
    assert 0.1 < read_bandwidth(each_kernels, 2, megabytes=4) < 10_000
    with pytest.raises(OptionError):
        read_bandwidth(each_kernels, 0)


def test_an_application_does_not_start_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.delenv("EDGETOK_PYTHON", raising=False)
    with pytest.raises(EdgetokError, match="set EDGETOK_PYTHON to a Python that has edgetok"):
        loader.load(ISA, tmp_path / "cache", modules=MODULES)
    monkeypatch.setenv("EDGETOK_PYTHON", sys.executable)
    loader.load(ISA, tmp_path / "cache", modules=MODULES)
    assert len(list((tmp_path / "cache").glob("*.o"))) == 1
