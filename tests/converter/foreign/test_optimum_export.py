import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import GPT2Config, GPTNeoXConfig

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.progress import Silent
from edgetok.errors import MissingExtraError, UnsupportedError
from edgetok.formats.manifest import read_manifest, verify_manifest
from tests.tiny import VOCAB_SIZE, write_tokenizer

CONFIGS = {
    "gpt_neox": GPTNeoXConfig(
        vocab_size=VOCAB_SIZE, hidden_size=72, intermediate_size=100, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=72, n_inner=100, n_layer=2, n_head=4, n_positions=64
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(CONFIGS))
def checkpoint(request, tmp_path_factory):
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder, model


def logits_of(path, tokens):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    for value in session.get_inputs():
        if value.name == "position_ids":
            feed[value.name] = np.arange(tokens.shape[1])[None]
        elif value.name.startswith("past"):
            feed[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    return session.run(["logits"], feed)[0]


def test_unknown_family_is_exported(checkpoint, tmp_path):
    folder, model = checkpoint
    out = tmp_path / "out"
    said = []
    progress = Silent()
    progress.say = said.append
    options = ConvertOptions(bits=8, method="gptq", window_tokens=32, reference_tokens=64)
    report = convert(str(folder), out, options, progress)
    verify_manifest(out)
    assert read_manifest(out).exporter == "optimum"
    assert {"config.json", "tokenizer.json", "model.onnx", "model.onnx.data"} <= {
        path.name for path in out.iterdir()
    }
    assert report.method == "optimum"
    assert "not a family that edgetok describes" in said[0]
    assert any("rounded to nearest, the same bits in all" in note for note in report.notes)
    assert report.agreement.kl < 0.01
    assert report.weight_bytes < 0.6 * report.original_bytes
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == len(report.layers) == 2 * 4 + 1
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 20))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    result = logits_of(out / "model.onnx", tokens)
    assert np.linalg.norm(result - expected) < 0.05 * np.linalg.norm(expected)


def test_not_quantised(checkpoint, tmp_path):
    folder, model = checkpoint
    out = tmp_path / "out"
    report = convert(str(folder), out, ConvertOptions(bits=16, reference_tokens=0))
    assert report.layers == ()
    assert len(report.not_quantised) >= 9
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 20))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    result = logits_of(out / "model.onnx", tokens)
    # Only the embedding is rounded, to float16.
    assert np.linalg.norm(result - expected) < 2e-3 * np.linalg.norm(expected)


def test_three_bits_are_refused(checkpoint, tmp_path):
    with pytest.raises(UnsupportedError, match="no operator for 3 bits"):
        convert(str(checkpoint[0]), tmp_path / "out", ConvertOptions(bits=3))


def test_without_the_exporter(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgetok\[optimum\]'"):
        convert(str(checkpoint[0]), tmp_path / "out", ConvertOptions())


def test_an_exporter_for_another_transformers(checkpoint, tmp_path, monkeypatch):
    """A package of which only parts can be imported, as optimum beside transformers 5."""
    import optimum.exporters.onnx as exporter

    said = []
    progress = Silent()
    progress.say = said.append
    monkeypatch.delattr(exporter, "main_export", raising=False)
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx.__main__", None)
    with pytest.raises(MissingExtraError, match=r"does not run with the installed transformers"):
        convert(str(checkpoint[0]), tmp_path / "out", ConvertOptions(), progress)
    assert "not a family that edgetok describes" in said[0]


def test_remote_code_never_runs(checkpoint, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoint[0], tmp_path / "evil")
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}
    (folder / "config.json").write_text(json.dumps(config))
    convert(str(folder), tmp_path / "out", ConvertOptions(bits=4, reference_tokens=0))
    assert not canary.exists()
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()


def test_a_family_nobody_knows(checkpoint, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoint[0], tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "nobody_knows"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"optimum cannot export it either"):
        convert(str(folder), tmp_path / "out", ConvertOptions())
    assert not (tmp_path / "out").exists()
