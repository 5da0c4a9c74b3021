"""A wheel with compiled kernels: tagged for its platform, and its first start compiles nothing.

Built as `make wheel` builds it, with this machine's kernels of the bundled model, and run from a
folder, from .pyc files alone, and as a frozen application would, without numba.
"""

from __future__ import annotations

import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgetok.kernels_cpu.simd.isa import choose
from edgetok.kernels_cpu.simd.target import Target
from tests.test_packaging import copied

TARGET = Target.here(choose())
TAG = "manylinux_2_17_x86_64"
# numba is as good as not installed, and no process is started.
RUN = """
import sys
sys.modules["numba"] = None
if sys.argv[2] == "frozen":
    sys.frozen = True
sys.path.insert(0, sys.argv[1])
started = []
sys.addaudithook(lambda name, details: started.append(details) if name == "subprocess.Popen" else 0)
import edgetok
from edgetok.cli.main import run
assert edgetok.__file__.startswith(sys.argv[1]), edgetok.__file__
code = run(sys.argv[3:])
assert not started, started
sys.exit(code)
"""
GENERATE = ("generate", "--prompt", "Once upon a time", "--max-tokens", "8", "--temperature", "0")


def run_edgetok(
    place: Path, cache: Path, *arguments: str, frozen: bool = False
) -> tuple[int, str, str]:
    """A command of an installation in a folder, in a process that cannot compile."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGETOK_")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(place), "frozen" if frozen else "", *arguments],
        cwd=cache.parent,
        env={**environment, "EDGETOK_CACHE_DIR": str(cache)},
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def kernels(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `edgetok compile` wrote."""
    out = tmp_path_factory.mktemp("compiled") / "kernels"
    done = subprocess.run(
        [sys.executable, "-m", "edgetok.cli", "compile", "--out", out, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["targets"][TARGET.name]["objects"] == len(told["modules"]) > 10
    assert len(list(out.glob("*.o"))) == len(told["modules"])
    return out


@pytest.fixture(scope="module")
def wheel(repository: Path, kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    copy = copied(repository, place / "copy")
    shutil.copytree(kernels, copy / "kernels_cpu/compiled")
    built = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"),
            *("--wheel-dir", place / "out"),
            *(f"--config-settings=--build-option=--plat-name={TAG}", copy),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (result,) = (place / "out").glob("*.whl")
    return result


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("installed") / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def test_makefile_builds_it_so(repository: Path) -> None:
    """What the fixture does is what `make wheel` does."""
    said = subprocess.run(
        ["make", "-n", "wheel"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert f"--config-settings=--build-option=--plat-name={TAG}" in said
    assert re.search(r"compile --all --target x86_64-linux --out kernels_cpu/compiled", said)


def test_the_wheel_is_tagged_for_its_platform(wheel: Path, kernels: Path) -> None:
    assert wheel.name.endswith(f"-py3-none-{TAG}.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        assert f"Tag: py3-none-{TAG}\n" in archive.read(about).decode()
    inside = {name.rpartition("/")[2] for name in names if "/kernels_cpu/compiled/" in name}
    assert inside == {path.name for path in kernels.iterdir()}


def test_the_first_start_compiles_nothing(installed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code, out, err = run_edgetok(installed, cache, *GENERATE)
    assert (code, err) == (0, "")
    assert out.strip()
    code, answer, err = run_edgetok(installed, cache, "chat", "--prompt", "Hello!", frozen=True)
    assert (code, err) == (0, "")
    assert answer.strip()
    assert not list(cache.glob("*.o"))
    # The plain package gives the same text with kernels of the cache.
    here = subprocess.run(
        [sys.executable, "-m", "edgetok.cli", *GENERATE], capture_output=True, text=True, check=True
    )
    assert out == here.stdout


def test_bytecode_alone_runs_with_kernels_inside(
    installed: Path, kernels: Path, tmp_path: Path
) -> None:
    place, cache = tmp_path / "bytecode", tmp_path / "cache"
    shutil.copytree(installed, place)
    compileall.compile_dir(place, legacy=True, quiet=2)
    for path in place.rglob("*.py"):
        path.unlink()
    code, out, err = run_edgetok(place, cache, *GENERATE, frozen=True)
    assert (code, err) == (0, "")
    assert out.strip()
    shutil.rmtree(place / "edgetok/kernels_cpu/compiled")
    code, out, err = run_edgetok(place, cache, *GENERATE, "--kernels", str(kernels), frozen=True)
    assert (code, err) == (0, "")
    assert out.strip()
    code, _, err = run_edgetok(place, cache, *GENERATE, frozen=True)
    assert code == 2
    assert "error: kernels have to be compiled and this application has no Python" in err
    assert "Traceback" not in err
