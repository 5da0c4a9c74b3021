"""Vectors of texts against transformers, from a checkpoint as embedding models are saved."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from edgetok.cli.main import cli, run
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.errors import ContextError, OptionError, UnsupportedError
from edgetok.model import Model
from tests.fake import fake_model
from tests.tiny import tiny_checkpoint

TEXTS = ["the small dog", "and the cat " * 30, "a"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names without `model.`; no output head, though it is not tied; `modules.json`."""
    folder = tmp_path_factory.mktemp("embed") / "model"
    tiny_checkpoint("qwen3", folder, max_position_embeddings=512, tie_word_embeddings=False)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("lm_head.weight")
    named = {name.removeprefix("model."): values for name, values in tensors.items()}
    save_file(named, path, {"format": "pt"})
    (folder / "modules.json").write_text("[]")
    return folder


@pytest.fixture(scope="module")
def artefact(checkpoint: Path) -> Path:
    out = checkpoint.parent / "artefact"
    report = convert(str(checkpoint), out, ConvertOptions(bits=16, reference_tokens=0))
    assert not any("left out" in note for note in report.notes)
    return out


@pytest.fixture(scope="module")
def model(artefact: Path) -> Iterator[Model]:
    with Model.load(artefact, threads=1, compute="float32", kv_bits=32) as model:
        yield model


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("normalise", [True, False])
def test_equals_transformers(checkpoint: Path, model: Model, pooling: str, normalise: bool) -> None:
    theirs = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    expected = []
    for text in TEXTS:
        ids = torch.tensor([model.tokenize(text)])
        with torch.no_grad():
            hidden = theirs(ids).last_hidden_state[0]
        vector = hidden[-1] if pooling == "last" else hidden.mean(0)
        expected.append((vector / vector.norm() if normalise else vector).numpy())
    found = model.embed(TEXTS, pooling=pooling, normalise=normalise)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)


def test_beside_answers(model: Model) -> None:
    """A conversation goes on as if nothing had been embedded."""
    options = {"temperature": 0.0, "max_tokens": 20}
    alone = model.generate("the cat", **options).tokens
    stream = model.stream("the cat", **options)
    before = model.embed(TEXTS)
    iterator = iter(stream)
    next(iterator, None)
    np.testing.assert_array_equal(model.embed(TEXTS), before)
    assert stream.run().tokens == alone


def test_bad_input(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="trained for"):
        model.embed("the cat " * 600)
    with pytest.raises(OptionError, match="pooling is 'max'"):
        model.embed("a", pooling="max")
    with pytest.raises(OptionError):
        model.embed([3])  # type: ignore[list-item]
    with pytest.raises(UnsupportedError, match="use --device cpu"):
        fake_model(tmp_path / "fake").embed("one")


def test_the_command(
    artefact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = CliRunner()
    arguments = ["embed", str(artefact), "--threads", "1", "--device", "cpu"]
    plain = runner.invoke(cli, [*arguments, *TEXTS[:2]], catch_exceptions=False)
    lines = [json.loads(line) for line in plain.stdout.splitlines()]
    assert [len(line) for line in lines] == [72, 72]
    assert np.linalg.norm(lines[0]) == pytest.approx(1.0, abs=1e-5)
    answered = runner.invoke(
        cli, [*arguments, "--json"], input="\n".join(TEXTS[:2]) + "\n", catch_exceptions=False
    )
    values = json.loads(answered.stdout)
    assert values["embeddings"] == lines
    stdin = f"\n{TEXTS[1]}\n  \n"
    for words in (["-"], [TEXTS[0], "-"]):  # as in rerank
        mixed = runner.invoke(cli, [*arguments, *words], input=stdin, catch_exceptions=False)
        found = [json.loads(line) for line in mixed.stdout.splitlines()]
        assert found == lines[2 - len(words) :]
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\n\udcff\n"))
    assert run([*arguments, "-"]) == 2
    assert capsys.readouterr().err == "error: stdin, line 3: not UTF-8 text\n"
