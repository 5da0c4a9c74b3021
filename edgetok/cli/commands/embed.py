"""`edgetok embed`: vectors of texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.errors import OptionError


@click.command(
    "embed",
    epilog=common.examples(
        'edgetok embed artefacts/default-4bit "A cat." "A dog."',
        'echo "A cat." | edgetok embed artefacts/default-4bit --pooling mean --json',
    ),
)
@common.MODEL
@click.argument("texts", metavar="[TEXT|-]...", nargs=-1)
@click.option(
    "--pooling",
    type=click.Choice(["last", "mean"]),
    help="The last token's vector, or the mean over all tokens.  [default: what the model was "
    "trained for]",
)
@click.option("--raw", is_flag=True, help="Do not divide vectors by their length.")
@common.run_options_but(*common.ONLY_WRITING)
@common.JSON
def command(
    model: Path, texts: tuple[str, ...], pooling: str | None, raw: bool, as_json: bool, **given: Any
) -> None:
    """Compute a vector for each TEXT, or for each line of stdin: one JSON array a line.

    A TEXT that is - stands for the lines of stdin; those that are empty are left out. Use a model
    that was trained for embeddings, such as Qwen/Qwen3-Embedding-0.6B or
    google/embeddinggemma-300m.
    """
    if not texts and sys.stdin is not None and not sys.stdin.isatty():
        texts = ("-",)
    wanted = [line for text in texts for line in (streams.stdin_lines() if text == "-" else [text])]
    if not wanted:
        raise OptionError("no text given; give some as arguments, or one a line on stdin")
    with common.load_model(model, given) as loaded:
        vectors = loaded.embed(wanted, pooling=pooling, normalise=not raw)
        tokens = [len(loaded.tokenize(text)) for text in wanted]
    lists = [[round(float(x), 7) for x in vector] for vector in vectors]
    if as_json:
        streams.print_json({"embeddings": lists, "tokens": tokens})
        return
    for numbers in lists:
        click.echo(json.dumps(numbers))
