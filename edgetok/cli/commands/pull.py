"""`edgetok pull`: download and convert a model by name."""

from __future__ import annotations

from typing import Any

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.converter.options import BITS, GROUP_SIZES, ConvertOptions


@click.command(
    "pull",
    epilog=common.examples(
        "edgetok pull smollm2",
        "edgetok pull Qwen/Qwen3-0.6B --bits 4 --method auto",
        "edgetok pull owner/name/file.Q4_0.gguf",
    ),
)
@click.argument("name", metavar="NAME", type=common.NAME)
@common.options_of(ConvertOptions, "bits", defaults=False, type=common.Choice(BITS))
@common.options_of(ConvertOptions, "method", defaults=False)
@common.options_of(ConvertOptions, "group_size", defaults=False, type=common.Choice(GROUP_SIZES))
@common.JSON
def command(name: str, as_json: bool, **given: Any) -> None:
    """Download NAME and convert it into the model folder, or bring what is there up to date.

    NAME is a short name such as smollm2, a hub id such as owner/name, a GGUF file on the hub such
    as owner/name/file.gguf, or a folder or file of your own. A branch, tag or commit goes behind
    an @, as in owner/name@v1.0, here and for chat, generate, serve and bench. Without --bits,
    --method and --group-size the source decides the settings: integers are kept, other weights get
    4 bits. The model folder is EDGETOK_MODELS, or in your data folder; `edgetok list` shows it.
    """
    from edgetok.library import resolve

    changes = common.given_of(ConvertOptions, given)
    options = ConvertOptions(**changes, keep_codes="bits" not in changes) if changes else None
    from edgetok.cli.terminal.bars import Bars

    with Bars(quiet=as_json) as bars:
        entry = resolve.pull(name, options, bars, bars.say)
    if as_json:
        streams.print_json(common.entry_values(entry))
        return
    click.echo(f"{entry.name}: {streams.megabytes(entry.nbytes)}, {entry.settings}")
    click.echo(f"To talk to it: edgetok chat {name}")
