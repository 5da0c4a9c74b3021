import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetok.converter.calibrate import transformers_model
from edgetok.converter.calibrate.calibration_text import text_windows
from edgetok.converter.calibrate.expert_parameters import write_stacked
from edgetok.converter.calibrate.openings import openings_of
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.originals import default_reference_tokens, why_not_calibrated
from edgetok.converter.progress import Silent
from edgetok.converter.quantise import block_by_block, train_model
from edgetok.converter.read.canonical_weights import CanonicalWeights, choose_formats, survey
from edgetok.converter.self_generated_text import write
from edgetok.converter.write.data_file import plan
from edgetok.converter.write.workspace import partial_folder
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import UnsupportedError
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.formats.manifest import verify_manifest
from edgetok.models.registry import read_family
from tests.tiny import (
    FAMILIES,
    NOT_CALIBRATED,
    RENAMED,
    UNLIKE_LAYERS,
    VOCAB_SIZE,
    WITH_EXPERTS,
    load_reference,
    tiny_checkpoint,
)

SMALL = {"calibration_windows": 4, "window_tokens": 16, "reference_tokens": 32}
FILES = {
    "config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json",
    "generation_config.json", "genai_config.json", "report.json", "report.html", "manifest.json",
}  # fmt: skip


class Spy(Silent):
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
        elif value.name.startswith(("past_conv", "past_state")):
            feed[value.name] = np.zeros((len(tokens), *value.shape[1:]), np.float32)
    return session.run(["logits"], feed)[0]


def reference_with(source, written, spec):
    """transformers' logits with the weights that an artefact stands for."""
    checkpoint = open_checkpoint(source)
    family = read_family(checkpoint.config, checkpoint.generation_config)
    model = load_reference(source)
    named = [*model.named_parameters(), *model.named_buffers()]
    state = {family.file_name(name): values for name, values in named}
    with torch.no_grad():
        for name, place in family.tensors.items():
            values = torch.from_numpy(written.tensor(name)) - place.add
            if place.stack is not None:
                write_stacked(place, state, values)
                continue
            wanted = state[place.name]
            if place.columns is not None:  # a vector, which is a row in the module
                wanted = wanted.view(-1)
            wanted[place.order(len(values))] = values
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
        "Checking weights", "Generating calibration text", "Quantising",
        "Comparing with the original", "Measuring the KV cache",
    ]  # fmt: skip
    assert spy.units == spy.stages[-1][1]
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 24))
    with torch.no_grad():
        expected = load_reference(llama)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(out, tokens, exact=True)
    assert np.linalg.norm(result - expected) < tolerance * np.linalg.norm(expected)
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
    [
        *((family, "gptq") for family in FAMILIES if family not in NOT_CALIBRATED),
        *((family, "auto") for family in (*UNLIKE_LAYERS, *RENAMED) if family not in WITH_EXPERTS),
        ("llama", "awq"),
        ("mixtral", "awq"),
        ("gpt_oss", "auto"),
        *((family, "auto") for family in ("qwen2_moe", "qwen3_5_moe_text") if family in FAMILIES),
        ("olmo2", "awq"),
    ],
)
def test_calibrated_methods_for_every_family(family, method, tmp_path, monkeypatch):
    """onnxruntime computes what transformers computes with the written weights."""
    monkeypatch.setattr(train_model, "STEPS", 12)
    source = tiny_checkpoint(family, tmp_path / "source")
    out = tmp_path / "out"
    options = ConvertOptions(bits=4, method=method, uniform=True, **SMALL)
    report = convert(str(source), out, options)
    assert report.agreement is not None
    assert set(report.not_quantised.values()) <= {"a router or a gate"}
    # The layers of Qwen3.5 and LFM3 have gates, although they have no experts.
    assert bool(report.not_quantised) == (family in (*WITH_EXPERTS, "qwen3_5_text", "lfm3"))
    assert all(
        layer.output_error is not None
        for layer in report.layers
        if "_proj" in layer.name.partition("layers.")[2]
    )
    # Gemma 4's inputs of a layer's own are gated by the stream as it is, LFM3's heads by a number;
    # a shared expert's first matrices stay as they are for the gate beside them.
    others = ("olmo2", "gemma4_text", "lfm3", "qwen2_moe", "qwen3_5_moe_text")
    unscaled = method != "gptq" and family in others
    assert any("no norm" in note for note in report.notes) == unscaled
    written, spec = written_weights(source, out, options)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        expected = reference_with(source, written, spec)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(out, tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=2e-4 * np.abs(expected).max())


def test_what_transformers_cannot_run_is_not_calibrated(tmp_path, monkeypatch):
    reason = "the installed transformers has x under another name"
    monkeypatch.setattr(transformers_model, "why_not_run", lambda _: reason)
    source = tiny_checkpoint("olmoe", tmp_path / "source")
    with pytest.raises(UnsupportedError, match=f"{reason}; use --method rtn"):
        convert(str(source), tmp_path / "out", ConvertOptions(bits=4, method="gptq", **SMALL))


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_experts_that_are_not_calibrated(family, tmp_path):
    """onnxruntime computes what transformers computes, at 16 bits and near it at 8."""
    source = tiny_checkpoint(family, tmp_path / "source")
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        expected = load_reference(source)(torch.from_numpy(tokens)).logits.numpy()
    for bits, most in ((16, 2e-3), (8, 0.1)):
        out = tmp_path / f"out{bits}"
        few = {"window_tokens": 16, "reference_tokens": 32}
        options = ConvertOptions(bits=bits, head_bits=bits, method="rtn", **few)
        report = convert(str(source), out, options)
        assert report.method == ("none" if bits == 16 else "rtn")
        assert report.agreement is not None
        result = onnx_logits(out, tokens, exact=True)
        wrong = np.linalg.norm(result - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
        # A rounded weight may change a choice between experts that are nearly as good.
        assert np.median(wrong) < most


@pytest.mark.parametrize("family", [f for f in ("qwen3_moe", "lfm2_moe") if f in FAMILIES])
def test_experts_of_odd_sizes(family, tmp_path):
    """torch cannot multiply with all of them at once, as transformers 5 does."""
    source = tiny_checkpoint(family, tmp_path / "source", moe_intermediate_size=33)
    few = {"window_tokens": 16, "reference_tokens": 32, "measure_cache": False}
    for bits, most in ((16, 1e-4), (8, 0.1)):
        options = ConvertOptions(bits=bits, method="rtn" if bits == 16 else "gptq", **few)
        report = convert(str(source), tmp_path / f"out{bits}", options)
        assert report.agreement is not None
        assert report.agreement.kl < most


@pytest.mark.parametrize("family", NOT_CALIBRATED)
def test_several_streams_are_rounded_alone(family, tmp_path):
    source = tiny_checkpoint(family, tmp_path / "source")
    reason = "several residual streams is not calibrated"
    assert reason in (why_not_calibrated(source) or "")
    with pytest.raises(UnsupportedError, match=f"{reason}; use --method rtn"):
        convert(str(source), tmp_path / "none", ConvertOptions(bits=4, **SMALL))
    out = tmp_path / "out"
    report = convert(str(source), out, ConvertOptions(bits=8, method="rtn"))
    assert reason in (report.agreement_reason or "")
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        expected = load_reference(source)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(out, tokens, exact=True)
    assert np.linalg.norm(result - expected) < 0.03 * np.linalg.norm(expected)


def test_experts_that_hardly_a_token_reaches_are_named(tmp_path):
    source = tiny_checkpoint("olmoe", tmp_path / "source")
    few = {**SMALL, "calibration_windows": 1, "reference_tokens": 0}
    report = convert(str(source), tmp_path / "out", ConvertOptions(bits=4, method="gptq", **few))
    (note,) = (note for note in report.notes if "tokens of the calibration text reach" in note)
    assert re.search(r"rounded to nearest: layers\.\d: \d", note)


@pytest.mark.parametrize("family", UNLIKE_LAYERS)
def test_layers_that_are_given_more_than_the_stream(family, tmp_path, monkeypatch):
    """A conversion goes on where it was killed; keys that later layers look at are kept for it."""
    source = tiny_checkpoint(family, tmp_path / "source")
    options = ConvertOptions(bits=4, method="gptq", **SMALL)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert convert(str(source), whole, options).agreement is not None
    quantise = block_by_block.quantise_block
    with monkeypatch.context() as patch:

        def killed(block, *rest):
            if block.index == 5:
                raise KeyboardInterrupt
            return quantise(block, *rest)

        patch.setattr(block_by_block, "quantise_block", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(str(source), resumed, options)
    assert convert(str(source), resumed, options).resumed
    assert digest(whole) == digest(resumed)


@pytest.mark.parametrize("family", ["llama", *UNLIKE_LAYERS, *RENAMED])
def test_calibration_beats_rounding(family, tmp_path):
    """Where some directions of the stream are much larger than others."""
    source = tiny_checkpoint(family, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    sizes = 4 * torch.exp(-torch.arange(embedding.shape[1]) / 12)
    tensors["model.embed_tokens.weight"] = (embedding * sizes).half().float()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    text = {"calibration_windows": 64, "window_tokens": 32, "reference_tokens": 512}
    kl = {}
    for method in ("rtn", "gptq"):
        options = ConvertOptions(bits=4, method=method, **text)
        agreement = convert(str(source), tmp_path / method, options).agreement
        assert agreement is not None
        kl[method] = agreement.kl
    assert kl["gptq"] < 0.8 * kl["rtn"]


@pytest.mark.parametrize(
    ("changed", "table"),
    [
        ({}, True), ({"head_bits": 4}, True), ({"portable": True}, False),
        ({"method": "gptq"}, False),
        ({"method": "rtn"}, False), ({"symmetric": True}, False), ({"group_size": 64}, False),
        ({"refine": 5}, False), ({"without": ("search",)}, False),
    ],
    ids=str,
)  # fmt: skip
def test_four_bits_of_auto_are_a_table(tmp_path, changed, table):
    """In groups of 32 whose inputs are whole groups; other engines and training need even codes."""
    source = tiny_checkpoint("llama", tmp_path, hidden_size=64, intermediate_size=72, head_dim=16)
    checkpoint = open_checkpoint(source)
    weights = CanonicalWeights(
        checkpoint, read_family(checkpoint.config, checkpoint.generation_config)
    )
    options = ConvertOptions(bits=4, **changed)
    formats, _ = choose_formats(weights, options, survey(weights, Spy(), 1))
    assert formats["layers.0.q_proj"].table == table
    assert formats["layers.0.q_proj"].zeros == (not table and not options.symmetric)
    assert not formats["layers.0.down_proj"].table
    assert formats["lm_head"].table == (table and options.head_bits == 4)
    assert formats["lm_head"].zeros == (not table and not options.symmetric)


def test_experts_get_no_table(tmp_path):
    source = tiny_checkpoint("olmoe", tmp_path, hidden_size=64, intermediate_size=64, head_dim=16)
    checkpoint = open_checkpoint(source)
    weights = CanonicalWeights(
        checkpoint, read_family(checkpoint.config, checkpoint.generation_config)
    )
    formats, _ = choose_formats(weights, ConvertOptions(), survey(weights, Spy(), 1))
    assert formats["layers.0.q_proj"].table
    experts = [form for name, form in formats.items() if ".experts." in name or "expert" in name]
    assert experts
    assert not any(form.table for form in experts)


def test_large_models_are_compared_on_less():
    options = ConvertOptions()
    assert [default_reference_tokens(n, options) for n in (10**8, 10**9)] == [4096, 2048]
    nearest = ConvertOptions(method="rtn")
    assert [default_reference_tokens(n, nearest) for n in (10**8, 10**9)] == [4096, 0]


def own_text(weights, openings, shape, folder):
    """Text that a conversion generates; `folder` is for the weights that it does it with."""
    greatest = survey(weights, Silent(), 1)
    return write(weights, greatest, openings, shape, folder, Silent())


def test_agreement_is_what_the_whole_models_give(llama, tmp_path):
    out = tmp_path / "out"
    options = ConvertOptions(bits=2, method="rtn", window_tokens=16, reference_tokens=45)
    agreement = convert(str(llama), out, options).agreement
    written, spec = written_weights(llama, out, options)
    checkpoint = open_checkpoint(llama)
    weights = CanonicalWeights(
        checkpoint, read_family(checkpoint.config, checkpoint.generation_config)
    )
    text, _ = text_windows(options, out, 16, VOCAB_SIZE, 1)
    openings = openings_of(spec, out, text)
    tokens = torch.from_numpy(own_text(weights, openings, (3, 16), out))
    assert agreement.tokens == 3 * 15
    with torch.no_grad():
        theirs = load_reference(llama)(tokens).logits[:, :-1].double().log_softmax(-1)
        ours = reference_with(llama, written, spec)(tokens).logits[:, :-1].double().log_softmax(-1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    targets = tokens[:, 1:, None]
    assert agreement.kl == pytest.approx(float(kl), rel=1e-4)
    for result, logs in ((agreement.reference_perplexity, theirs), (agreement.perplexity, ours)):
        assert result == pytest.approx(float((-logs.gather(-1, targets)).mean().exp()), rel=1e-4)
    same = (theirs.argmax(-1) == ours.argmax(-1)).double().mean()
    assert agreement.top1_agreement == pytest.approx(float(same))


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
