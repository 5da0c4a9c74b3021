"""The walk-throughs of docs/ work: their code runs, block by block, as it is printed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from edgetok.cache.policies import policy
from edgetok.converter.write import onnx_lowering
from edgetok.models.layers import kind
from edgetok.runtime.cpu.lowering import lower as lowering
from tests import reference_decoder

PAGES = ("add-a-family", "add-a-policy", "add-a-layer-kind")


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory; what a page registers is forgotten afterwards."""
    for module, table in (
        (kind, "_KINDS"),
        (policy, "POLICIES"),
        (lowering, "LOWERINGS"),
        (onnx_lowering, "LOWERINGS"),
        (reference_decoder, "HOW"),
    ):
        monkeypatch.setattr(module, table, dict(getattr(module, table)))
    families = importlib.import_module("edgetok.models.families")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(repository: Path, page: str, names: dict[str, Any]) -> int:
    """Run a page's Python blocks in order; those with file=NAME are written to that file."""
    text = (repository / f"docs/{page}.md").read_text()
    found = re.findall(r"^```python(?: file=(\S+))?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for file, code in found:
        if file:
            Path(file).write_text(code)
        else:
            exec(compile(code, page, "exec", dont_inherit=True), names)
    return len(found)


def test_a_family(repository: Path, undone: Path) -> None:
    assert run_page(repository, "add-a-family", {}) == 4


def test_a_policy(repository: Path, undone: Path, default_artefact: Path) -> None:
    (undone / "artefacts").mkdir()
    (undone / "artefacts/tiny").symlink_to(default_artefact, target_is_directory=True)
    assert run_page(repository, "add-a-policy", {}) == 3


def test_a_layer_kind(repository: Path, undone: Path) -> None:
    names: dict[str, Any] = {"place_to_write": undone / "squash"}
    assert run_page(repository, "add-a-layer-kind", names) == 7


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(repository: Path, page: str) -> None:
    """Files and folders that a page names are there, but for those it tells you to write."""
    text = (repository / f"docs/{page}.md").read_text()
    own = {"models/layers/squash.py"}
    named = set(re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", text)) - own
    assert named
    for path in named:
        assert (repository / path).exists(), path
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (repository / "docs" / target).exists(), target
