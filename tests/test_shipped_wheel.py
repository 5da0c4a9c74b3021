"""A wheel with compiled kernels: tagged for its platform, requires and imports no compiler.

Built as `make wheel` builds it, with this machine's kernels of every model, and run from a folder,
from .pyc files alone, and as a frozen application would, without numba and llvmlite.
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
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest

from edgetok.kernels_cpu.program.loader import MODULES
from edgetok.kernels_cpu.program.shipped import library_file
from edgetok.kernels_cpu.simd.isa import choose
from edgetok.kernels_cpu.simd.target import Target
from tests.runtime.conftest import Tiny, tiny  # noqa: F401  (a fixture)
from tests.test_packaging import copied, names_of

TARGET = Target.here(choose())
TAG = "manylinux_2_17_x86_64"
# numba and llvmlite are as good as not installed, and no process is started.
RUN = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
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
def kernels(
    repository: Path,
    kernel_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder that `edgetok compile` wrote: from the cache, as other tests need them all."""
    out = tmp_path_factory.mktemp("compiled") / "kernels"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgetok.cli", "compile", "--all", "--link", "--json"),
            *("--target", TARGET.name, "--out", out),
        ],
        env={**os.environ, "EDGETOK_CACHE_DIR": str(kernel_cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot be linked" in done.stderr or "needs a C compiler" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["targets"][TARGET.name]["objects"] == len(told["modules"]) == len(MODULES)
    assert {path.name for path in out.iterdir()} == {"kernels.json", library_file(TARGET)}
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
    """The fixture does what `make wheel` does."""
    said = subprocess.run(
        ["make", "-n", "wheel"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert f"--config-settings=--build-option=--plat-name={TAG}" in said
    assert re.search(r"compile --all --link --target x86_64-linux --out kernels_cpu/compiled", said)
    elsewhere = ["make", "-n", "wheel", "PLATFORM=aarch64-linux"]
    said = subprocess.run(
        elsewhere, cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert "--plat-name=manylinux_2_17_aarch64" in said
    assert "compile --all --link --target aarch64-linux --out" in said


def test_the_wheel_is_tagged_for_its_platform(wheel: Path, kernels: Path) -> None:
    assert wheel.name.endswith(f"-py3-none-{TAG}.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        assert f"Tag: py3-none-{TAG}\n" in archive.read(about).decode()
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        required = message_from_bytes(archive.read(about)).get_all("Requires-Dist", [])
    assert "numpy" in names_of(required)
    assert names_of(required).isdisjoint({"numba", "llvmlite"})
    inside = {name.rpartition("/")[2] for name in names if "/kernels_cpu/compiled/" in name}
    assert inside == {path.name for path in kernels.iterdir()}


def test_the_first_start_compiles_nothing(
    installed: Path,
    kernel_cache: Path,
    tmp_path: Path,
) -> None:
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
        [sys.executable, "-m", "edgetok.cli", *GENERATE],
        env={**os.environ, "EDGETOK_CACHE_DIR": str(kernel_cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out == here.stdout


# Two threads, which wait for each other; prompts and single tokens; a cache that evicts.
LOGITS = """
import sys
place, light, cache, *artefacts = sys.argv[1:]
if light:
    sys.modules["numba"] = sys.modules["llvmlite"] = None
    sys.path.insert(0, place)
import hashlib
from pathlib import Path
import numpy as np
import edgetok
from edgetok.cache.limits import CacheLimits
from edgetok.runtime.cpu.backend import CpuBackend
assert edgetok.__file__.startswith(place) == bool(light), edgetok.__file__
for artefact in artefacts:
    for bits in (8, 4):
        backend = CpuBackend(artefact, threads=2, kv_bits=bits, cache_dir=Path(cache))
        digest = hashlib.sha256()
        for kv in (backend.new_cache(128), backend.new_bounded_cache(64, CacheLimits())):
            logits = backend.forward(kv, np.arange(5, 85, dtype=np.int32))
            for _ in range(12):
                digest.update(logits.tobytes())
                logits = backend.forward(kv, np.array([np.argmax(logits)], np.int32))
        print(digest.hexdigest())
        backend.close()
if light:
    assert not [name for name in ("numba", "llvmlite") if sys.modules[name]]
    assert not list(Path(cache).glob("*.o"))
"""


def test_all_kinds_of_layers_give_the_bits_of_the_editable_install(
    installed: Path,
    tiny: Callable[[str, int], Tiny],  # noqa: F811
    kernel_cache: Path,
    tmp_path: Path,
) -> None:
    """Windows, delta nets, experts, Mamba2 and short convolutions, at 2 to 8 bits."""
    models = [("gemma3_text", 2), ("qwen3_next", 4), ("granitemoehybrid", 8), ("lfm2", 3)]
    artefacts = [str(tiny(*model).artefact) for model in models]
    told = []
    for light, cache in (("light", tmp_path / "cache"), ("", kernel_cache)):
        done = subprocess.run(
            [sys.executable, "-c", LOGITS, str(installed), light, str(cache), *artefacts],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout.split())
    assert told[0] == told[1]
    assert len(set(told[0])) == 2 * len(models)


def test_what_the_wheel_lacks_names_the_extra(installed: Path, tmp_path: Path) -> None:
    """Another instruction set, changed sources, and what compiles by itself."""
    place = tmp_path / "other"
    shutil.copytree(installed, place)
    ask = (
        "error: kernels have to be compiled and the compiler, numba, is not installed: pip install"
    )
    manifest = place / "edgetok/kernels_cpu/compiled/kernels.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**told, "targets": {}}))
    code, _, err = run_edgetok(place, tmp_path / "cache", *GENERATE)
    assert code == 2
    assert f"no kernels are shipped for {TARGET.name} (program.interpreter, " in err
    assert ask.removeprefix("error: ") + " 'edgetok[compile]'" in err
    assert err.count("\n") == 1
    manifest.write_text(json.dumps(told))
    with (place / "edgetok/kernels_cpu/linear/q4.py").open("a") as source:
        source.write("# changed\n")
    code, _, err = run_edgetok(place, tmp_path / "cache", *GENERATE)
    assert code == 2
    assert "linear.q4: made from other sources" in err
    assert ask.removeprefix("error: ") + " 'edgetok[compile]'" in err
    assert err.count("\n") == 1
    code, _, err = run_edgetok(installed, tmp_path / "cache", "compile", "--out", "kernels")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(ask)


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
    assert "; kernels have to be compiled and this application has no Python" in err
    assert "Traceback" not in err
