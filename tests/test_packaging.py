"""The installed package holds every module, the bundled artefact, and nothing heavy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable, Iterable
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

MODELS = Path(__file__).parent.parent / "models"
SOURCES = ("edgetok", "converter", "kernels_cpu", "kernels_gpu", "models")


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())


def test_every_package_is_listed(repository: Path, project: dict[str, Any]) -> None:
    on_disk = set()
    for source in SOURCES:
        for path in (repository / source).rglob("__init__.py"):
            inside = path.parent.relative_to(repository)
            name = ".".join(inside.parts)
            on_disk.add(name if source == "edgetok" else f"edgetok.{name}")
    assert set(project["tool"]["setuptools"]["packages"]) == on_disk


def test_constraints_name_their_reasons(repository: Path) -> None:
    lines = (repository / "constraints.txt").read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith("#"):
            assert above.startswith("#"), f"{line} has no reason above it"


def copied(repository: Path, copy: Path) -> Path:
    """Copy what git knows of the sources, so that nothing is left behind in the checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        source = repository / name
        if source.is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return copy


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    copy = copied(repository, place / "copy")
    built = subprocess.run(
        [
            sys.executable,
            *("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w"),
            str(place / "out"),
            str(copy),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (result,) = (place / "out").glob("*.whl")
    return result


def names_of(requirements: Iterable[str]) -> set[str]:
    """Names of what is required without an extra."""
    return {re.split(r"[\[<>=!~; ]", one)[0] for one in requirements if "extra ==" not in one}


def test_the_runtime_installs_neither_torch_nor_transformers(
    wheel: Path, project: dict[str, Any]
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(about))
    names = names_of(metadata.get_all("Requires-Dist", []))
    assert {"numba", "llvmlite", "numpy", "tokenizers"} <= names
    assert not names & {
        *("torch", "transformers", "safetensors", "optimum", "optimum-onnx", "triton"),
        *("onnx", "onnxruntime", "protobuf"),
    }
    extras = project["project"]["optional-dependencies"]
    assert {"onnx", "torch", "transformers", "safetensors"} <= names_of(extras["convert"])
    for name in ("convert", "native"):  # they compile, whatever the wheel carries
        assert any(re.match(r"edgetok\[[^]]*\bcompile\b", one) for one in extras[name])


ASK = "from setuptools.build_meta import prepare_metadata_for_build_wheel as ask; ask({!r})"


@pytest.mark.parametrize(
    ("complete", "entry", "needed"),
    [
        (True, {"library": {}}, set()),
        (True, {}, {"llvmlite"}),
        (False, {"library": {}}, {"llvmlite", "numba"}),
        (None, {}, {"llvmlite", "numba"}),
    ],
    ids=["libraries", "objects", "some", "sources"],
)
def test_what_compiled_kernels_in_the_package_need(
    repository: Path, tmp_path: Path, complete: bool | None, entry: dict[str, Any], needed: set[str]
) -> None:
    """A wheel whose libraries have all kernels requires no compiler."""
    copy, out = copied(repository, tmp_path / "copy"), tmp_path / "out"
    out.mkdir()
    if complete is not None:
        manifest = {"complete": complete, "targets": {"a": {"library": {}}, "b": entry}}
        (copy / "kernels_cpu/compiled").mkdir()
        (copy / "kernels_cpu/compiled/kernels.json").write_text(json.dumps(manifest))
    subprocess.run(
        [sys.executable, "-c", ASK.format(str(out))], cwd=copy, check=True, capture_output=True
    )
    (about,) = out.glob("*.dist-info/METADATA")
    required = message_from_bytes(about.read_bytes()).get_all("Requires-Dist", [])
    assert names_of(required) & {"llvmlite", "numba"} == needed
    assert {"click", "numpy", "psutil", "tokenizers"} <= names_of(required)


def test_wheel(repository: Path, wheel: Path, project: dict[str, Any]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for package in project["tool"]["setuptools"]["packages"]:
        assert f"{package.replace('.', '/')}/__init__.py" in names
    assert "edgetok/py.typed" in names
    for path in (repository / "converter/calibrate/text").glob("*/*.txt"):
        assert f"edgetok/converter/calibrate/text/{path.parent.name}/{path.name}" in names
    assert any(name.endswith("LICENSE") for name in names)
    for path in (repository / "models/default-4bit").iterdir():
        assert f"edgetok/models/default-4bit/{path.name}" in names
    wrappers = repository / "edgetok/native/wrappers"
    for path in wrappers.rglob("*.*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"edgetok/native/wrappers/{path.relative_to(wrappers)}" in names
    for name in names:
        assert name.startswith("edgetok"), name
        assert not name.endswith((".safetensors", ".png")), name
        assert "/default/" not in name, name
        assert "/training/" not in name, name
    assert wheel.stat().st_size < 5 << 20


BLOCKED = (
    "onnx",
    "onnxruntime",
    "torch",
    "transformers",
    "safetensors",
    "google",
    "huggingface_hub",
)
RUN_BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv.pop(1))
import edgetok
from edgetok.cli.main import run

assert edgetok.__file__.startswith(sys.path[0]), edgetok.__file__
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def blocked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a command of the unpacked wheel without the packages of the extras."""
    place = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)

    def call(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", RUN_BLOCKED, str(place), *arguments],
            cwd=place.parent,
            input="",
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "--prompt", "Hello!", "--max-tokens", "8"),
        ("generate", "--prompt", "Once upon a time", "--max-tokens", "8", "--kv-budget", "1MB"),
        ("bench", "--prompt-tokens", "16", "--decode-tokens", "2", "--repeats", "1"),
        ("inspect", "edgetok/models/default-4bit"),
        ("verify", "edgetok/models/default-4bit", "--files-only"),
        ("eval", "edgetok/models/default-4bit", "--recall", "--cases", "1", "--distance", "128"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_base_install_runs(blocked: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    arguments = tuple(word.replace("edgetok/models", str(MODELS)) for word in arguments)
    code, out, err = blocked(*arguments)
    assert code == 0, err
    assert out.strip()


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("chat", "--prompt", "Hello!", "--device", "onnxruntime"), "onnx"),
        (("verify", "edgetok/models/default-4bit"), "onnx"),
        (("convert", "nowhere", "--out", "made"), "convert"),
        (("export", "edgetok/models/default-4bit", "--out", "made"), "convert"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_an_error_names_the_extra(
    blocked: Callable[..., Any], arguments: tuple[str, ...], extra: str
) -> None:
    arguments = tuple(word.replace("edgetok/models", str(MODELS)) for word in arguments)
    code, _, err = blocked(*arguments)
    assert code == 2
    assert f"edgetok[{extra}]" in err
    assert "Traceback" not in err


USE = """
import edgetok
from edgetok.models.spec import DecoderSpec

model = edgetok.load("x")
tokens: str = model.generate("x").tokens
model.chat([{"role": "user", "content": "x"}], temperature="hot")
spec: int = DecoderSpec.from_json("")
"""


@pytest.mark.slow
def test_a_type_checker_sees_an_editable_install(repository: Path, tmp_path: Path) -> None:
    """In another environment, by the stubs that are links to the sources (setup.py)."""
    pytest.importorskip("mypy")
    copy, python = copied(repository, tmp_path / "copy"), tmp_path / "venv/bin/python"
    if sys.platform == "win32":
        pytest.skip("the environment's paths differ")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    # pip and setuptools of this environment, which installs nothing of its own into the other.
    site = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    subprocess.run(
        [
            *(python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"),
            *("-e", copy),
        ],
        env=site,
        check=True,
    )
    (tmp_path / "use.py").write_text(USE)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", python, "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in run.stdout.splitlines() if " error: " in line]
    assert [line.partition(" error: ")[0] for line in found] == [
        *("use.py:6:", "use.py:7:", "use.py:8:")
    ]
    assert 'expression has type "tuple[int, ...]"' in found[0]
    assert 'No overload variant of "chat" of "Model"' in found[1]
    assert 'expression has type "DecoderSpec"' in found[2]
