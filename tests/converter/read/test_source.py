"""Folders, files and hub ids of `edgetok convert`; downloads are tested in tests/library."""

import sys

import pytest

from edgetok.converter.read.source import resolve_source
from edgetok.errors import CheckpointError, MissingExtraError, OptionError
from tests.tiny import tiny_checkpoint


def test_a_folder_is_itself(tmp_path, monkeypatch):
    tiny_checkpoint("llama", tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert resolve_source("owner/name").name == "name"
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        resolve_source("file")
    with pytest.raises(OptionError, match="--revision needs a hub id"):
        resolve_source("owner/name", "main")


@pytest.mark.parametrize("source", ["../x/y", "a/b/c", "nothing", "https://host/a/b", "a/b\n"])
def test_neither_folder_nor_hub_id(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="not a hub id"):
        resolve_source(source)


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgetok\[hub\]'"):
        resolve_source("owner/name")
