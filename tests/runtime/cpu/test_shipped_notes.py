"""Notes about shipped kernels that cannot be taken name the files and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgetok


@pytest.mark.parametrize("format", [0, 1])
def test_a_note_names_files_and_a_remedy(
    default_artefact: Path, tmp_path: Path, format: int
) -> None:
    """A whole folder that does not fit, and one that lacks what is wanted."""
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o700)
    (folder / "kernels.json").write_text(json.dumps({"format": format, "targets": {}}))
    with edgetok.load(default_artefact, threads=1, kernels=folder) as model:
        (note,) = (note for note in model.notes if str(folder) in note)
        assert f"the files are {folder}/MODULE-" in note
        assert ".o: remove the folder and write it again with edgetok compile --out" in note
        assert "\n" not in note
        assert model.generate("Hello", max_tokens=2).tokens
