"""Download, convert once, list, use, remove: with huggingface_hub and a stand-in of the hub."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.errors import CheckpointError, OutputError
from edgetok.library import download, resolve
from edgetok.library.arriving import Arriving, shown
from tests.library.conftest import Run
from tests.library.hub_server import NEXT_COMMIT, Hub, Repository

RTN = ("--method", "rtn", "--bits", "8")


def error(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stdout + result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in result.stderr
    return line


def models(edgetok: Run) -> list[dict[str, object]]:
    listed = edgetok("list", "--json")
    assert listed.returncode == 0, listed.stderr
    return json.loads(listed.stdout)["models"]


def test_a_hub_id_is_downloaded_and_converted_once(
    edgetok: Run, hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(checkpoint, folder)
    for name in ("pytorch_model.bin", "model.py", "consolidated.safetensors", "original/a.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not wanted")
    hub.repositories["owner/tiny"] = Repository(folder)
    pulled = edgetok("pull", "owner/tiny", *RTN)
    assert pulled.returncode == 0, pulled.stderr
    assert "8 bits, rtn" in pulled.stderr
    assert "Downloading, MB" in pulled.stderr
    assert "model.safetensors" in hub.downloaded
    unwanted = {"pytorch_model.bin", "model.py", "consolidated.safetensors", "a.json"}
    assert not unwanted & set(hub.downloaded)

    (model,) = models(edgetok)
    assert (model["name"], model["settings"]) == ("owner/tiny", "8 bits, rtn, groups of 32")
    assert Path(str(model["path"])).parent.parent.stat().st_mode & 0o777 == 0o700

    before = len(hub.requests)
    answer = edgetok("generate", "owner/tiny", "a b", "--max-tokens", "2", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["generated_tokens"] >= 1
    assert len(hub.requests) == before, "a converted model needs no network"

    again = edgetok("pull", "owner/tiny", *RTN)
    assert "up to date" in again.stderr
    assert "Downloading" not in again.stderr
    hub.repositories["owner/tiny"].commit = NEXT_COMMIT
    changed = edgetok("pull", "owner/tiny", *RTN)
    assert "converting" in changed.stderr
    assert len(models(edgetok)) == 1

    assert edgetok("rm", "owner/tiny").returncode == 0
    assert models(edgetok) == []
    assert "not in the model folder" in error(edgetok("rm", "owner/tiny"))


def test_a_revision_goes_behind_an_at(edgetok: Run, hub: Hub, checkpoint: Path) -> None:
    hub.repositories["owner/tiny"] = Repository(checkpoint, revisions=("v1.0",))
    assert edgetok("pull", "owner/tiny@v1.0", *RTN).returncode == 0
    assert any(path.endswith("/revision/v1.0") for _, path, _ in hub.requests)
    (model,) = models(edgetok)
    assert model["name"] == "owner/tiny@v1.0"
    before = len(hub.requests)
    answer = edgetok("generate", "owner/tiny@v1.0", "a b", "--max-tokens", "2")
    assert answer.returncode == 0, answer.stderr
    assert len(hub.requests) == before
    assert "no such revision" in error(edgetok("pull", "owner/tiny@v2", *RTN))
    assert "no such model" in error(edgetok("pull", "owner/tiny@", *RTN))
    assert edgetok("rm", "owner/tiny@v1.0").returncode == 0


def test_a_cut_download_resumes(edgetok: Run, hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    large = Path(shutil.copytree(checkpoint, tmp_path / "large"))
    (large / "large.json").write_text(f'["{"x" * (30 << 20)}"]')
    hub.repositories["owner/tiny"] = Repository(large)
    size = (large / "large.json").stat().st_size
    hub.cut_after = size // 2  # huggingface_hub writes pieces of 10 MiB
    first = edgetok("pull", "owner/tiny", *RTN)
    if first.returncode:  # some releases go on by themselves
        assert "files that have arrived are kept" in error(first)
        assert edgetok("pull", "owner/tiny", *RTN).returncode == 0
    (resumed,) = [r for _, path, r in hub.requests if path.endswith("large.json") and r]
    start = int(resumed.removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= size // 2
    assert hub.sent["large.json"] < 2 * size - start
    assert models(edgetok)[0]["ready"]


def test_gated_missing_and_offline(edgetok: Run, hub: Hub, checkpoint: Path) -> None:
    hub.repositories["owner/gated"] = Repository(checkpoint, gated=True)
    assert "gated: accept its terms" in error(edgetok("chat", "owner/gated", "hi"))
    line = error(edgetok("chat", "https://huggingface.co/Qwen/Qwen3-0.6", "hi"))
    assert "no such repository" in line
    assert "did you mean Qwen/Qwen3-0.6B" in line
    assert "HF_HUB_OFFLINE" in error(edgetok("pull", "owner/tiny", HF_HUB_OFFLINE="1"))
    unreachable = edgetok("pull", "owner/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert "no connection" in error(unreachable)
    assert models(edgetok) == []


def left_in(folder: Path) -> list[str]:
    """Files of the model folder; locks, which are empty, are none."""
    return [p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors"])
def test_a_failed_download_leaves_no_entry(
    edgetok: Run, hub: Hub, tmp_path: Path, broken: str
) -> None:
    """What has arrived lies in the cache of huggingface_hub, and is continued there."""
    hub.broken = {broken}
    assert "cannot be downloaded" in error(edgetok("pull", "owner/tiny", *RTN))
    assert models(edgetok) == []
    assert left_in(tmp_path / "models") == []
    hub.broken = set()
    assert edgetok("pull", "owner/tiny", *RTN).returncode == 0
    assert hub.downloaded.count("tokenizer.json") == 1


def test_a_failed_conversion_leaves_no_entry(
    edgetok: Run, hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(checkpoint, tmp_path / "bad"))
    (bad / "tokenizer.json").write_text("{}")
    hub.repositories["owner/tiny"] = Repository(bad)
    assert "tokenizer.json" in error(edgetok("pull", "owner/tiny", *RTN))
    assert models(edgetok) == []
    assert left_in(tmp_path / "models") == []


def test_a_chat_asks_for_a_template_before_weights(
    edgetok: Run, hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    hub.repositories["owner/base"] = Repository(folder)
    for name in ("owner/base", str(folder)):
        assert "has no chat template" in error(edgetok("chat", name, "hi"))
    assert "model.safetensors" not in hub.downloaded
    assert models(edgetok) == []
    assert edgetok("generate", "owner/base", "hi", "--max-tokens", "1").returncode == 0
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert edgetok("chat", str(folder), "hi", "--max-tokens", "1").returncode == 0


def test_a_checkpoint_is_checked_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its weights are there if it is downloaded, else before it is converted."""
    remote = download.Remote("owner/tiny", "0" * 40, None, "checkpoint", {}, {})
    monkeypatch.setenv("EDGETOK_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(download, "look", lambda *_: remote)
    monkeypatch.setattr(download, "fetch", lambda *_: checkpoint)
    monkeypatch.setattr(resolve, "_convert", lambda entry, *_: entry)
    for name in ("owner/tiny", str(checkpoint)):
        seen: list[Path] = []
        resolve.model_folder(name, check=seen.append)
        assert seen == [checkpoint]


def test_offline_converts_what_was_downloaded(edgetok: Run, hub: Hub) -> None:
    assert edgetok("pull", "owner/tiny", *RTN).returncode == 0
    before = len(hub.requests)
    offline = edgetok("pull", "owner/tiny", "--method", "rtn", "--bits", "4", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert len(hub.requests) == before
    assert len(models(edgetok)) == 2


def test_downloads_that_cannot_be_written(edgetok: Run, tmp_path: Path) -> None:
    """A place that takes no files is not called a missing connection."""
    (tmp_path / "file").touch()
    line = error(edgetok("pull", "owner/tiny", HF_HOME=str(tmp_path / "file/hf")))
    assert f"{tmp_path}/file" in line
    assert "Not a directory; name another folder for downloads with HF_HOME" in line


class Told:
    """A receiver of progress that writes down what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int]] = []
        self.lines: list[str] = []

    def plan(self, costs: Mapping[str, float]) -> None:
        pass

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self.stages.append((what, total, done))

    def advance(self, units: int = 1) -> None:
        what, total, done = self.stages[-1]
        self.stages[-1] = (what, total, done + units)

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_megabytes_are_counted_as_they_arrive(tmp_path: Path) -> None:
    """Whole files, and parts as both kinds of huggingface_hub name them; never backwards."""
    told = Told()
    names = {"a": "1f", "b": "2e", "c": "3d"}
    arriving = Arriving(
        {name: tmp_path / blob for name, blob in names.items()},
        {"a": 10_000_000, "b": 5_000_000, "c": 5_000_000},
        tmp_path,
        names,
    )
    (tmp_path / "3d").write_bytes(bytes(5_000_000))
    with shown(told, arriving):
        assert told.stages == [("Downloading, MB", 20, 5)]
        (tmp_path / "1f.incomplete").write_bytes(bytes(4_000_000))
        (tmp_path / "2e.0011aabb.incomplete").write_bytes(bytes(9_000_000))  # more than announced
        assert arriving.nbytes() == 14_000_000
        for text in ("Retrying in 1s [Retry 1/5].", "Retrying in 2s [Retry 2/5].", "something"):
            logging.getLogger("huggingface_hub.utils._http").warning(text)
    assert told.stages == [("Downloading, MB", 20, 14)]
    assert told.lines == ["the connection failed; trying again ..."]
    for blob in ("1f", "2e"):
        (tmp_path / blob).touch()
    with shown(told, arriving):
        pass
    assert len(told.stages) == 1, "nothing is left to download"


@pytest.mark.parametrize(
    ("raised", "kind", "line"),
    [
        (OSError(28, "No space left on device"), OutputError, "No space left on device; free some"),
        (PermissionError(13, "Permission denied", "/x"), OutputError, "/x: Permission denied"),
        (ConnectionRefusedError(111, "refused"), CheckpointError, "no connection"),
        (TimeoutError(), CheckpointError, r"no connection \(TimeoutError\)"),
    ],
)
def test_what_a_download_may_meet(raised: Exception, kind: type[Exception], line: str) -> None:
    with pytest.raises(kind, match=line), download._errors("owner/tiny"):
        raise raised


def test_a_ready_artefact_is_installed_as_it_is(
    edgetok: Run, hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    convert(str(checkpoint), ready, ConvertOptions(method="rtn", bits=4, reference_tokens=0))
    hub.repositories["owner/ready"] = Repository(ready)
    pulled = edgetok("pull", "owner/ready")
    assert pulled.returncode == 0, pulled.stderr
    (model,) = models(edgetok)
    for path in ready.iterdir():
        assert (Path(str(model["path"])) / path.name).read_bytes() == path.read_bytes()
    (ready / "model.onnx.data").write_bytes(b"changed")
    hub.repositories["owner/ready"].commit = NEXT_COMMIT
    error(edgetok("pull", "owner/ready"))
    assert edgetok("verify", "--files-only", "owner/ready").returncode == 0, "the former one stays"


def test_an_artefact_of_which_nothing_arrived_is_not_listed(
    edgetok: Run, hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    convert(str(checkpoint), ready, ConvertOptions(method="rtn", bits=4, reference_tokens=0))
    hub.repositories["owner/ready"] = Repository(ready)
    hub.broken = {"manifest.json"}
    error(edgetok("pull", "owner/ready"))
    assert models(edgetok) == []
    assert left_in(tmp_path / "models") == []

    hub.broken = {"tokenizer.json"}  # the last one
    error(edgetok("pull", "owner/ready"))
    (model,) = models(edgetok)
    assert not model["ready"]
    assert int(str(model["bytes"])) > (ready / "model.onnx.data").stat().st_size
    hub.broken = set()
    assert edgetok("pull", "owner/ready").returncode == 0
    assert hub.downloaded.count("model.onnx.data") == 1
    assert [model["ready"] for model in models(edgetok)] == [True]


def test_two_processes_convert_once(edgetok: Run, hub: Hub) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: edgetok("pull", "owner/tiny", *RTN), range(2)))
    assert [r.returncode for r in results] == [0, 0], [r.stderr for r in results]
    assert sum("converting" in r.stderr for r in results) == 1


def test_without_huggingface_hub(edgetok: Run, tmp_path: Path) -> None:
    with (tmp_path / "without/sitecustomize.py").open("a") as file:
        file.write("\nsys.modules['huggingface_hub'] = None")
    line = error(edgetok("chat", "owner/tiny", "hi"))
    assert "pip install 'edgetok[hub]'" in line


@pytest.mark.skipif(sys.platform == "win32", reason="no such modes on Windows")
def test_a_folder_that_others_may_write_is_refused(edgetok: Run, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models").chmod(0o777)
    line = error(edgetok("list"))
    assert "EDGETOK_MODELS" in line
