"""`edgetok verify`: check an artefact's files, and compare two engines on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.runtime.options import RunOptions

if TYPE_CHECKING:
    from edgetok.evaluation.agreement import BackendAgreement
    from edgetok.formats.artefact import Artefact


_SAME = "every operator and constant is the one that edgetok writes"
_NOT_COMPARED = "not compared: another exporter wrote it, or onnx is not installed"
_CHANGED = "the graph was changed, or another version wrote it; convert the model again"
_DISAGREE = "the engines do not agree"


@click.command(
    "verify",
    epilog=common.examples(
        "edgetok verify artefacts/default-4bit",
        "edgetok verify artefacts/default-4bit --files-only --json",
    ),
)
@common.MODEL
@click.option(
    "--files-only", is_flag=True, help="Check hashes and structure only; do not run the model."
)
@common.options_of(RunOptions, "threads")
@common.JSON
@click.pass_context
def command(
    ctx: click.Context, model: Path, files_only: bool, threads: int | None, as_json: bool
) -> None:
    """Check MODEL: the hash of each file, the place of each tensor, the graph, and the arithmetic.

    The graph must be the one that this version of edgetok writes for the model, operator by
    operator; that needs the onnx package.
    The arithmetic is checked by running onnxruntime and edgetok on the same text, once with exact
    float32 products, which must agree to rounding, and once as usual, with activations of 8 bits.
    The exit code is 2 if something is wrong.
    """
    from edgetok.formats.artefact import open_artefact
    from edgetok.formats.manifest import verify_manifest

    model = common.model_folder(model, quiet=as_json)
    manifest = verify_manifest(model)
    values: dict[str, Any] = {"files": len(manifest.files), "hashes": "ok"}
    rows = [("Files", f"{len(manifest.files)}, all hashes match manifest.json")]
    with open_artefact(model) as artefact:
        rows.append(("Structure", "tensors, sizes and kinds of operators match the spec"))
        graph, difference = _compared(artefact)
    values["graph"] = difference or graph
    rows.append(("Graph", graph))
    fault = _CHANGED if difference else None
    if files_only:
        rows.append(("Arithmetic", "not run"))
    else:
        from edgetok.evaluation.agreement import compare_backends

        result = compare_backends(model, threads=threads)
        fault = fault or (None if result.good else _DISAGREE)
        values |= {
            "backends": list(result.backends),
            "tokens": result.tokens,
            "max_error": result.max_error if result.finite else None,
            "kl": result.kl if result.finite else None,
            "top1_agreement": result.top1_agreement,
            "int8_kl": result.int8_kl if result.finite else None,
            "step_error": result.step_error if result.finite else None,
            "faults": list(result.faults),
        }
        rows += _rows(result)
    values["good"] = fault is None
    if as_json:
        streams.print_json(values)
    else:
        rows.append(("Result", f"NOT GOOD: {fault}" if fault else "good"))
        streams.print_table(str(model), rows)
    if fault:
        ctx.exit(2)


def _compared(artefact: Artefact) -> tuple[str, str | None]:
    """Return what the graph is beside the one that edgetok writes, and where it differs, if so."""
    if artefact.spec is None:
        return _NOT_COMPARED, None
    try:
        from edgetok.converter.write.same_graph import first_difference
    except ModuleNotFoundError:
        return _NOT_COMPARED, None
    found = first_difference(artefact)
    return (f"not the one this version writes: {found}" if found else _SAME), found


def _rows(result: BackendAgreement) -> list[tuple[str, str]]:
    rows = [("Arithmetic", fault) for fault in result.faults]
    if not result.finite:
        return rows
    if len(result.backends) == 2:
        both = f"{' and '.join(result.backends)} at {result.tokens} places of a text"
        rows.append(
            ("Exact products", f"{both}: largest difference {result.max_error:.1e} of the range")
        )
        noise = ", ".join(f"{name} {kl:.1e}" for name, kl in result.int8_kl.items())
        rows.append(
            (
                "8-bit activations",
                f"cost a KL of {noise} nats; same most likely token "
                f"{100 * result.top1_agreement:.0f} %",
            )
        )
    if result.longest_window:
        rows.append(("Not reached", f"a window of {result.longest_window:,} tokens"))
    rows.append(("Step by step", f"equal to one block within {result.step_error:.1e} of the range"))
    return rows
