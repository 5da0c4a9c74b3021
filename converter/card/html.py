"""`report.html`: the quality card as one self-contained page.

Every text from a checkpoint is escaped, and the page's content policy forbids scripts and the
network, so that a hostile model name has no effect.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise

from edgetok.converter.card import svg
from edgetok.converter.card.report import LayerReport, Report, kind_of
from edgetok.converter.card.verdict import GRADES, MEANINGS, Grading

CARD_FILE = "report.html"

_WORST = 12
_STYLE = """
:root{color-scheme:light dark;--ink:#1a1c20;--page:#fff;--soft:#6b7280;--rule:#d8dbe0;--bar:#2563a8}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--page:#15171a;--soft:#9aa1ab;--rule:#373b41;
--bar:#6aa5e8}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:2rem auto;
max-width:46rem;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.4rem 0}
.soft{color:var(--soft)}.verdict{border-left:.5rem solid;padding:.6rem 1rem;margin:1rem 0}
.verdict b{font-size:1.6rem}.indistinguishable{border-color:#15803d}.good{border-color:#65a30d}
.noticeable{border-color:#d97706}.broken{border-color:#dc2626}.unknown{border-color:#6b7280}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .6rem .25rem 0;
border-bottom:1px solid var(--rule);vertical-align:top}th{font-weight:600}
td.here{font-weight:700;text-decoration:underline}
svg{width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:var(--ink)}
.end{text-anchor:end}.mid{text-anchor:middle}.start{text-anchor:start}.bar{fill:var(--bar)}
.grid{stroke:var(--rule)}.line{fill:none;stroke:var(--bar);stroke-width:2}.mark{fill:#d97706}
.c0{fill:#2563a8}.c1{fill:#d97706}.c2{fill:#15803d}.c3{fill:#9333ea}.c4{fill:#dc2626}
.c5{fill:#0e7490}.c6{fill:#a16207}.c7{fill:#6b7280}
"""


def page(report: Report) -> str:
    """Return the card of a conversion as HTML."""
    rows = "".join(
        f"<tr><th>{escape(label)}</th><td>{escape(value)}</td></tr>"
        for label, value in report.rows(bars=False)
        if label not in ("Verdict", "Worst layer")
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(report.source)}: quality card</title><style>{_STYLE}</style></head><body>"
        f'<h1>{escape(report.source)}</h1><p class="soft">Quality card of this conversion</p>'
        + _verdict(report)
        + f"<table>{rows}</table>"
        + _sizes(report)
        + _curve(report)
        + _worst(report)
        + "</body></html>\n"
    )


def _verdict(report: Report) -> str:
    verdict = report.verdict
    if verdict is None:
        reason = escape(report.agreement_reason or "")
        return f'<div class="verdict unknown"><b>not measured</b><p>{reason}</p></div>'
    head = "".join(f"<th>{grade}</th>" for grade in GRADES)
    rows = "".join(_grading(grading) for grading in verdict.gradings)
    return (
        f'<div class="verdict {verdict.grade}"><b>{verdict.grade}</b>'
        f"<p>{escape(MEANINGS[verdict.grade])}</p></div>"
        f"<table><tr><th>Measured</th>{head}</tr>{rows}</table>"
        '<p class="soft">On text that calibration did not see. The worst of the three decides: '
        "perplexity is an average and can hide a changed distribution; KL compares all of it; the "
        "most likely token decides a greedy answer. By these limits, llama.cpp's formats of 8 and "
        "6 bits are indistinguishable on a Llama of 8 billion weights, 5 and 4 bits are good, and "
        "3 bits are noticeable.</p>"
    )


def _grading(grading: Grading) -> str:
    first, last = grading.limits[0], grading.limits[-1]
    rising = first < last
    shown = [f"{limit:g}" if rising else f"{100 * limit:g} %" for limit in grading.limits]
    sign, beyond = ("≤", ">") if rising else ("≥", "<")
    texts = [f"{sign} {limit}" for limit in shown] + [f"{beyond} {shown[-1]}"]
    value = f"{grading.value:.4f}" if rising else f"{100 * grading.value:.1f} %"
    cells = "".join(
        f'<td class="here">{escape(text)}</td>'
        if grade == grading.grade
        else f"<td>{escape(text)}</td>"
        for grade, text in zip(GRADES, texts, strict=True)
    )
    return f"<tr><th>{escape(grading.figure)}: {value}</th>{cells}</tr>"


def _sizes(report: Report) -> str:
    sizes: dict[str, int] = {}
    for layer in report.layers:
        sizes[layer.stored] = sizes.get(layer.stored, 0) + (layer.nbytes or 0)
    if not any(sizes.values()):
        return ""
    other = report.weight_bytes - sum(sizes.values())
    parts = [(name, float(size), f"{size / 1e6:,.2f} MB") for name, size in sizes.items()]
    if other > 0:
        parts.append(("norms and biases", float(other), f"{other / 1e6:,.2f} MB"))
    parts.sort(key=lambda part: -part[1])
    return "<h2>Bytes by format</h2>" + svg.stacked(parts, "bytes by format")


def _curve(report: Report) -> str:
    fit = report.fit
    if fit is None or len(fit.curve) < 2:
        return ""
    marks = [(fit.chosen.nbytes / 1e6, fit.chosen.kl, "chosen")]
    marks += [(point.nbytes / 1e6, point.kl, point.name) for point in fit.uniform]
    line = [(point.nbytes / 1e6, point.kl) for point in fit.curve]
    if not all(a[0] <= b[0] for a, b in pairwise(line)):
        line.sort()
    return (
        "<h2>Size against loss</h2>"
        + svg.curve(line, marks, "expected KL by size", "weights, MB", "expected KL, nats")
        + f'<p class="soft">{escape(fit.words)}</p>'
    )


def _worst(report: Report) -> str:
    worst = report.worst_layers(_WORST)
    if not worst:
        return ""
    rows = [(layer.name, layer.error, _beside(layer)) for layer in worst]
    return (
        "<h2>Layers that lose most</h2>"
        + svg.bars(rows, "relative error of the layers that lost most")
        + '<p class="soft">|(W\' - W) x| / |W x| of each layer by itself over calibration inputs, '
        "or |W' - W| / |W| without such inputs. A large error in one layer may not affect the "
        "answers; the verdict above measures those.</p>"
    )


def _beside(layer: LayerReport) -> str:
    return f"{100 * layer.error:.2f} % ({kind_of(layer)}), {layer.stored}"
