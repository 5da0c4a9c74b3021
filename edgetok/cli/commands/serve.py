"""`edgetok serve`: answer programs over HTTP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from edgetok.cli import options as common
from edgetok.cli.terminal.compiling import Compiling
from edgetok.environment import read_settings
from edgetok.errors import OptionError


def _options(function: Any) -> Any:
    from edgetok.serve.options import ServeOptions

    return common.options_of(ServeOptions)(function)


def _place(given: str) -> tuple[str, Path]:
    """Return the name and the artefact of a model that was given as MODEL or NAME=MODEL."""
    name, equals, model = given.partition("=")
    if not (equals and name) or "/" in name:
        name, model = "", given
    if not model:
        raise OptionError(f"{given}: no model behind the =; expected NAME=MODEL")
    folder = common.model_folder(Path(model))
    artefact = folder == Path(model).expanduser()
    return name or (folder.resolve().name if artefact else given), folder


@click.command(
    "serve",
    epilog=common.examples(
        "edgetok serve",
        "edgetok serve small=artefacts/default-4bit --port 9000 --memory 1GB",
        "edgetok serve artefacts/default-4bit --host 0.0.0.0",
    ),
)
@click.argument("models", metavar="[MODEL]...", nargs=-1, type=common.NAME)
@_options
@common.run_options
def command(models: tuple[str, ...], **given: Any) -> None:
    """Serve models over HTTP with the APIs of OpenAI and Anthropic.

    Each MODEL is an artefact, a model folder, a GGUF file, a short name or a hub id, or any of
    them as NAME=MODEL; without any it is the bundled model. The first is loaded at once, others
    when they are asked for. Without a key in EDGETOK_API_KEY only this machine is answered.
    """
    from edgetok.runtime.options import RunOptions
    from edgetok.serve.options import ServeOptions

    with common.needs_extra("serving", "serve"):
        from edgetok.serve.server import serve
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = ServeOptions(**common.given_of(ServeOptions, given), key=read_settings().api_key)
    run = common.given_of(RunOptions, given)
    if "draft" in run:
        run["draft"] = common.model_folder(run["draft"])
    serve(
        [_place(model) for model in models] or [_place(str(common.bundled()))],
        options,
        tell=lambda line: click.echo(line, err=True),
        progress=Compiling(),
        **run,
    )
