import sys

import huggingface_hub
import pytest

from edgetok.converter.read.source import resolve_source
from edgetok.errors import CheckpointError, MissingExtraError, OptionError


def test_a_folder_is_itself(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_source("owner/name").name == "name"
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        resolve_source("file")
    with pytest.raises(OptionError, match="--revision needs a hub id"):
        resolve_source("owner/name", "main")


def test_the_hub_is_asked_for_weights_and_json_only(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(repository, **arguments):
        asked.update(arguments, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_source("owner/name", "main") == tmp_path
    assert asked["repository"] == "owner/name"
    assert asked["revision"] == "main"
    allowed = asked["allow_patterns"]
    assert "*.safetensors" in allowed
    assert not [pattern for pattern in allowed if pattern.endswith((".py", ".bin", "*"))
                and not pattern.startswith("LICENSE")]  # fmt: skip


@pytest.mark.parametrize("error", [OSError("no route\nto host"), ValueError("offline")])
def test_what_the_hub_cannot_give(monkeypatch, error):
    def snapshot_download(repository, **arguments):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        CheckpointError, match=r"cannot be downloaded from the hub: (no route|offline)$"
    ):
        resolve_source("owner/name")


@pytest.mark.parametrize("source", ["../x/y", "a/b/c", "nothing", "https://host/a/b", "a/b\n"])
def test_neither_folder_nor_hub_id(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="not a hub id"):
        resolve_source(source)


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgetok\[hub\]'"):
        resolve_source("owner/name")
