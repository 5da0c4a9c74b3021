"""The bytes of one width, spread over tensors by what each loses: the default of `auto`."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetok.converter import options as options_module
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.expected_time import expected_seconds
from edgetok.converter.quantise import train_model
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import plan
from tests.converter.test_convert import SMALL, Spy, digest, onnx_logits, reference_with
from tests.tiny import VOCAB_SIZE, tiny_checkpoint

QUICK = {**SMALL, "measure_cache": False}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(train_model, "STEPS", 12)
    monkeypatch.setattr(options_module, "REFINED", 12)


@pytest.mark.parametrize(
    ("changed", "spreads"),
    [
        ({}, True), ({"bits": 2}, True), ({"bits": 3, "portable": True}, True),
        ({"without": ("tune",)}, True), ({"bits": 8}, False), ({"bits": 16}, False),
        ({"method": "gptq"}, False), ({"method": "rtn"}, False), ({"uniform": True}, False),
        ({"group_size": 32}, False), ({"head_bits": 8}, False), ({"symmetric": True}, False),
    ],
    ids=str,
)  # fmt: skip
def test_what_asks_for_one_width(changed, spreads):
    assert ConvertOptions(**changed).spreads == spreads


@pytest.fixture(scope="module")
def stages():
    return Spy()


@pytest.fixture(scope="module")
def pair(tmp_path_factory, stages):
    """A model spread and uniform."""
    source = tiny_checkpoint("gemma2", tmp_path_factory.mktemp("gemma2"))
    folder = tmp_path_factory.mktemp("pair")
    options = ConvertOptions(bits=3, without=("tune",), **QUICK)
    spread = convert(str(source), folder / "spread", options, stages)
    uniform = convert(str(source), folder / "uniform", dataclasses.replace(options, uniform=True))
    return source, folder, options, spread, uniform


def test_no_more_bytes_than_one_width_takes(pair):
    _, folder, _, spread, uniform = pair
    assert 0.98 * uniform.weight_bytes < spread.weight_bytes <= uniform.weight_bytes
    assert len({layer.bits for layer in spread.layers}) > 1
    assert uniform.fit is None
    assert {layer.bits for layer in uniform.layers} == {3, 8}
    fit = json.loads((folder / "spread" / "report.json").read_text())["fit"]
    assert fit["average_bits"] == 3
    assert fit["curve"]
    assert any(point["name"] == "3 bits in groups of 32" for point in fit["uniform"])
    rows = dict(spread.rows())
    assert rows["Method"].startswith("auto, 3 bits on average, ")
    assert "no more bytes than 3 bits in all layers" in rows["Target"]
    # The measured loss tells what a sum of losses means.
    assert spread.fit.chosen.kl == pytest.approx(spread.agreement.kl, rel=1e-6)
    assert spread.fit.probes == 1


def test_it_is_what_it_says(pair):
    """onnxruntime and transformers agree on it."""
    source, folder, *_ = pair
    out = folder / "spread"
    with open_artefact(out) as artefact:
        formats, spec = artefact.formats, artefact.spec
    written = WrittenWeights(out, spec, formats, plan(spec, formats))
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        expected = reference_with(source, written, spec)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(out, tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=2e-4 * np.abs(expected).max())


def test_measuring_is_a_stage_of_the_time_left(pair, stages):
    assert "Probing the whole model" not in [stage[0] for stage in stages.stages]
    with open_artefact(pair[1] / "spread") as artefact:
        spec = artefact.spec
    costs = expected_seconds(
        spec, 10**8, ConvertOptions(bits=4), generated=512, compared=512, measured=True
    )
    begun = [stage[0] for stage in stages.stages if stage[0] in costs]
    assert begun == [title for title in costs if title in begun]  # in the order of the plan
    assert {"Measuring sensitivity", "Quantising with auto"} <= {*begun}
    plain = expected_seconds(spec, 10**8, ConvertOptions(bits=4), generated=512, compared=512)
    assert "Measuring sensitivity" not in plain


@pytest.mark.parametrize("first_uniform", [False, True])
def test_a_journal_of_the_other_choice_is_begun_again(pair, tmp_path, first_uniform):
    """And one of the same is gone on with, without measuring twice."""
    source, folder, options, *_ = pair
    one = dataclasses.replace(options, uniform=True)
    first, then = (one, options) if first_uniform else (options, one)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert(str(source), out, first, Spy(2))
    assert not convert(str(source), out, then).resumed
    assert digest(out) == digest(folder / ("spread" if first_uniform else "uniform"))
    with pytest.raises(KeyboardInterrupt):
        convert(str(source), out, options, Spy(2))
    spy = Spy()
    assert convert(str(source), out, options, spy).resumed
    assert "Measuring sensitivity" not in [stage[0] for stage in spy.stages]
    assert digest(out) == digest(folder / "spread")


def test_portable_formats_are_those_of_other_engines(data: Path, tmp_path):
    source = str(data / "models" / "stories260k")
    options = ConvertOptions(bits=4, portable=True, without=("tune", "fold"), **QUICK)
    report = convert(source, tmp_path / "out", options)
    with open_artefact(tmp_path / "out") as artefact:
        formats = artefact.formats.values()
        assert not any(form.grouped for form in formats)
        assert len({form.bits for form in formats}) > 1
    assert report.fit.average_bits == 4


@pytest.mark.parametrize(("name", "bits"), [("stories260k", 4), ("babyllama-105", 3)])
def test_loses_less_than_one_width(data: Path, tmp_path, name, bits):
    options = ConvertOptions(
        bits=bits, without=("tune", "fold"), calibration_windows=16, window_tokens=64,
        reference_tokens=1024, measure_cache=False,
        calibration=data / "text" / "calibration.tiny.txt",
    )  # fmt: skip
    source = str(data / "models" / name)
    spread = convert(source, tmp_path / "spread", options)
    uniform = convert(source, tmp_path / "uniform", dataclasses.replace(options, uniform=True))
    assert spread.weight_bytes <= uniform.weight_bytes
    assert spread.agreement.kl < 0.9 * uniform.agreement.kl
