"""`edgetok list`: list the models in the model folder."""

from __future__ import annotations

import time

import click

from edgetok.cli import options as common
from edgetok.cli import streams


@click.command("list", epilog=common.examples("edgetok list", "edgetok list --json"))
@common.JSON
def command(as_json: bool) -> None:
    """List the models in the model folder, most recently used first.

    Shows size, bits of a weight, the quality card's verdict and the time of the last use.
    """
    from edgetok.library.folder import entries, models_folder

    found = entries()
    if as_json:
        models = [common.entry_values(entry) for entry in found]
        streams.print_json({"folder": str(models_folder()), "models": models})
        return
    if not found:
        click.echo(f"no models in {models_folder()}; add one: edgetok pull smollm2")
        return
    rows = [
        (
            entry.name,
            streams.megabytes(entry.nbytes),
            f"{entry.bits:.1f}" if entry.bits else "?",
            (entry.verdict or "not measured") if entry.ready else "unfinished",
            _ago(time.time() - entry.used) if entry.ready else "never",
        )
        for entry in found
    ]
    streams.print_columns(
        f"Models in {models_folder()}", ("", "size", "bits", "verdict", "last used"), rows
    )


def _ago(seconds: float) -> str:
    """Return how long ago something was."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
