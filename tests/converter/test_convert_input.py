"""Checkpoints, tokenizers and options that are damaged, hostile or odd."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.read.source import open_source
from edgetok.errors import (
    CheckpointError,
    OptionError,
    OutputError,
    TemplateError,
    UnsupportedError,
)
from edgetok.models import read_family
from tests.converter.test_convert import SMALL, onnx_logits
from tests.tiny import VOCAB_SIZE, tiny_checkpoint


def changed(source, folder, change, dtype=None):
    """A copy of a checkpoint with its tensors changed."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


Q0 = "model.layers.0.self_attn.q_proj.weight"


def test_nan_is_named(llama, tmp_path):
    def poison(tensors):
        tensors[Q0][3, 5] = torch.nan

    source = changed(llama, tmp_path / "bad", poison)
    with pytest.raises(CheckpointError, match=r"q_proj.weight' holds nan at \[3, 5\]"):
        convert(str(source), tmp_path / "out", ConvertOptions(method="rtn"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bits", "value", "stored"), [(16, 70000.0, 32), (4, 70000.0, 4), (2, 1e6, 32)]
)
def test_weights_beyond_float16(llama, tmp_path, bits, value, stored):
    """float32 where only float16 is the problem; the report says so."""

    def enlarge(tensors):
        tensors[Q0][3, 5] = value

    source = changed(llama, tmp_path / "big", enlarge)
    options = ConvertOptions(bits=bits, method="rtn", reference_tokens=0)
    report = convert(str(source), tmp_path / "out", options)
    layer = next(layer for layer in report.layers if layer.name == "layers.0.q_proj")
    assert layer.bits == stored
    assert ("float16" in report.not_quantised.get("layers.0.q_proj", "")) == (stored == 32)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 8))
    assert np.isfinite(onnx_logits(tmp_path / "out", tokens)).all()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda t: t.pop(Q0), CheckpointError, "q_proj.weight' is missing"),
        (lambda t: t.update({Q0: torch.zeros(3, 72)}), CheckpointError, r"shape \[3, 72\]"),
        (lambda t: t.update(extra=torch.zeros(3)), UnsupportedError, "'extra'"),
    ],
)
def test_tensors_that_do_not_fit_the_config(llama, tmp_path, change, error, says):
    source = changed(llama, tmp_path / "odd", change)
    with pytest.raises(error, match=says):
        convert(str(source), tmp_path / "out", ConvertOptions(method="rtn"))


def edit_tokenizer(folder, edit):
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda v: v["added_tokens"][0].update(content=""), "added token 0 is empty"),
        (lambda v: v["model"]["vocab"].update(zzz=400), "has id 400, but the model knows 307"),
        (lambda v: v.update(model={"type": "Nonsense"}), "not readable as a tokenizer"),
    ],
)
def test_tokenizers_that_do_not_fit(llama, tmp_path, edit, says):
    source = shutil.copytree(llama, tmp_path / "bad")
    edit_tokenizer(source, edit)
    with pytest.raises(CheckpointError, match=says):
        convert(str(source), tmp_path / "out", ConvertOptions(method="rtn"))


def test_templates_that_would_not_load(llama, tmp_path):
    """Told before the conversion and not after it."""
    source = shutil.copytree(llama, tmp_path / "bad")
    (source / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(TemplateError, match=r"line 1: .*correct the model's chat template"):
        convert(str(source), tmp_path / "out", ConvertOptions(method="rtn"))


def test_without_a_tokenizer(llama, tmp_path):
    source = shutil.copytree(llama, tmp_path / "bare")
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        convert(str(source), tmp_path / "out", ConvertOptions(method="rtn"))
    assert not (tmp_path / "out").exists()


def test_remote_code_never_runs(llama, tmp_path):
    source = shutil.copytree(llama, tmp_path / "evil")
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\nclass C: pass\n"
    for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py"):
        (source / name).write_text(code)
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_evil.C",
        "AutoModelForCausalLM": "modeling_evil.C",
    }
    (source / "config.json").write_text(json.dumps(config))
    options = ConvertOptions(method="gptq", **SMALL)
    convert(str(source), tmp_path / "out", options)
    assert not canary.exists()
    assert not list((tmp_path / "out").glob("*.py"))


def test_rounding_needs_neither_torch_nor_transformers(llama, tmp_path):
    script = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from edgetok.converter.convert import ConvertOptions, convert\n"
        "from edgetok.errors import MissingExtraError\n"
        "import importlib.util\n"
        "importlib.util.find_spec = lambda name, find=importlib.util.find_spec: (\n"
        "    None if name in ('torch', 'transformers') else find(name))\n"
        "report = convert(sys.argv[1], sys.argv[2], ConvertOptions(bits=4, method='rtn'))\n"
        "print(report.agreement_reason)\n"
        "try:\n    convert(sys.argv[1], sys.argv[2], ConvertOptions(method='awq'))\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(llama), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "needs torch and transformers: pip install 'edgetok[convert]'"
    assert lines[1].startswith("--method awq runs the model")


def test_unreadable_calibration(llama, tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\xfa")
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    for path, says in (
        (tmp_path / "absent", "cannot be read"),
        (binary, "is not UTF-8"),
        (empty, "the file is empty"),
    ):
        with pytest.raises(OptionError, match=says):
            convert(str(llama), tmp_path / "out", ConvertOptions(calibration=path))


def test_short_calibration_text(llama, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("the small dog")
    report = convert(str(llama), tmp_path / "out", ConvertOptions(method="gptq", calibration=path))
    assert report.agreement.tokens > 0


def test_a_full_disk_is_seen_before_text_is_generated(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    monkeypatch.setattr("edgetok.converter.convert.texts_of", None)  # calling it would fail
    with pytest.raises(OutputError, match=r"1 MB free, .* MB more needed"):
        convert(str(llama), tmp_path / "out", ConvertOptions(method="gptq"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no/such/folder", "no such folder"),
        ("nowhere", "not a hub id"),
        ("smolm2@v1", "smollm2@v1"),
        ("a b/c", "not a hub id"),
    ],
)
def test_sources_that_are_none(source, says, tmp_path):
    with pytest.raises(CheckpointError, match=says):
        convert(source, tmp_path / "out", ConvertOptions())


@pytest.mark.parametrize(
    "values",
    [
        {"bits": 5}, {"bits": "4"}, {"method": "magic"}, {"group_size": 48}, {"head_bits": 3},
        {"calibration_windows": 0}, {"window_tokens": 1}, {"reference_tokens": -1},
        {"damping": 0}, {"order": "odd"},
    ],
)  # fmt: skip
def test_options_out_of_range(values):
    with pytest.raises(OptionError, match=next(iter(values))):
        ConvertOptions(**values)


def test_minicpm_is_granite(tmp_path):
    """Its factors are made of other numbers; sparse attention is refused."""
    source = tiny_checkpoint("granite", tmp_path, tie_word_embeddings=True, attention_bias=False)
    config = json.loads((source / "config.json").read_text())
    names = [name for name in config if name.endswith(("_multiplier", "_scaling"))]
    own = {key: value for key, value in config.items() if key not in names}
    del own["tie_word_embeddings"]
    own |= {"model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"]}
    own |= {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 24}
    (source / "config.json").write_text(json.dumps(own))
    spec = read_family(open_source(source).config).spec
    assert (spec.family, spec.tied, spec.embed_scale) == ("granite", True, 12.0)
    assert spec.residual_scale == pytest.approx(1.4 / 3**0.5)
    assert spec.logit_scale == pytest.approx(24 / 72)
    assert spec.attn_scale == pytest.approx(24**-0.5)
    (source / "config.json").write_text(json.dumps(own | {"sparse_config": {"topk": 64}}))
    with pytest.raises(UnsupportedError, match="sparse_config"):
        open_source(source)


def test_llama_under_another_name(tmp_path):
    """The report says what it was taken for; a setting of its own, or its own rotation, is not."""
    source = tiny_checkpoint("llama", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    named = {**config, "model_type": "minicpm5", "architectures": ["MiniCpm5ForCausalLM"]}
    (source / "config.json").write_text(json.dumps(named))
    options = ConvertOptions(bits=8, method="rtn", reference_tokens=0)
    report = convert(str(source), tmp_path / "out", options)
    assert report.family == "llama"
    assert [note for note in report.notes if "model_type 'minicpm5' is not known" in note]
    (source / "config.json").write_text(json.dumps(config))
    convert(str(source), tmp_path / "plain", options)
    both = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("out", "plain")]
    assert both[0] == both[1]
    for other in ({"model_type": "helium"}, {"scale_depth": 1.4}):
        (source / "config.json").write_text(json.dumps(named | other))
        assert open_source(source).config == named | other
