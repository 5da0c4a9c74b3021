import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.layout import plan
from edgetok.converter.readback import WrittenWeights
from edgetok.converter.weights import CanonicalWeights, choose_formats, survey
from edgetok.converter.workspace import partial_folder
from edgetok.errors import CheckpointError, OptionError, OutputError, UnsupportedError
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.formats.manifest import verify_manifest
from edgetok.models.registry import read_family
from tests.tiny import FAMILIES, VOCAB_SIZE, load_reference, tiny_checkpoint

SMALL = {"calibration_windows": 4, "window_tokens": 16, "reference_tokens": 32}
FILES = {
    "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json",
    "generation_config.json", "genai_config.json", "report.json", "manifest.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


class Spy:
    """A progress that remembers and, where it is told to, stops the conversion."""

    def __init__(self, stop_at=None):
        self.stages, self.units, self.stop_at = [], 0, stop_at

    def begin(self, what, total, done=0):
        self.stages.append((what, total, done))
        self.units = done

    def advance(self, units=1):
        self.units += units
        if self.stop_at is not None and self.stages[-1][0].startswith("Quantising"):
            self.stop_at -= 1
            if self.stop_at == 0:
                raise KeyboardInterrupt

    def say(self, line):
        pass


def digest(folder):
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.onnx", "model.onnx.data")
    }


def onnx_logits(artefact, tokens, exact=False):
    """onnxruntime's logits; `exact` keeps activations in float32 inside MatMulNBits."""
    path = artefact / "model.onnx"
    if exact:
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 0
        path = artefact / "exact.onnx"
        onnx.save(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            heads, dim = value.shape[1], value.shape[3]
            feed[value.name] = np.zeros((len(tokens), heads, 0, dim), np.float32)
    return session.run(["logits"], feed)[0]


def reference_with(source, written, spec):
    """transformers' logits with the weights that an artefact stands for."""
    checkpoint = open_checkpoint(source)
    family = read_family(checkpoint.config, checkpoint.generation_config)
    model = load_reference(source)
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, place in family.tensors.items():
            rows = slice(None) if place.rows is None else slice(*place.rows)
            state[place.name][rows] = torch.from_numpy(written.tensor(name)) - place.add
    return model


def written_weights(source, artefact, options):
    checkpoint = open_checkpoint(source)
    weights = CanonicalWeights(
        checkpoint, read_family(checkpoint.config, checkpoint.generation_config)
    )
    spec = weights.family.spec
    formats, _ = choose_formats(weights, options, survey(weights, Spy(), 1))
    return WrittenWeights(artefact, spec, formats, plan(spec, formats)), spec


@pytest.mark.parametrize(("bits", "tolerance"), [(16, 1e-5), (8, 0.03)])
def test_end_to_end(llama, tmp_path, bits, tolerance):
    """At 16 bits the weights are exact; at 8 only their rounding is between the two."""
    out = tmp_path / "out"
    spy = Spy()
    options = ConvertOptions(bits=bits, method="rtn", reference_tokens=64)
    report = convert(str(llama), out, options, spy)
    assert {path.name for path in out.iterdir()} == FILES
    verify_manifest(out)
    onnx.checker.check_model(str(out / "model.onnx"))
    assert not partial_folder(out).exists()
    assert [stage[0] for stage in spy.stages] == [
        "Checking weights", "Quantising", "Comparing with the original"
    ]  # fmt: skip
    assert spy.units == spy.stages[-1][1]
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 24))
    with torch.no_grad():
        expected = load_reference(llama)(torch.from_numpy(tokens)).logits.numpy()
    found = onnx_logits(out, tokens, exact=True)
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
    card = json.loads((out / "report.json").read_text())
    assert card == json.loads(json.dumps(report.to_json()))
    assert card["family"] == "llama"
    assert card["bits"] == bits
    assert card["kl"] < 0.01
    assert card["perplexity"] == pytest.approx(card["reference_perplexity"], rel=0.02)
    assert card["weight_bytes"] < card["original_bytes"]
    assert len(card["layers"]) == 3 * 7 + 2
    assert str(llama.parent) not in (out / "report.json").read_text()
    assert all(isinstance(label, str) and isinstance(value, str) for label, value in report.rows())


@pytest.mark.parametrize(
    ("family", "method"),
    [*((family, "gptq") for family in FAMILIES), ("llama", "awq"), ("olmo2", "awq")],
)
def test_calibrated_methods_for_every_family(family, method, tmp_path):
    """What onnxruntime computes is what transformers computes with the weights written."""
    source = tiny_checkpoint(family, tmp_path / "source")
    out = tmp_path / "out"
    options = ConvertOptions(bits=4, method=method, **SMALL)
    report = convert(str(source), out, options)
    assert report.agreement is not None
    assert report.not_quantised == {}
    assert all(layer.output_error is not None for layer in report.layers if "proj" in layer.name)
    assert any("no norm" in note for note in report.notes) == (
        method == "awq" and family == "olmo2"
    )
    written, spec = written_weights(source, out, options)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        expected = reference_with(source, written, spec)(torch.from_numpy(tokens)).logits.numpy()
    found = onnx_logits(out, tokens, exact=True)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_agreement_is_what_the_whole_models_give(llama, tmp_path):
    out = tmp_path / "out"
    options = ConvertOptions(bits=2, method="rtn", window_tokens=16, reference_tokens=45)
    agreement = convert(str(llama), out, options).agreement
    from edgetok.converter.calibration import split_windows, windows_of

    written, spec = written_weights(llama, out, options)
    tokens = torch.from_numpy(split_windows(windows_of(spec, options, out), 1)[1][:3])
    assert agreement.tokens == 3 * 15
    with torch.no_grad():
        theirs = load_reference(llama)(tokens).logits[:, :-1].double().log_softmax(-1)
        ours = reference_with(llama, written, spec)(tokens).logits[:, :-1].double().log_softmax(-1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    targets = tokens[:, 1:, None]
    assert agreement.kl == pytest.approx(float(kl), rel=1e-4)
    for found, logs in ((agreement.reference_perplexity, theirs), (agreement.perplexity, ours)):
        assert found == pytest.approx(float((-logs.gather(-1, targets)).mean().exp()), rel=1e-4)
    same = (theirs.argmax(-1) == ours.argmax(-1)).double().mean()
    assert agreement.top1_agreement == pytest.approx(float(same))


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_interrupted_and_resumed_gives_the_same_bytes(llama, tmp_path, method):
    options = ConvertOptions(bits=3, method=method, **SMALL)
    whole = tmp_path / "whole"
    assert not convert(str(llama), whole, options).resumed
    out = tmp_path / "out"
    for stop_at in (2, 1):
        with pytest.raises(KeyboardInterrupt):
            convert(str(llama), out, options, Spy(stop_at))
        assert not out.exists()
    spy = Spy()
    assert convert(str(llama), out, options, spy).resumed
    assert next(stage for stage in spy.stages if stage[0].startswith("Quantising"))[2] == 3
    assert digest(out) == digest(whole)


def test_killed_in_the_middle(llama, tmp_path):
    """SIGKILL when the journal holds some blocks; a former artefact stays valid meanwhile."""
    source = tiny_checkpoint("llama", tmp_path / "deep", num_hidden_layers=24)
    options = ConvertOptions(bits=4, method="rtn", reference_tokens=0)
    whole, out = tmp_path / "whole", tmp_path / "out"
    convert(str(source), whole, options)
    convert(str(llama), out, options)
    before = digest(out)
    script = (
        "import sys\nfrom edgetok.converter.convert import ConvertOptions, convert\n"
        "convert(sys.argv[1], sys.argv[2], ConvertOptions(bits=4, method='rtn',"
        " reference_tokens=0))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(source), str(out)])
    journal = partial_folder(out) / "journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"layers.") > 3:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert digest(out) == before
    verify_manifest(out)
    assert journal.exists()
    assert convert(str(source), out, options).resumed
    assert digest(out) == digest(whole)
    verify_manifest(out)


def test_disk_full_at_every_write(llama, tmp_path, monkeypatch):
    """ENOSPC at the n-th write, for every n: never a half artefact, and always resumable."""
    options = ConvertOptions(bits=4, method="rtn", reference_tokens=0)
    out = tmp_path / "out"
    convert(str(llama), out, ConvertOptions(bits=8, method="rtn", reference_tokens=0))
    before = digest(out)
    whole = tmp_path / "whole"
    convert(str(llama), whole, options)
    real_write, real_pwrite = os.write, os.pwrite
    left = 0

    def guard(real):
        def write(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        return write

    monkeypatch.setattr(os, "write", guard(real_write))
    monkeypatch.setattr(os, "pwrite", guard(real_pwrite))
    failures = 0
    finished = False
    while not finished:
        left = 7 * (failures + 1)
        try:
            convert(str(llama), out, options)
            finished = True
        except OutputError as error:
            says = str(error)
            failures += "No space left" in says
            assert digest(out) == before, says
    monkeypatch.undo()
    assert failures > 3
    assert digest(out) == digest(whole)


def test_other_options_start_afresh(llama, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert(str(llama), out, ConvertOptions(bits=4, method="rtn"), Spy(2))
    options = ConvertOptions(bits=8, method="rtn", reference_tokens=0)
    assert not convert(str(llama), out, options).resumed
    convert(str(llama), tmp_path / "whole", options)
    assert digest(out) == digest(tmp_path / "whole")


def test_source_is_never_touched(llama, tmp_path):
    before = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in llama.iterdir()}
    for bad in (llama, llama / "inside", llama.parent):
        with pytest.raises(OutputError, match=r"convert|no edgetok model"):
            convert(str(llama), bad, ConvertOptions(method="rtn"))
    convert(str(llama), tmp_path / "out", ConvertOptions(method="rtn", reference_tokens=0))
    assert before == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in llama.iterdir()}


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


def test_without_a_tokenizer(llama, tmp_path):
    source = shutil.copytree(llama, tmp_path / "bare")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    report = convert(str(source), tmp_path / "out", ConvertOptions(method="rtn"))
    assert report.agreement is None
    assert report.agreement_reason == "the checkpoint has no tokenizer"
    assert "token ids only" in report.notes[0]
    with pytest.raises(CheckpointError, match=r"needs a tokenizer\.json"):
        convert(str(source), tmp_path / "out2", ConvertOptions(method="gptq"))


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


def test_shards_give_the_same_bytes(llama, tmp_path):
    sharded = tiny_checkpoint("llama", tmp_path / "sharded", shards=3)
    options = ConvertOptions(method="rtn", reference_tokens=0)
    convert(str(llama), tmp_path / "a", options)
    convert(str(sharded), tmp_path / "b", options)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


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


def peak_mb(source, out):
    script = (
        "import sys\nfrom edgetok.converter.convert import ConvertOptions, convert\n"
        "options = ConvertOptions(bits=4, method='rtn', reference_tokens=0)\n"
        "print(convert(sys.argv[1], sys.argv[2], options).peak_memory_mb)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(out)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def test_memory_does_not_grow_with_layers(tmp_path):
    peaks = {}
    for layers in (2, 14):
        source = tiny_checkpoint(
            "llama", tmp_path / f"m{layers}", num_hidden_layers=layers, bits16=False,
            dtype=torch.bfloat16, hidden_size=384, intermediate_size=1024, head_dim=32,
        )  # fmt: skip
        peaks[layers] = peak_mb(source, tmp_path / f"out{layers}")
    # Twelve more layers are 65 MB in float32.
    assert peaks[14] - peaks[2] < 15


def test_unreadable_calibration(llama, tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\xfa")
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    for path, says in (
        (tmp_path / "absent", "cannot be read"),
        (binary, "no UTF-8"),
        (empty, "is empty"),
    ):
        with pytest.raises(OptionError, match=says):
            convert(str(llama), tmp_path / "out", ConvertOptions(calibration=path))


def test_short_calibration_text(llama, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("the small dog")
    report = convert(str(llama), tmp_path / "out", ConvertOptions(method="gptq", calibration=path))
    assert report.agreement.tokens > 0


@pytest.mark.parametrize(
    ("source", "says"),
    [("no/such/folder", "no such folder"), ("nowhere", "not a hub id"), ("a b/c", "not a hub id")],
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


def test_real_weights(data: Path, tmp_path):
    """Errors fall in the order that theory has it, on a trained model."""
    kl = {}
    for method, bits in (("rtn", 8), ("rtn", 3), ("gptq", 3), ("awq", 3)):
        options = ConvertOptions(
            bits=bits, method=method, calibration_windows=16, window_tokens=64,
            reference_tokens=512, calibration=data / "text" / "calibration.tiny.txt",
        )  # fmt: skip
        report = convert(str(data / "models" / "stories260k"), tmp_path / "out", options)
        kl[method, bits] = report.agreement.kl
    assert kl["rtn", 8] < 0.01
    assert kl["gptq", 3] < kl["rtn", 3]
    assert kl["awq", 3] < kl["rtn", 3]
