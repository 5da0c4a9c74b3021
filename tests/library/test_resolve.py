"""Paths, names and hub ids are told apart; a conversion is used until its source changes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

import edgetok
from edgetok.converter.convert import ConvertOptions
from edgetok.converter.progress import Silent
from edgetok.errors import CheckpointError, OptionError
from edgetok.library import resolve
from edgetok.library.folder import entries, entry_for, locked, models_folder, remove
from edgetok.library.names import HubName, without_page
from tests.converter.read.gguf_writer import write_gguf
from tests.tiny import tiny_checkpoint


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model folder of the test's own, a working folder without models, and no network."""
    monkeypatch.setenv("EDGETOK_MODELS", str(tmp_path / "models-of-user"))
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def mine(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "mine"))


def test_an_artefact_is_itself(default_artefact: Path) -> None:
    assert resolve.model_folder(default_artefact) == default_artefact
    assert entries() == []
    with pytest.raises(OptionError, match="an artefact already"):
        resolve.pull(str(default_artefact))


def test_a_folder_is_converted_once_and_again_when_it_changes(mine: Path) -> None:
    said: list[str] = []
    first = resolve.pull(str(mine), ConvertOptions(method="rtn", bits=8), None, said.append)
    assert said == ["converting mine, once: 8 bits, rtn, groups of 32"]
    assert resolve.model_folder(mine, None, said.append) == first.artefact
    assert len(said) == 1
    os.utime(mine / "model.safetensors", ns=(1, 1))
    resolve.pull(str(mine), ConvertOptions(method="rtn", bits=8), None, said.append)
    assert len(said) == 2
    with edgetok.load(mine) as model:
        assert model.path == first.artefact
    with edgetok.load("mine") as model:  # the path again, relative
        assert model.path == first.artefact


def test_the_one_made_last_is_used(mine: Path) -> None:
    resolve.pull(str(mine), ConvertOptions(method="rtn", bits=8))
    four = resolve.pull(str(mine), ConvertOptions(method="rtn", bits=4))
    assert resolve.model_folder(mine) == four.artefact
    assert {entry.settings for entry in resolve.named("mine")} == {
        "8 bits, rtn, groups of 32",
        "4 bits, rtn, groups of 32",
    }
    remove(four)
    (left,) = resolve.named("mine")
    assert resolve.model_folder(mine) == left.artefact
    assert mine.is_dir()


def test_an_interrupted_conversion_is_not_used(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed if something is there to continue from."""

    class Interrupt(Silent):
        def __init__(self, stage: str) -> None:
            self.stage = stage

        def begin(self, what: str, total: int, done: int = 0) -> None:
            if what == self.stage:
                raise KeyboardInterrupt

    options = ConvertOptions(method="rtn", bits=8)
    with pytest.raises(KeyboardInterrupt):
        resolve.pull(str(mine), options, Interrupt("Checking weights"))
    assert entries() == []
    with pytest.raises(KeyboardInterrupt):
        resolve.pull(str(mine), options, Interrupt("Quantising"))
    (entry,) = entries()
    assert not entry.ready
    made = resolve.pull(str(mine), options)
    assert made.folder == entry.folder
    assert made.ready


@pytest.mark.parametrize("name", ["../outside", "..", "/", "owner/../../outside", "a\\..\\b"])
def test_names_stay_inside_of_the_model_folder(mine: Path, name: str) -> None:
    outside = models_folder(create=True).parent / "outside"
    outside.mkdir()
    (outside / "entry.json").write_text("{}")
    with pytest.raises(edgetok.CheckpointError, match="not in the model folder"):
        resolve.named(name)
    for kind in (name, f"owner/{name}"):
        assert entry_for(kind, str(mine), None).folder.parent == models_folder()
        assert "/" not in entry_for(kind, str(mine), None).folder.name
    assert (outside / "entry.json").exists()


def test_an_entry_that_is_being_made_is_not_removed(mine: Path) -> None:
    entry = resolve.pull(str(mine), ConvertOptions(method="rtn", bits=8))
    with locked(entry), pytest.raises(edgetok.OutputError, match="another process"):
        remove(entry)
    assert entry.artefact.is_dir()


def test_who_waits_for_another_process_sees_a_clock(mine: Path) -> None:
    class Clock(Silent):
        def begin(self, what: str, total: int, done: int = 0) -> None:
            seen.append(what)

        def advance(self, units: int = 1) -> None:
            seen.append("done")

    seen: list[str] = []
    lines: list[str] = []
    options = ConvertOptions(method="rtn", bits=8)
    entry = resolve.pull(str(mine), options)
    with locked(entry):
        waiting = threading.Thread(
            target=lambda: resolve.pull(str(mine), options, Clock(), lines.append)
        )
        waiting.start()
        while not seen:
            time.sleep(0.01)
        assert seen == ["Waiting for it"]
    waiting.join()
    assert seen == ["Waiting for it", "done"]
    assert [line.partition(": ")[2] for line in lines] == [
        "another process is making it; waiting ...",
        "up to date",
    ]


def test_a_damaged_entry_is_left_out(mine: Path) -> None:
    entry = resolve.pull(str(mine), ConvertOptions(method="rtn", bits=8))
    for content in (b"{", b"[]", b'{"name": 1}', b"[" * 100_000, b"\xff"):
        (entry.folder / "entry.json").write_bytes(content)
        assert entries() == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smolm2", "did you mean smollm2"),
        ("smolm2@main", "did you mean smollm2@main"),
        ("smollm2@", "as in smollm2@main; or use smollm2$"),
        ("owner/name@", "as in owner/name@main; or use owner/name$"),
        ("nope@main", "short names are .*smollm2"),
        ("@../x", "; give an artefact, a model folder"),
        ("@", "short names are"),
        ("zzzzzz", "short names are .*smollm2"),
        ("./owner/name", "no such model or folder"),
        ("artefacts/tiny", "no such model or folder"),
        ("mine/other", "no such model or folder"),
        ("a/b/c", "no such model or folder"),
        ("a/b/../c.gguf", "no such model or folder"),
    ],
)
def test_what_is_nothing(name: str, expected: str, mine: Path) -> None:
    with pytest.raises(CheckpointError, match=expected):
        resolve.model_folder(name)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("https://huggingface.co/owner/name", "owner/name"),
        ("https:/huggingface.co/owner/name", "owner/name"),  # as a path has it
        ("HTTPS://HuggingFace.co/owner/name/?library=transformers", "owner/name"),
        ("hf.co/owner/name/tree/main", "owner/name"),
        ("hf.co/owner/name/tree/v1.0", "owner/name@v1.0"),
        ("https://hf.co/owner/name/blob/main/x/y.gguf", "owner/name/x/y.gguf"),
        ("https://hf.co/owner/name/resolve/v2/y.gguf?download=true", "owner/name/y.gguf@v2"),
        ("https://example.org/owner/name", "https://example.org/owner/name"),
        ("owner/hf.co/name", "owner/hf.co/name"),
        ("smollm2", "smollm2"),
    ],
)
def test_the_address_of_a_page(page: str, expected: str) -> None:
    assert without_page(page) == expected
    parsed = HubName.parse(expected)
    assert (parsed is None) == ("example" in expected or expected == "owner/hf.co/name")


def test_what_lies_beside_a_misspelt_path(tmp_path: Path) -> None:
    (tmp_path / "default-4bit").mkdir()
    found = re.escape(f"did you mean {tmp_path / 'default-4bit'}?")
    with pytest.raises(CheckpointError, match=found):
        resolve.model_folder(str(tmp_path / "defaul-4bit"))
    with pytest.raises(CheckpointError, match="give an artefact"):
        resolve.model_folder(str(tmp_path / "zzz"))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q5_0"])
def test_integers_of_a_gguf_are_kept(tmp_path: Path, kind: str) -> None:
    from edgetok.library.settings import automatic, shown

    path = tmp_path / "a.gguf"
    source = tiny_checkpoint("llama", tmp_path / "wide", hidden_size=96, intermediate_size=160)
    write_gguf(source, path, kind)
    options, why = automatic(path)
    assert shown(path, options) == "its integers are kept"
    assert why == ""
    assert resolve.pull(str(path)).settings == "its integers are kept"
    assert [entry.name for entry in entries()] == ["a.gguf"]


def test_what_the_installed_transformers_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from edgetok.library.settings import automatic

    source = tiny_checkpoint("llama", tmp_path / "new")
    assert automatic(source)[0].method == "gptq"
    monkeypatch.delitem(CONFIG_MAPPING._mapping, "llama")  # as in a release before the family's
    options, why = automatic(source)
    assert (options.bits, options.method) == (8, "rtn")
    assert "'llama' is unknown to this release of transformers; install a newer one" in why
