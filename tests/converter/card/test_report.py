import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from edgetok.converter.card import svg
from edgetok.converter.card.html import page
from edgetok.converter.card.report import Agreement, Fit, FitPoint, LayerReport, Report
from edgetok.converter.card.verdict import judge
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.error import relative, squared_errors

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
    assert "Worst layer: ████████████ layers.0.k_proj: output error 20.00 %" in text
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
    result = rtn.quantise(weight, 3, 32)
    error, norm = squared_errors(weight, result, threads)
    exact = weight.astype(np.float64)
    assert norm == pytest.approx(np.square(exact).sum(), rel=1e-5)
    assert error == pytest.approx(np.square(result.dequantise() - exact).sum(), rel=1e-4)
    assert relative(error, norm) == pytest.approx((error / norm) ** 0.5)
    assert relative(0.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("figures", "grade"),
    [
        ((0.0, 1.0, 1.0), "indistinguishable"),
        ((0.0055, 1.004, 0.96), "indistinguishable"),  # llama.cpp's Q6_K on Llama 3 8B
        ((0.031, 1.028, 0.919), "good"),  # Q4_K_M
        ((0.10, 1.10, 0.86), "noticeable"),  # Q3_K_M
        ((0.45, 1.56, 0.711), "broken"),  # Q2_K
        ((0.0, 1.06, 1.0), "noticeable"),  # the worst decides
        ((0.0, 1.0, 0.5), "broken"),
        ((float("nan"), 1.0, 1.0), "broken"),
        ((float("inf"), 1.0, 1.0), "broken"),
    ],
)
def test_verdict(figures, grade):
    assert judge(*figures).grade == grade


def test_rows_begin_with_the_verdict_and_say_why():
    rows = make_report().rows()
    verdict = dict(rows)["Verdict"]
    assert verdict.startswith("noticeable: ")
    assert verdict.endswith("(by KL, perplexity ratio, same most likely token)")
    labels = [label for label, _ in rows]
    assert labels.index("Verdict") < labels.index("KL to the original")
    worst = [value for label, value in rows if label == "Worst layer"]
    assert [value.count("█") for value in worst] == [12, 3, 1]
    assert not any("█" in value for _, value in make_report().rows(bars=False))


class Page(HTMLParser):
    """The page's text, what a browser would fetch or run, and every plot."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.links = "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") or k[:2] == "on"]

    def handle_data(self, data):
        if self.lasttag != "style" or "{" not in data:
            self.text += data


FIT = Fit(
    wanted="at most 1.0 MB",
    curve=(FitPoint(1000, 1.0), FitPoint(2000, 0.1), FitPoint(3000, 0.01)),
    uniform=(FitPoint(2100, 0.2, "4 bits"),),
    chosen=FitPoint(2000, 0.1),
    probes=5,
)


def test_page_holds_everything_and_fetches_nothing():
    text = page(make_report(fit=FIT))
    result = Page(text)
    for words in ("noticeable", "0.2500", "1.2000", "87.5 %", "layers.0.k_proj", "20.00 %", "4.80",
                  "10 MB", "1.0 s", "too large", "at most 1.0 MB"):  # fmt: skip
        assert words in result.text, words
    assert result.links == []
    assert not {"script", "link", "img", "iframe", "object"} & set(result.tags)
    assert "url(" not in text
    assert "@import" not in text
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) == 2  # no bytes by tensor here
    for plot in plots:
        ElementTree.fromstring(plot)


def test_page_of_what_was_not_measured():
    text = Page(page(make_report(agreement=None, agreement_reason="no torch"))).text
    assert "not measured" in text
    assert "no torch" in text
    assert "broken" not in text


def test_page_shows_a_hostile_name_as_text():
    evil = '<script src="https://x.test/a.js"></script>'
    layers = (LayerReport(name=evil, bits=4, weight_error=0.5, group_size=32, nbytes=9),)
    result = Page(page(make_report(source=evil, layers=layers, notes=(evil,))))
    assert "script" not in result.tags
    assert result.text.count(evil) >= 4


def coordinates(plot, tag, name):
    return [float(e.get(name)) for e in ElementTree.fromstring(plot).iter(tag)]


def test_plots_are_to_scale():
    plot = svg.bars([("a", 0.4, ""), ("b", 0.1, ""), ("c", 0.2, "")], "x")
    widths = coordinates(plot, "rect", "width")
    assert [w / widths[0] for w in widths] == pytest.approx([1, 0.25, 0.5], abs=1e-3)
    plot = svg.stacked([("a", 3.0, ""), ("b", 1.0, "")], "x")
    wide = [w for w in coordinates(plot, "rect", "width") if w > 12]
    assert wide[0] == pytest.approx(3 * wide[1], abs=0.2)
    marks = [(10.0, 1.0, "a"), (20.0, 0.1, "b"), (30.0, 0.01, "c")]
    plot = svg.curve([(10.0, 1.0), (30.0, 0.01)], marks, "x", "x", "y")
    across, down = coordinates(plot, "circle", "cx"), coordinates(plot, "circle", "cy")
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)
    assert down[1] - down[0] == pytest.approx(down[2] - down[1], abs=0.2)
    assert down[0] < down[2]
