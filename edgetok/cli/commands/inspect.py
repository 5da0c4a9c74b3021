"""`edgetok inspect`: show what an artefact contains."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.formats.cache_losses import cache_losses, loss_text
from edgetok.models.spec import DecoderSpec


@click.command(
    "inspect",
    epilog=common.examples(
        "edgetok inspect artefacts/default-4bit", "edgetok inspect artefacts/default-4bit --json"
    ),
)
@common.MODEL
@common.JSON
def command(model: Path, as_json: bool) -> None:
    """Show bits, sizes, structure and quality card of MODEL, without running it."""
    from edgetok.formats.artefact import open_artefact

    model = common.model_folder(model, quiet=as_json)
    with open_artefact(model) as artefact:
        values = describe(artefact)
    if as_json:
        streams.print_json(values)
    else:
        streams.print_table(str(model), _rows(values))


def describe(artefact: Any) -> dict[str, Any]:
    """Return what an artefact contains as JSON values with stable keys."""
    spec = artefact.spec
    formats = {}
    for name, form in artefact.formats.items():
        formats[name] = {"bits": form.bits, "group_size": form.group_size}
    return {
        "exporter": artefact.manifest.exporter,
        "identity": artefact.identity,
        "weight_bytes": artefact.weight_bytes,
        "table_bytes": artefact.table_bytes,
        "bits_per_weight": artefact.bits_per_weight,
        "files": {name: record.nbytes for name, record in artefact.manifest.files.items()},
        "spec": None if spec is None else json.loads(spec.to_json()),
        "formats": formats,
        "report": artefact.report,
    }


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("Size", streams.megabytes(sum(values["files"].values()))),
        ("Weights", streams.megabytes(values["weight_bytes"])),
    ]
    if values["table_bytes"]:
        table = streams.megabytes(values["table_bytes"])
        rows.append(("Left on disk", f"{table} of them, a table of which each token reads a row"))
    if values["bits_per_weight"] is not None:
        rows.append(("Bits per weight", f"{values['bits_per_weight']:.2f}"))
    spec = values["spec"]
    if spec is None:
        rows.append(("Graph", f"exported by {values['exporter']}; runs in onnxruntime"))
    else:
        decoder = DecoderSpec.from_json(json.dumps(spec))
        windows = Counter(layer.window for layer in decoder.layers)
        heads = Counter(
            decoder.kv_sizes(i) for i, x in enumerate(decoder.layers) if x.attention is not None
        )
        shared = sum(x.attention.shares >= 0 for x in decoder.layers if x.attention is not None)
        rows += [
            ("Family", spec["family"]),
            (
                "Layers",
                f"{len(spec['layers'])}, hidden {spec['hidden_size']:,}, "
                f"inner {spec['intermediate_size']:,}",
            ),
            (
                "Heads",
                f"{spec['num_heads']} queries"
                + "".join(
                    f"; {kv_heads} keys and values, {dim} dims in {count} layers"
                    if len(heads) > 1
                    else f", {kv_heads} keys and values, {dim} dims"
                    for (kv_heads, dim), count in heads.items()
                ),
            ),
            ("Vocabulary", f"{spec['vocab_size']:,}" + (", tied head" if spec["tied"] else "")),
            ("Context", f"{spec['context_tokens']:,} tokens"),
        ]
        if set(windows) != {0}:
            text = ", ".join(
                f"{count} layers of {'all' if not window else f'{window:,}'} tokens"
                for window, count in sorted(windows.items())
            )
            rows.append(("Attention", text))
        if shared:
            rows.append(("Shared", f"{shared} layers use keys and values of earlier ones"))
        kinds: dict[str, Counter[str]] = {}
        for name, form in values["formats"].items():
            kind = f"{form['bits']} bits"
            if form["bits"] < 16:
                kind += f", groups of {form['group_size']}"
            kinds.setdefault(kind, Counter())[name.rpartition(".")[2]] += 1
        for kind, names in kinds.items():
            listed = ", ".join(f"{count} {name}" for name, count in names.items())
            rows.append(("Stored", f"{kind}: {listed}"))
    report = values["report"] or {}
    if report.get("method"):
        rows.append(("Method", str(report["method"])))
    if report.get("verdict") is not None:
        rows.append(("Verdict", str(report["verdict"])))
    if report.get("kl") is not None:
        rows.append(("KL to the original", f"{report['kl']:.4f} nats"))
    if report.get("perplexity") is not None and report.get("reference_perplexity") is not None:
        rows.append(
            (
                "Perplexity",
                f"{report['perplexity']:.3f} (original {report['reference_perplexity']:.3f})",
            )
        )
    rows += [("KV cache", loss_text(*loss)) for loss in cache_losses(report).items()]
    for name, size in values["files"].items():
        rows.append((name, f"{size:,} bytes"))
    return rows
