"""EmbeddingGemma against transformers, with its modules behind the model written out in NumPy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from edgetok.cli.main import run
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.errors import ContextError, UnsupportedError
from edgetok.formats.artefact import open_artefact
from edgetok.model import Model
from edgetok.models.spec import DecoderSpec
from tests.tiny import tiny_checkpoint

TEXTS = ["the small dog", "and the cat " * 100, "a", "a dog and a cat sat on the mat " * 4]
WINDOW = 16  # of both sides together: 8 before, 8 behind
HIDDEN, WIDE = 72, 88


def _modules(folder: Path, **dense: Any) -> None:
    """Files that sentence-transformers saves beside the model."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
    kinds += [("Dense", "3_Dense"), ("Normalize", "4_Normalize")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": HIDDEN,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_lasttoken": False,
        "include_prompt": True,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    rng = np.random.default_rng(7)
    for name, inputs, outputs in (("2_Dense", HIDDEN, WIDE), ("3_Dense", WIDE, HIDDEN)):
        (folder / name).mkdir()
        config = {
            "in_features": inputs,
            "out_features": outputs,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        (folder / name / "config.json").write_text(json.dumps(config | dense))
        matrix = (rng.standard_normal((outputs, inputs)) * 0.1).astype(np.float16)
        tensors = {"linear.weight": torch.from_numpy(matrix.astype(np.float32))}
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddinggemma") / "model"
    tiny_checkpoint("gemma3_text", folder, max_position_embeddings=512)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    # Not by transformers, which saves a window that it has halved already.
    config |= {
        "architectures": ["Gemma3TextModel"],
        "use_bidirectional_attention": True,
        "sliding_window": WINDOW,
    }
    path.write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    named = {name.removeprefix("model."): value for name, value in load_file(weights).items()}
    save_file(named, weights, {"format": "pt"})
    _modules(folder)
    return folder


@pytest.fixture(scope="module")
def artefact(checkpoint: Path) -> Path:
    out = checkpoint.parent / "artefact"
    report = convert(str(checkpoint), out, ConvertOptions(bits=16))
    assert report.agreement is None
    assert "no logits" in (report.agreement_reason or "")
    return out


@pytest.fixture(scope="module")
def model(artefact: Path) -> Iterator[Model]:
    with Model.load(artefact, threads=2, compute="float32", kv_bits=32) as model:
        yield model


def _matrix(checkpoint: Path, name: str) -> np.ndarray:
    return load_file(checkpoint / name / "model.safetensors")["linear.weight"].numpy()


def _hidden(checkpoint: Path, ids: list[int]) -> np.ndarray:
    """Rows that transformers gives behind the last norm, [T, hidden_size]."""
    theirs = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    assert theirs.config.sliding_window == WINDOW // 2 + 1
    with torch.no_grad():
        return theirs(torch.tensor([ids])).last_hidden_state[0].numpy()


def _expected(checkpoint: Path, ids: list[int]) -> np.ndarray:
    """Transformer, mean, Dense, Dense, Normalize."""
    vector = _hidden(checkpoint, ids).mean(0)
    for name in ("2_Dense", "3_Dense"):
        vector = (
            load_file(checkpoint / name / "model.safetensors")["linear.weight"].numpy() @ vector
        )
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("text", TEXTS)
def test_equals_transformers(checkpoint: Path, model: Model, text: str) -> None:
    ids = model.tokenize(text)
    expected = _expected(checkpoint, ids)
    (found,) = model.embed(text)
    assert found.shape == (HIDDEN,)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert float(found @ expected) > 1 - 1e-6


def test_it_sees_what_is_behind(checkpoint: Path, model: Model) -> None:
    """A test of the tests: with causal attention the vectors are far from the right ones."""
    ids = model.tokenize(TEXTS[3])
    assert len(ids) > 2 * WINDOW
    theirs = AutoModel.from_pretrained(
        checkpoint, dtype=torch.float32, use_bidirectional_attention=False
    ).eval()
    assert not theirs.config.use_bidirectional_attention
    with torch.no_grad():
        causal = theirs(torch.tensor([ids])).last_hidden_state[0].numpy()
    assert np.abs(causal - _hidden(checkpoint, ids)).max() > 0.1


def test_pooling_can_be_chosen(checkpoint: Path, model: Model) -> None:
    ids = model.tokenize(TEXTS[0])
    vector = _hidden(checkpoint, ids)[-1]
    for name in ("2_Dense", "3_Dense"):
        vector = _matrix(checkpoint, name) @ vector
    found = model.embed([ids], pooling="last", normalise=False)[0]
    np.testing.assert_allclose(found, vector, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bits", "least"), [(8, 0.999), (4, 0.9)])
def test_fewer_bits(checkpoint: Path, tmp_path: Path, bits: int, least: float) -> None:
    """`auto` rounds to nearest, and says why."""
    report = convert(str(checkpoint), tmp_path / "out", ConvertOptions(bits=bits))
    assert report.method == "rtn"
    (note,) = (note for note in report.notes if "rounded to nearest" in note)
    assert "the same bits in all layers" in note
    assert report.fit is None
    with Model.load(tmp_path / "out", threads=1) as model:
        for text in TEXTS:
            (found,) = model.embed(text)
            assert float(found @ _expected(checkpoint, model.tokenize(text))) > least


def test_onnxruntime_runs_the_graph(checkpoint: Path, artefact: Path, model: Model) -> None:
    """Two texts of different length, the shorter one padded."""
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(artefact / "model.onnx", providers=["CPUExecutionProvider"])
    texts = [model.tokenize(TEXTS[3]), model.tokenize(TEXTS[0])]
    ids = np.zeros((2, len(texts[0])), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    (vectors,) = session.run(["vectors"], {"input_ids": ids, "attention_mask": mask})
    for row, text in enumerate(texts):
        vector = vectors[row, : len(text)].mean(0)
        expected = _expected(checkpoint, text)
        np.testing.assert_allclose(vector / np.linalg.norm(vector), expected, rtol=0, atol=1e-4)


def test_refusals(
    checkpoint: Path, artefact: Path, model: Model, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(ContextError, match="trained for"):
        model.embed("the cat " * 600)
    for writes in (
        lambda: model.generate("a"),
        model.new_chat,
        lambda: model.score("the cat"),
    ):
        with pytest.raises(UnsupportedError, match="writes none; use edgetok embed"):
            writes()
    for device in ("cuda", "onnxruntime"):
        with pytest.raises(UnsupportedError, match="use --device cpu"):
            Model.load(artefact, device=device)
    with pytest.raises(UnsupportedError, match=r"--method gptq: .* --method rtn"):
        convert(str(checkpoint), tmp_path / "out", ConvertOptions(bits=4, method="gptq"))
    for form in ("native", "gptq"):
        assert run(["export", str(artefact), "--format", form, "-o", str(tmp_path / form)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "embedding model" in line


def test_modules_that_are_not_computed(checkpoint: Path, tmp_path: Path) -> None:
    for name, dense in {
        "tanh": {"activation_function": "torch.Tanh"},
        "bias": {"bias": True},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in checkpoint.iterdir():
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())
        _modules(folder, **dense)
        with pytest.raises(UnsupportedError, match=r"2_Dense/config\.json: activation"):
            convert(str(folder), tmp_path / "out", ConvertOptions(bits=16))


def test_the_spec_says_it(artefact: Path) -> None:
    with open_artefact(artefact) as opened:
        spec = opened.spec
        assert spec is not None
        assert (spec.both_sides, spec.pooling, spec.vector_sizes) == (True, "mean", (WIDE, HIDDEN))
        assert {layer.window for layer in spec.layers} == {0, WINDOW // 2 + 1}
        assert DecoderSpec.from_json(spec.to_json()) == spec
