"""The manifest: written, read strictly, compared with the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgetok.errors import ArtefactError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import DATA_FILE, GRAPH_FILE
from edgetok.formats.manifest import (
    MANIFEST_FILE,
    read_manifest,
    verify_manifest,
    write_manifest,
)
from tests.formats.small_artefact import OURS, refused


def test_truncated_data(folder: Path) -> None:
    os.truncate(folder / DATA_FILE, (folder / DATA_FILE).stat().st_size - 1)
    refused(folder, "manifest says")
    write_manifest(folder, names=OURS)
    refused(folder, "spec and formats need")
    os.truncate(folder / DATA_FILE, 8192)
    write_manifest(folder, names=OURS)
    refused(folder, "ends at byte")


@pytest.mark.parametrize("name", [GRAPH_FILE, "tokenizer.json"])
def test_flipped_byte_in_a_small_file(name: str, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, f"hash mismatch: .*{name}")


def test_flipped_byte_in_the_weights(folder: Path) -> None:
    verify_manifest(folder)
    with open(folder / DATA_FILE, "r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    open_artefact(folder).close()
    with pytest.raises(ArtefactError, match=f"hash mismatch: .*{DATA_FILE}"):
        verify_manifest(folder)


@pytest.mark.parametrize("name", OURS)
def test_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    refused(folder, name)


@pytest.mark.parametrize("name", OURS)
def test_symbolic_link_instead_of_a_file(name: str, folder: Path) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    refused(folder, f"{name}: not a regular file")


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "not a folder")
    refused(tmp_path, "no manifest.json")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "2"}, "format '2'"),
        ({"format": 1}, "format 1"),
        ({"exporter": "evil"}, "exporter"),
        ({"exporter": ["edgetok"]}, "exporter"),
        ({"files": []}, "files"),
        ({"files": {}}, "model.onnx is not listed"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, "plain file name"),
        ({"files": {"x": {"bytes": True, "sha256": "0" * 64}}}, "whole number"),
        ({"files": {"x": {"bytes": -1, "sha256": "0" * 64}}}, "whole number"),
        ({"files": {"x": {"bytes": 1, "sha256": "0" * 63}}}, "sha256"),
        ({"files": {"x": {"bytes": 1}}}, "bytes, sha256"),
        ({"files": {"x": 3}}, "bytes, sha256"),
        ({"files": {str(i): {} for i in range(2000)}}, "at most"),
    ],
)
def test_bad_manifest(changes: dict[str, object], match: str, folder: Path) -> None:
    value = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps({**value, **changes}))
    refused(folder, match)


def test_manifest_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    write_manifest(tmp_path)
    assert json.loads((tmp_path / MANIFEST_FILE).read_text()) == {
        "format": "1",
        "exporter": "edgetok",
        "files": {
            "a.txt": {
                "bytes": 3,
                "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            }
        },
    }
    assert read_manifest(tmp_path) == verify_manifest(tmp_path)
