"""Fixtures of the format tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgetok.formats.manifest import write_manifest
from tests.formats.small_artefact import FORMATS, SPEC
from tests.rtn_artefact import random_tensors, write_artefact


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact") / "original"
    write_artefact(folder, SPEC, random_tensors(SPEC), FORMATS)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "report.json").write_text('{"weight_bytes": 1}')
    write_manifest(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))
