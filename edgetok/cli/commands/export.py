"""`edgetok export`: write an artefact as a checkpoint, or for apps without Python."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.cli.terminal.compiling import Compiling

_NATIVE = "native"


@click.command(
    "export",
    epilog=common.examples(
        "edgetok export artefacts/default-4bit --out exported",
        "edgetok export artefacts/default-4bit --format gptq --out exported-gptq",
        "edgetok export artefacts/default-4bit --format native --with rust --out app",
    ),
)
@common.MODEL
@click.option(
    "--format",
    "form",
    type=click.Choice(["compressed-tensors", "gptq", _NATIVE]),
    default="compressed-tensors",
    show_default=True,
    help="Format of a checkpoint; native writes a folder that runs without Python.",
)
@click.option("--out", "-o", type=common.PATH, required=True, help="Folder to write.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="native: machine to build for, e.g. aarch64-linux; several may be given.  "
    "[default: x86_64-linux]",
)
@click.option(
    "--isa",
    "isas",
    multiple=True,
    help="native: instruction set to pack, e.g. avx2; several may be given.  "
    "[default: all of the target's]",
)
@click.option(
    "--kv-bits",
    type=click.Choice(["4", "5", "8", "16", "32"]),
    default="8",
    show_default=True,
    help="native: bits of keys and values in the KV cache.",
)
@click.option(
    "--all-kernels", is_flag=True, help="native: build a library that runs every exported model."
)
@click.option(
    "--with",
    "wrappers",
    multiple=True,
    help="native: language whose wrapper to add: python, node, rust, swift or kotlin; several may "
    "be given.",
)
@common.JSON
def command(
    model: Path,
    form: str,
    out: Path,
    targets: tuple[str, ...],
    isas: tuple[str, ...],
    kv_bits: str,
    all_kernels: bool,
    wrappers: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write MODEL as a checkpoint for transformers, vLLM and others, or for apps without Python.

    Quantised layers keep their integers; in a checkpoint the embedding and the output head become
    float16.
    """
    model = common.model_folder(model, quiet=as_json)
    if form == _NATIVE:
        targets = targets or ("x86_64-linux",)
        _native(model, out, targets, isas, int(kv_bits), all_kernels, wrappers, as_json)
        return
    if targets or isas or all_kernels or wrappers:
        raise click.UsageError(
            "--target, --isa, --all-kernels and --with belong to --format native"
        )
    with common.needs_extra("exporting", "convert"):
        from edgetok.converter.card.report import reason_rows
        from edgetok.converter.export.checkpoint import FORMATS, export

    (chosen,) = (known for known in FORMATS if known == form)
    result = export(model, out, chosen)
    if as_json:
        streams.print_json(
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
        ("Size", streams.megabytes(result.nbytes)),
        ("Kept as integers", f"{result.quantised} layers"),
    ]
    rows += reason_rows("As float16", result.plain)
    streams.print_table("", [*rows, ("Written to", str(out))])


def _native(
    model: Path,
    out: Path,
    targets: tuple[str, ...],
    isas: tuple[str, ...],
    kv_bits: int,
    all_kernels: bool,
    wrappers: tuple[str, ...],
    as_json: bool,
) -> None:
    from edgetok.environment import read_settings
    from edgetok.native.export import export_native

    result = export_native(
        model,
        out,
        targets,
        cache_dir=read_settings().cache_dir,
        kv_bits=kv_bits,
        all_kernels=all_kernels,
        isas=isas,
        wrappers=wrappers,
        progress=Compiling(title="compiling kernels for the library, once"),
    )
    if as_json:
        streams.print_json({"out": str(out), "format": _NATIVE, **dataclasses.asdict(result)})
        return
    rows = [("Format", _NATIVE), ("Plan", streams.megabytes(result.plan_bytes))]
    rows.append(("Weights", streams.megabytes(result.weight_bytes)))
    for target, files in result.targets.items():
        sizes = ", ".join(f"{name} {streams.megabytes(size)}" for name, size in files.items())
        rows.append((target, sizes))
    if result.wrappers:
        rows.append(("Wrappers", ", ".join(result.wrappers)))
    compared = ", ".join(f"{count:,} {what}" for what, count in result.compared.items())
    rows.append(("Equal to Python", compared or "not compared: no library for this machine"))
    for run in result.runs:
        nats = "" if run.kl is None else f"KL {run.kl:.1e} nats from Python, by {run.by}"
        rows.append((f"{run.target} {run.isa}", nats or f"not run, only built: {run.why}"))
    rows += [(f"No {what}", why) for what, why in result.refused.items()]
    streams.print_table("", [*rows, ("Written to", str(out))])
