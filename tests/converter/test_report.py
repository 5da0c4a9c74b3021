import json

import numpy as np
import pytest

from edgetok.converter import rtn
from edgetok.converter.report import Agreement, LayerReport, Report, relative, squared_errors

LAYERS = (
    LayerReport(name="layers.0.q_proj", bits=4, weight_error=0.5, output_error=0.01),
    LayerReport(name="layers.0.k_proj", bits=4, weight_error=0.1, output_error=0.2),
    LayerReport(name="layers.0.v_proj", bits=32, weight_error=0.0),
    LayerReport(name="lm_head", bits=8, weight_error=0.05),
)


def make_report(**fields):
    values = {
        "source": "owner/name", "family": "llama", "method": "gptq", "bits": 4,
        "options": {"bits": 4}, "layers": LAYERS,
        "not_quantised": {f"layers.{i}.v_proj": "too large" for i in range(5)},
        "notes": ("a note",), "parameters": 1000, "weight_bytes": 600, "original_bytes": 4000,
        "bits_per_weight": 4.8, "agreement": Agreement(
            tokens=10, kl=0.25, perplexity=6.0, reference_perplexity=5.0, top1_agreement=0.875),
        "agreement_reason": None, "time_s": 1.0, "peak_memory_mb": 10.0,
    }  # fmt: skip
    return Report(**(values | fields))


def test_worst_layers_by_output_where_known():
    names = [layer.name for layer in make_report().worst_layers()]
    assert names == ["layers.0.k_proj", "lm_head", "layers.0.q_proj"]


def test_rows_say_what_was_lost():
    rows = make_report().rows()
    text = "\n".join(f"{label}: {value}" for label, value in rows)
    assert "KL to the original: 0.2500 nats over 10 tokens" in text
    assert "Perplexity: 6.000 (original 5.000, ratio 1.200)" in text
    assert "layers.0.v_proj, layers.1.v_proj, layers.2.v_proj and 2 more: too large" in text
    assert "Worst layer: layers.0.k_proj: output error 20.00 %" in text
    assert "Note: a note" in text


def test_json_has_stable_keys(tmp_path):
    with_figures = make_report().to_json()
    without = make_report(agreement=None, agreement_reason="no torch").to_json()
    assert with_figures.keys() == without.keys()
    assert with_figures["kl"] == 0.25
    assert without["kl"] is None
    assert without["perplexity"] is None
    assert without["agreement_reason"] == "no torch"
    make_report().write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["weight_bytes"] == 600


@pytest.mark.parametrize("threads", [1, 2])
def test_squared_errors(threads):
    weight = np.random.default_rng(0).normal(0, 1, (300, 70)).astype(np.float32)
    found = rtn.quantise(weight, 3, 32)
    error, norm = squared_errors(weight, found, threads)
    exact = weight.astype(np.float64)
    assert norm == pytest.approx(np.square(exact).sum(), rel=1e-5)
    assert error == pytest.approx(np.square(found.dequantise() - exact).sum(), rel=1e-4)
    assert relative(error, norm) == pytest.approx((error / norm) ** 0.5)
    assert relative(0.0, 0.0) == 0.0
