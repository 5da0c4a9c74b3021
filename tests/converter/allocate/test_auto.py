import json
import re

import numpy as np
import pytest
import tokenizers
import torch

from edgetok.converter import options as options_module
from edgetok.converter.calibrate.calibration_text import text_windows
from edgetok.converter.calibrate.openings import openings_of
from edgetok.converter.calibrate.windows import spread
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.progress import Silent
from edgetok.converter.quantise import train_model as tuning
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.errors import OptionError
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.models.registry import read_family
from tests.converter.test_convert import (
    Spy,
    digest,
    onnx_logits,
    own_text,
    reference_with,
    written_weights,
)
from tests.tiny import VOCAB_SIZE, WITH_EXPERTS, load_reference, tiny_checkpoint

FEW_STEPS = 12
# Of fewer windows nothing is learned that holds for others.
SMALL = {
    "calibration_windows": 32,
    "window_tokens": 16,
    "reference_tokens": 32,
    "uniform": True,  # test_spread.py has several widths
    "measure_cache": False,  # test_convert.py measures that of every family
}
WHOLE = {**SMALL, "measure_cache": True}  # with all that can be interrupted


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(tuning, "STEPS", FEW_STEPS)
    monkeypatch.setattr(options_module, "REFINED", FEW_STEPS)


def by_block(monkeypatch):
    """Make every model count as one that does not fit in memory several times."""
    monkeypatch.setattr(options_module, "LEARNED_WHOLE", 0)


@pytest.mark.parametrize("learns", ["scales", "codes", "codes of blocks"])
@pytest.mark.parametrize(
    "family",
    [
        *("llama", "gemma3_text", "phi3", "olmo2"),
        *(family for family in WITH_EXPERTS if family in ("gpt_oss", "qwen2_moe", "lfm2_moe")),
    ],
)
def test_every_step_for_families_that_differ(family, learns, tmp_path, monkeypatch):
    """onnxruntime computes what transformers computes with the written weights."""
    source = tiny_checkpoint(family, tmp_path / "source")
    out = tmp_path / "out"
    refine = 0 if learns == "scales" else 2 * FEW_STEPS
    options = ConvertOptions(bits=3, method="auto", refine=refine, **SMALL)
    if learns == "codes of blocks":
        by_block(monkeypatch)
    report = convert(str(source), out, options)
    assert report.method == "auto"
    if learns == "codes of blocks":
        note = next(note for note in report.notes if note.startswith("refine: a block's output"))
        after, before = (float(part) for part in re.findall(r"[0-9.]+(?=%)", note))
        assert after <= before
    else:
        assert any(note.startswith("tune: KL") for note in report.notes)
    written, spec = written_weights(source, out, options)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        expected = reference_with(source, written, spec)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(out, tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("refine", [0, FEW_STEPS])
def test_interrupted_anywhere_gives_the_same_bytes(llama, tmp_path, refine):
    options = ConvertOptions(bits=3, method="auto", refine=refine, **WHOLE)
    whole, out = tmp_path / "whole", tmp_path / "out"
    convert(str(llama), whole, options)
    with pytest.raises(KeyboardInterrupt):
        convert(str(llama), out, options, Spy(2))

    class StopsAfterTuning(Spy):
        def begin(self, what, total, done=0):
            if what.startswith("Comparing"):
                raise KeyboardInterrupt
            super().begin(what, total, done)

    with pytest.raises(KeyboardInterrupt):
        convert(str(llama), out, options, StopsAfterTuning())
    report = convert(str(llama), out, options)
    assert report.resumed
    assert digest(out) == digest(whole)


def test_killed_while_tuned_scales_are_written(llama, tmp_path, monkeypatch):
    """Half of them over the old ones: training again from that would give others."""
    from edgetok.converter.write.data_file import DataFile

    options = ConvertOptions(bits=2, method="auto", **WHOLE)
    whole, out = tmp_path / "whole", tmp_path / "out"
    convert(str(llama), whole, options)
    real, tuned = DataFile.write, []

    def write(self, name, values):
        if tuned:
            tuned.append(name)
            if len(tuned) > 4:
                raise KeyboardInterrupt
        real(self, name, values)

    def tune(*arguments, **named):
        result = tuning.tune(*arguments, **named)
        tuned.append("learned")
        assert result.tensors
        return result

    monkeypatch.setattr("edgetok.converter.quantise.block_by_block.tune", tune)
    monkeypatch.setattr(DataFile, "write", write)
    with pytest.raises(KeyboardInterrupt):
        convert(str(llama), out, options)
    monkeypatch.undo()
    convert(str(llama), out, options)
    assert digest(out) == digest(whole)


def test_tuning_changes_scales_and_vectors_alone_and_tells_the_truth(llama, tmp_path):
    """Its KL on held-out windows is what whole models in transformers give."""
    plain = ConvertOptions(bits=2, method="auto", without=("tune",), **SMALL)
    tuned = ConvertOptions(bits=2, method="auto", refine=0, **SMALL)
    convert(str(llama), tmp_path / "plain", plain)
    convert(str(llama), tmp_path / "tuned", tuned)
    before, spec = written_weights(llama, tmp_path / "plain", plain)
    after, _ = written_weights(llama, tmp_path / "tuned", tuned)
    for module in ("layers.0.q_proj", "layers.2.down_proj", "lm_head", "embed_tokens"):
        left, right = before.quantised(module), after.quantised(module)
        np.testing.assert_array_equal(left.codes, right.codes)
        np.testing.assert_array_equal(left.zeros, right.zeros)
        assert (left.scales != right.scales).any()
    checkpoint = open_checkpoint(llama)
    weights = CanonicalWeights(
        checkpoint, read_family(checkpoint.config, checkpoint.generation_config)
    )
    text, _ = text_windows(tuned, tmp_path / "tuned", 16, VOCAB_SIZE, None)
    openings = openings_of(spec, tmp_path / "tuned", text)
    own = own_text(weights, openings, (3 + 32, 16), tmp_path)[3:]  # three are held out
    windows = np.concatenate([own, text[spread(len(text), 32)]])
    result = tuning.tune(weights, before, windows, Silent())
    assert result.kl_after < result.kl_before
    held_out = torch.from_numpy(windows[7::8])
    with torch.no_grad():
        wanted = load_reference(llama)(held_out).logits.double().log_softmax(-1)
        for written, told in ((before, result.kl_before), (after, result.kl_after)):
            logits = reference_with(llama, written, spec)(held_out).logits.double()
            kl = (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean()
            assert told == pytest.approx(float(kl), rel=1e-3)


def test_refined_blocks_err_less_by_what_transformers_computes(llama, tmp_path, monkeypatch):
    """Codes and scales alone change; the first block's output is nearer to the original's."""
    by_block(monkeypatch)
    plain = ConvertOptions(bits=2, method="auto", refine=0, without=("fold",), **SMALL)
    refined = ConvertOptions(bits=2, method="auto", refine=100, without=("fold",), **SMALL)
    errors = []
    given = np.random.default_rng(0).integers(0, VOCAB_SIZE, (8, 16))
    with torch.no_grad():
        wanted = first_block(load_reference(llama), given)
    for name, options in (("plain", plain), ("refined", refined)):
        convert(str(llama), tmp_path / name, options)
        written, spec = written_weights(llama, tmp_path / name, options)
        with torch.no_grad():
            result = first_block(reference_with(llama, written, spec), given)
        errors.append(float((result - wanted).square().mean() / wanted.square().mean()))
    assert errors[1] < 0.97 * errors[0]


def first_block(model, tokens):
    return model(torch.from_numpy(tokens), output_hidden_states=True).hidden_states[1]


@pytest.mark.parametrize("refine", [None, 64])
def test_refining_changes_codes_and_lowers_kl(llama, tmp_path, refine):
    """At few bits it is part of the recipe."""
    result, text = {}, tmp_path / "text"
    text.write_text("the small dog and the little cat sat on the mat and ran to the sea. " * 40)
    for name, given in (("plain", 0), ("refined", refine)):
        options = ConvertOptions(bits=2, refine=given, calibration=text, **SMALL)
        report = convert(str(llama), tmp_path / name, options)
        written, _ = written_weights(llama, tmp_path / name, options)
        result[name] = written.quantised("layers.1.q_proj"), report
    (left, _), (right, report) = result["plain"], result["refined"]
    assert (left.codes != right.codes).any() == (refine is not None)  # 12 batches move none
    np.testing.assert_array_equal(left.zeros, right.zeros)
    note = next(note for note in report.notes if note.startswith("tune: KL"))
    before, after = (float(part) for part in note.rpartition("text ")[2].split(" -> "))
    assert after < before


def test_each_step_can_be_left_out(llama, tmp_path):
    """And each does something: no two give the same weights."""
    seen = set()
    for without in ((), ("write",), ("fold",), ("search",), ("gptq",), ("descent",), ("tune",)):
        options = ConvertOptions(bits=3, method="auto", without=without, **SMALL)
        convert(str(llama), tmp_path / "out", options)
        seen.add(digest(tmp_path / "out")["model.onnx.data"])
        card = json.loads((tmp_path / "out" / "report.json").read_text())
        assert card["options"]["without"] == list(without)
    # Random weights on random text: scales may not help, and are then not folded in.
    assert len(seen) >= 5


def test_the_head_is_rounded_for_its_inputs(data, tmp_path):
    """Its outputs err less on other text than rounded to nearest; tied or not, rows stay near."""
    source = data / "models" / "stories260k"
    text = (data / "text" / "tinystories.txt").read_text()[:4000]
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokens = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)[None, :512]
    model = load_reference(source)
    with torch.no_grad():
        states = model.base_model(tokens).last_hidden_state[0]
    weight = model.lm_head.weight.detach()
    errors, rows = [], []
    for without in (("tune", "gptq", "descent"), ("tune",)):
        options = ConvertOptions(
            bits=8, head_bits=4, without=without, calibration_windows=32, window_tokens=128,
            reference_tokens=0, measure_cache=False,
        )  # fmt: skip
        convert(str(source), tmp_path / "out", options)
        written, _ = written_weights(source, tmp_path / "out", options)
        change = torch.from_numpy(written.tensor("lm_head.weight")) - weight
        errors.append(float((states @ change.T).square().mean()))
        rows.append(float(change.square().mean()))
    assert errors[1] < 0.8 * errors[0]
    assert rows[1] < 2 * rows[0]


def test_all_steps_left_out_is_a_weighted_rounding_to_nearest(llama, tmp_path):
    options = ConvertOptions(
        bits=4,
        method="auto",
        portable=True,
        without=("fold", "search", "gptq", "descent", "tune"),
        **SMALL,
    )
    convert(str(llama), tmp_path / "out", options)
    written, _ = written_weights(llama, tmp_path / "out", options)
    result = written.quantised("layers.0.q_proj")
    state = dict(load_reference(llama).named_parameters())
    weight = state["model.layers.0.self_attn.q_proj.weight"].detach().numpy()
    scales = np.repeat(result.scales.astype(np.float64), 32, 1)[:, :72]
    zeros = np.repeat(result.zeros.astype(np.float64), 32, 1)[:, :72]
    nearest = np.clip(np.rint(weight / scales) + zeros, 0, 15)
    assert (nearest != result.codes).mean() < 1e-3


def test_options():
    with pytest.raises(OptionError, match="without is 'magic', expected one of write, fold"):
        ConvertOptions(method="auto", without=("magic",))
    with pytest.raises(OptionError, match="has no steps"):
        ConvertOptions(method="gptq", without=("tune",))
    with pytest.raises(OptionError, match="refine is 5: --method gptq trains nothing"):
        ConvertOptions(method="gptq", refine=5)
    with pytest.raises(OptionError, match="refine is 5: --without tune leaves that step out"):
        ConvertOptions(without=("tune",), refine=5)
    with pytest.raises(OptionError, match="refine is -1, expected an integer"):
        ConvertOptions(method="auto", refine=-1)
    assert ConvertOptions(bits=2).refinement(10**6) == FEW_STEPS
    assert ConvertOptions(bits=3).refinement(10**6) == FEW_STEPS
    assert ConvertOptions(bits=2).refinement(10**9) == 0
    assert ConvertOptions(bits=2, without=("tune",)).refinement(10**6) == 0
    assert ConvertOptions(bits=4).refinement(10**6) == 0
    assert ConvertOptions(bits=4, refine=7).refinement(10**9) == 7


def test_beats_gptq_on_a_trained_model(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "STEPS", 100)  # as many as users get
    source = str(data / "models" / "stories260k")
    kl = {}
    for method in ("gptq", "auto"):
        options = ConvertOptions(
            bits=3,
            method=method,
            refine=0,
            calibration_windows=64,
            window_tokens=128,
            reference_tokens=512,
            measure_cache=False,
        )
        kl[method] = convert(source, tmp_path / method, options).agreement.kl
    assert kl["auto"] < 0.9 * kl["gptq"]
