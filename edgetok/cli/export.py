"""`edgetok export`: write an artefact as a checkpoint for transformers and servers."""

from __future__ import annotations

from pathlib import Path

import click

from edgetok.cli import options as common


@click.command(
    "export",
    epilog=common.examples(
        "edgetok export artefacts/default-4bit --out exported",
        "edgetok export artefacts/default-4bit --format gptq --out exported-gptq",
    ),
)
@common.MODEL
@click.option(
    "--format",
    "form",
    type=click.Choice(["compressed-tensors", "gptq"]),
    default="compressed-tensors",
    show_default=True,
    help="Format of the checkpoint.",
)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, help="Folder to write."
)
@common.JSON
def command(model: Path, form: str, out: Path, as_json: bool) -> None:
    """Write MODEL as a checkpoint that transformers, vLLM and others load.

    Quantised layers keep their integers; the embedding and the output head become float16.
    """
    model = common.model_folder(model, quiet=as_json)
    with common.needs_extra("exporting", "convert"):
        from edgetok.converter.card.report import reason_rows
        from edgetok.converter.export.checkpoint import FORMATS, export

    (chosen,) = (known for known in FORMATS if known == form)
    result = export(model, out, chosen)
    if as_json:
        common.print_json(
            {
                "out": str(out),
                "format": form,
                "quantised": result.quantised,
                "plain": result.plain,
                "bytes": result.nbytes,
            }
        )
        return
    rows = [
        ("Format", form),
        ("Size", common.megabytes(result.nbytes)),
        ("Kept as integers", f"{result.quantised} layers"),
    ]
    rows += reason_rows("As float16", result.plain)
    common.print_table("", [*rows, ("Written to", str(out))])
