"""Bits per tensor of families with experts, states, or inputs of a layer's own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgetok.converter.allocate.sensitivity import measure
from edgetok.converter.convert import ConvertOptions, Target, convert
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.read.canonical_weights import survey
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import TensorFormat, linear_shapes, plan
from edgetok.models.operations import expert_counts, kept_at_16_bits, operations
from edgetok.runtime.cpu.backend import CpuBackend
from tests.converter.allocate.test_fit import OPTIONS, opened
from tests.converter.test_convert import Spy, onnx_logits, reference_with
from tests.tiny import (
    RENAMED,
    UNLIKE_LAYERS,
    VOCAB_SIZE,
    WITH_EXPERTS,
    WITH_STATES,
    tiny_checkpoint,
)

# The table, what is made of it, and keys that a later layer looks at.
INPUTS = [
    "embed_per_layer", "per_layer_proj", "layers.0.per_layer_gate", "layers.1.k_proj",
    "layers.2.v_proj", "layers.3.per_layer_out", "layers.4.q_proj", "layers.5.down_proj",
]  # fmt: skip


@pytest.mark.parametrize("family", sorted({*WITH_EXPERTS, *UNLIKE_LAYERS} - {*RENAMED}))
def test_expected_loss_of_experts_and_inputs(family, tmp_path):
    """One matrix at a time, all experts' as one, rounded in transformers' model.

    Experts of the last layer: behind others a token may get different ones, which nobody expects.
    """
    source = tiny_checkpoint(family, tmp_path / "source")
    weights = opened(source)
    # Of fewer tokens, which of them are drawn moves a ratio by more than two.
    windows = np.random.default_rng(2).integers(0, VOCAB_SIZE, (128, 24))
    options = ConvertOptions(method="rtn")
    result = measure(weights, options, survey(weights, Spy(), 1), windows, tmp_path, Spy(), 1)
    ops = operations(weights.family.spec)
    assert result.kl.keys() == linear_shapes(weights.family.spec).keys() - kept_at_16_bits(ops)

    def logs(changed):
        def tensor(name):
            values = weights.tensor(name)
            if name == f"{changed}.weight":
                values = rtn.quantise(values, 8, 32).dequantise()
            return values

        with torch.no_grad():
            model = reference_with(source, SimpleNamespace(tensor=tensor), weights.family.spec)
            return model(torch.from_numpy(windows)).logits.double().log_softmax(-1)

    exact, ratios = logs(None), {}
    for name in list(expert_counts(ops))[-3:] or INPUTS:
        measured = float((exact.exp() * (exact - logs(name))).sum(-1).mean())
        ratios[name] = result.kl[name][TensorFormat(8, 32, zeros=True)] / measured
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios


@pytest.mark.parametrize(
    "family", sorted({*WITH_EXPERTS, *WITH_STATES, *UNLIKE_LAYERS} - {*RENAMED})
)
def test_families_with_more_than_attention_and_a_dense_network(family, tmp_path):
    """Of several widths; routers and gates stay at 16 bits. Three engines agree on the result."""
    source, out = tiny_checkpoint(family, tmp_path / "source"), tmp_path / "out"
    target = Target(nbytes=int(0.8 * opened(source).parameters), padded=False)
    report = convert(str(source), out, OPTIONS, None, target)
    assert 0.97 * target.nbytes < report.weight_bytes <= target.nbytes
    with open_artefact(out) as artefact:
        formats, spec = artefact.formats, artefact.spec
    kept = {name for name in kept_at_16_bits(operations(spec)) if name in formats}
    assert {formats[name] for name in kept} <= {TensorFormat(16)}
    assert report.not_quantised.keys() == kept
    assert len({form.bits for name, form in formats.items() if name not in kept}) > 2
    written = WrittenWeights(out, spec, formats, plan(spec, formats))
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        expected = reference_with(source, written, spec)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(out, tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=2e-4 * np.abs(expected).max())
    backend = CpuBackend(out, compute="float32", kv_bits=32, threads=1)
    ours = backend.forward(backend.new_cache(32), tokens[0].astype(np.int32), all_logits=True)
    np.testing.assert_allclose(ours, result[0], atol=2e-4 * np.abs(expected).max())
    backend.close()
