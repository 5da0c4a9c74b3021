"""The installed package holds every module, the bundled artefact, and nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

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


def test_the_runtime_installs_neither_torch_nor_transformers(project: dict[str, Any]) -> None:
    names = {re.split(r"[\[<>=!~; ]", d)[0] for d in project["project"]["dependencies"]}
    assert not names & {"torch", "transformers", "safetensors", "optimum", "optimum-onnx", "triton"}
    extra = {
        re.split(r"[\[<>=!~; ]", d)[0]
        for d in project["project"]["optional-dependencies"]["convert"]
    }
    assert {"torch", "transformers", "safetensors"} <= extra


def test_constraints_name_their_reasons(repository: Path) -> None:
    lines = (repository / "constraints.txt").read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith("#"):
            assert above.startswith("#"), f"{line} has no reason above it"


def test_wheel(repository: Path, tmp_path: Path, project: dict[str, Any]) -> None:
    """Built from a copy, so that nothing is left behind in the checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    copy = tmp_path / "copy"
    for name in listed:
        source = repository / name
        if source.is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    built = subprocess.run(
        [
            sys.executable,
            *("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w"),
            str(tmp_path / "out"),
            str(copy),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for package in project["tool"]["setuptools"]["packages"]:
        assert f"{package.replace('.', '/')}/__init__.py" in names
    assert "edgetok/py.typed" in names
    assert "edgetok/converter/calibrate/calibration.txt" in names
    assert any(name.endswith("LICENSE") for name in names)
    for path in (repository / "models/default-4bit").iterdir():
        assert f"edgetok/models/default-4bit/{path.name}" in names
    for name in names:
        assert name.startswith("edgetok"), name
        assert not name.endswith((".safetensors", ".png")), name
        assert "/default/" not in name, name
        assert "/training/" not in name, name
    assert wheel.stat().st_size < 5 << 20
