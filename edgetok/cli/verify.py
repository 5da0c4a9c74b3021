"""`edgetok verify`: check an artefact's files, and compare two engines on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetok.cli import options as common
from edgetok.runtime.options import RunOptions


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
    """Check MODEL: the hash of each file, the place of each tensor, and the arithmetic.

    The arithmetic is checked by running onnxruntime and edgetok on the same tokens. The exit code
    is 2 if something is wrong.
    """
    from edgetok.formats.artefact import open_artefact
    from edgetok.formats.manifest import verify_manifest

    manifest = verify_manifest(model)
    values: dict[str, Any] = {"files": len(manifest.files), "hashes": "ok"}
    rows = [("Files", f"{len(manifest.files)}, all hashes match manifest.json")]
    with open_artefact(model) as artefact:
        has_spec = artefact.spec is not None
    rows.append(("Structure", "graph, spec and weights match"))
    good = True
    if files_only:
        rows.append(("Arithmetic", "not run"))
    else:
        from edgetok.evaluation.agreement import compare_backends

        found = compare_backends(model, threads=threads)
        good = found.good
        values |= {
            "backends": list(found.backends),
            "tokens": found.tokens,
            "max_error": found.max_error if found.finite else None,
            "kl": found.kl if found.finite else None,
            "top1_agreement": found.top1_agreement,
            "step_error": found.step_error if found.finite else None,
        }
        if not found.finite:
            rows.append(("Arithmetic", "some logits are not finite numbers"))
        rows.append(
            ("Step by step", f"equal to one block within {found.step_error:.1e} of the range")
        )
        if has_spec:
            rows.append(
                (
                    "Agreement",
                    f"{' and '.join(found.backends)} over {found.tokens} tokens: KL {found.kl:.1e} "
                    f"nats, same likeliest token {100 * found.top1_agreement:.0f} %, largest "
                    f"difference {found.max_error:.1e} of the range",
                )
            )
    values["good"] = good
    if as_json:
        common.print_json(values)
    else:
        rows.append(("Result", "good" if good else "NOT GOOD: the engines do not agree"))
        common.print_table(str(model), rows)
    if not good:
        ctx.exit(2)
