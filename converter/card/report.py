"""The quality card: what a conversion cost, in bytes and in truth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetok.converter.card.verdict import Verdict, judge
from edgetok.formats.cache_losses import CacheLoss, loss_text

REPORT_FILE = "report.json"
_BAR_CELLS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One linear layer.

    Attributes:
        name: canonical.
        bits: as stored; 16 and 32 are not quantised.
        weight_error: |W' - W| / |W|, Frobenius.
        output_error: |(W' - W) x| / |W x| over the calibration's inputs; None where none were seen.
        group_size: inputs that share a scale; None where it is not quantised.
        nbytes: as stored; None where that is not known.
    """

    name: str
    bits: int
    weight_error: float
    output_error: float | None = None
    group_size: int | None = None
    nbytes: int | None = None

    @property
    def error(self) -> float:
        """Return the error of the output if it is known, else that of the weights."""
        return self.weight_error if self.output_error is None else self.output_error

    @property
    def stored(self) -> str:
        """Return the format of the weights in words."""
        if self.bits >= 16:
            return f"float{self.bits}"
        groups = "" if self.group_size is None else f" in groups of {self.group_size}"
        return f"{self.bits} bits{groups}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The converted model against the original on text that calibration did not see.

    Attributes:
        tokens: number of predictions compared.
        kl: mean Kullback-Leibler divergence of the original from the converted model, in nats.
        perplexity: perplexity of the converted model.
        reference_perplexity: perplexity of the original.
        top1_agreement: share of positions where both have the same most likely token.
    """

    tokens: int
    kl: float
    perplexity: float
    reference_perplexity: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class FitPoint:
    """A way to store the model: its bytes of weights, the KL to expect, nats, and a name."""

    nbytes: int
    kl: float
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The bits per tensor, and the curve of size against loss.

    Attributes:
        wanted: the goal, in words.
        curve: the best found at each size, by rising bytes.
        uniform: the same bits everywhere, for comparison.
        chosen: the size and loss that were written.
        probes: number of runs that calibrated the expected KL.
        average_bits: the width whose bytes were spread; 0: a size or a loss was given.
    """

    wanted: str
    curve: tuple[FitPoint, ...]
    uniform: tuple[FitPoint, ...]
    chosen: FitPoint
    probes: int
    average_bits: int = 0

    @property
    def words(self) -> str:
        """Return a description of the curve."""
        return (
            f"Target: {self.wanted}. The line is the best choice of bits and group sizes at "
            "each size, by the error of each tensor's output, weighted by its effect on the "
            f"answers (runs of the whole model: {self.probes}); dots have the same bits in all "
            "tensors."
        )

    def table(self, count: int = 8) -> list[tuple[str, FitPoint]]:
        """Return some points of the curve, the uniform ones and the chosen one, by rising bytes."""
        last = len(self.curve) - 1
        some = sorted({round(i * last / (count - 1)) for i in range(count)})
        rows = [("best choice", self.curve[i]) for i in some]
        rows += [(point.name, point) for point in self.uniform]
        rows.append(("this model", self.chosen))
        return sorted(rows, key=lambda row: row[1].nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The contents of `report.json`.

    Attributes:
        source: as the user gave it, without the path to it.
        family: the checkpoint's model_type.
        method: rtn, gptq or awq; none for 16 bits; optimum where the family is unknown.
        bits: bits of the linear layers.
        options: options of the conversion.
        layers: each linear layer, in execution order.
        not_quantised: why, by name of the tensor.
        notes: what else was decided, such as pairs that AWQ could not fold.
        parameters: weights of the original.
        weight_bytes: all tensors of the artefact.
        original_bytes: all tensors of the checkpoint.
        bits_per_weight: 8 * weight_bytes / parameters.
        agreement: None where it was not measured; `agreement_reason` then says why.
        time_s: seconds of this run of the conversion.
        peak_memory_mb: most memory that the process ever had resident, in 10^6 bytes.
        resumed: whether an earlier, interrupted run's work was used.
        fit: how bits were shared out; None where they are the same everywhere.
        cache: losses of caches of few bits; empty where that was not measured.
        cache_reason: why it was not.
        heads: how much each KV head looks for what was said before (`formats/head_scores.py`).
        vectors: whether the model computes vectors of texts and writes none; not in the file.
    """

    source: str
    family: str
    method: str
    bits: int
    options: Mapping[str, Any]
    layers: tuple[LayerReport, ...]
    not_quantised: Mapping[str, str]
    notes: tuple[str, ...]
    parameters: int
    weight_bytes: int
    original_bytes: int
    bits_per_weight: float
    agreement: Agreement | None
    agreement_reason: str | None
    time_s: float
    peak_memory_mb: float
    resumed: bool = False
    fit: Fit | None = None
    cache: tuple[CacheLoss, ...] = ()
    cache_reason: str | None = None
    heads: Mapping[str, Any] | None = None
    vectors: bool = False

    @property
    def verdict(self) -> Verdict | None:
        """Return the verdict; None if the model was not compared with the original."""
        result = self.agreement
        if result is None:
            return None
        return judge(
            result.kl, result.perplexity / result.reference_perplexity, result.top1_agreement
        )

    def worst_layers(self, count: int = 5) -> tuple[LayerReport, ...]:
        """Layers that lost something by falling error, of the output where that is known."""
        quantised = [layer for layer in self.layers if layer.bits < 16 and layer.error > 0]
        return tuple(sorted(quantised, key=lambda layer: layer.error, reverse=True)[:count])

    def rows(self, *, bars: bool = True) -> list[tuple[str, str]]:
        """The card as label and value, for a table; `bars` draws the worst layers' errors."""
        rows = [
            ("Source", self.source),
            ("Family", self.family),
            ("Weights", f"{self.parameters / 1e6:,.1f} M"),
            ("Method", self.method if self.bits >= 16 else f"{self.method}, {self._widths()}"),
            ("Size", f"{_mb(self.weight_bytes)} (original {_mb(self.original_bytes)})"),
            ("Bits per weight", f"{self.bits_per_weight:.2f}"),
        ]
        if self.fit is not None:
            rows.append(("Target", self.fit.wanted))
        verdict = self.verdict
        if verdict is not None:
            rows.append(("Verdict", verdict.words))
        if self.agreement is None:
            rows.append(("Agreement", f"not measured: {self.agreement_reason}"))
        else:
            result = self.agreement
            ratio = result.perplexity / result.reference_perplexity
            rows += [
                ("KL to the original", f"{result.kl:.4f} nats over {result.tokens:,} tokens"),
                (
                    "Perplexity",
                    f"{result.perplexity:.3f} (original {result.reference_perplexity:.3f}, "
                    f"ratio {ratio:.3f})",
                ),
                ("Same most likely token", f"{100 * result.top1_agreement:.1f} %"),
            ]
        if self.cache:
            words = [loss_text(loss.kv_bits, loss.kl) for loss in self.cache]
            rows.append(("KV cache", "; ".join(words)))
        elif self.cache_reason is not None:
            rows.append(("KV cache", f"not measured: {self.cache_reason}"))
        worst = self.worst_layers(3)
        for layer in worst:
            drawn = ""
            if bars:
                drawn = "█" * max(1, round(_BAR_CELLS * layer.error / worst[0].error)) + " "
            value = f"{kind_of(layer)} error {100 * layer.error:.2f} %"
            rows.append(("Worst layer", f"{drawn}{layer.name}: {value}"))
        rows += reason_rows("Not quantised", self.not_quantised)
        rows += [("Note", note) for note in self.notes]
        rows += [
            ("Time", f"{self.time_s:.1f} s" + (" (resumed)" if self.resumed else "")),
            ("Peak memory", f"{self.peak_memory_mb:,.0f} MB"),
        ]
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return plain values with stable keys."""
        values = dataclasses.asdict(self)
        agreement = values.pop("agreement")
        del values["vectors"]
        keys = [field.name for field in dataclasses.fields(Agreement)]
        values.update(agreement or dict.fromkeys(keys))
        values["verdict"] = None if self.verdict is None else self.verdict.grade
        values["worst_layers"] = [layer.name for layer in self.worst_layers()]
        return values

    def write(self, folder: Path) -> None:
        """Write `report.json`."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")

    def _widths(self) -> str:
        """Bits of the layers, of which a share has another width where they were fitted."""
        widths = {layer.bits for layer in self.layers if layer.bits < 16}
        if self.fit is None or not widths:
            return f"{self.bits} bits"
        least, most = min(widths), max(widths)
        spread = f"{least} to {most} bits" if least < most else f"{least} bits"
        average = self.fit.average_bits
        return f"{average} bits on average, {spread} by tensor" if average else spread


def reason_rows(label: str, reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return a row for each reason, with the first names that it holds for: (label, text)."""
    named: dict[str, list[str]] = {}
    for name, why in reasons.items():
        named.setdefault(why, []).append(name)
    rows = []
    for why, names in named.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        rows.append((label, f"{', '.join(names[:3])}{more}: {why}"))
    return rows


def kind_of(layer: LayerReport) -> str:
    """Return which error `LayerReport.error` is."""
    return "weight" if layer.output_error is None else "output"


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
