"""`edgetok rm`: remove models from the model folder."""

from __future__ import annotations

import click

from edgetok.cli import options as common
from edgetok.cli import streams


@click.command("rm", epilog=common.examples("edgetok rm smollm2", "edgetok rm smollm2 qwen3"))
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=common.NAME)
@common.JSON
def command(names: tuple[str, ...], as_json: bool) -> None:
    """Remove models by name from the model folder.

    Only the converted models; what was downloaded stays in the cache of huggingface_hub, and files
    and folders of your own are not touched.
    """
    from edgetok.library import folder
    from edgetok.library.resolve import named

    found = {entry.folder: entry for name in names for entry in named(name)}
    removed = []
    for entry in found.values():
        removed.append(common.entry_values(entry))
        folder.remove(entry)
        if not as_json:
            click.echo(f"removed {entry.name}, {streams.megabytes(removed[-1]['bytes'])}")
    if as_json:
        streams.print_json({"removed": removed})
