"""`edgetok rerank`: texts by how well they answer a query."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgetok.cli import options as common
from edgetok.errors import OptionError

_MOST_BYTES = 64 << 20  # of a file: more is no text for a query
_SHOWN = 60  # characters of a line of stdin that stand for it


@click.command(
    "rerank",
    epilog=common.examples(
        'edgetok rerank Qwen/Qwen3-Reranker-0.6B --query "how to reset the router" docs/*.md',
        'echo "Mondays 9 to 12" | edgetok rerank Qwen/Qwen3-Reranker-0.6B --query "dentist" -',
        'edgetok rerank Qwen/Qwen3-Reranker-0.6B --query "tax" --top 3 --json *.txt',
    ),
)
@common.MODEL
@click.option("--query", metavar="TEXT", required=True, help="Text that others are ranked by.")
@click.option(
    "--instruction",
    metavar="TEXT",
    help="Purpose of the query, told to the model.  [default: a search of the web]",
)
@click.option("--top", type=click.IntRange(1), metavar="N", help="Print the best N alone.")
@click.argument("files", metavar="FILE...|-", nargs=-1, required=True)
@common.run_options
@common.JSON
def command(
    model: Path,
    query: str,
    instruction: str | None,
    top: int | None,
    files: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Rank texts by how well they answer a query, the best first: score and name.

    Each FILE is one text; - is stdin, where each line is one. Use a model that was trained to judge
    texts with "yes" or "no", such as Qwen/Qwen3-Reranker-0.6B: scores of others say nothing.
    """
    if not query.strip():
        raise OptionError("--query is empty, expected what is looked for")
    texts = _texts(files)
    from edgetok.ranking import is_ranker

    with common.load_model(model, given) as loaded:
        if not is_ranker(loaded.names):
            click.echo(f"{model}: does not say that it was trained to rank texts", err=True)
        scores = loaded.rerank(query, [text for _, text in texts], instruction=instruction or None)
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:top]
    if as_json:
        results = [{"index": i, "name": texts[i][0], "score": scores[i]} for i in best]
        common.print_json({"query": query, "results": results})
        return
    for i in best:
        click.echo(f"{scores[i]:.4f}  {common.for_terminal(texts[i][0])}")


def _texts(files: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names and texts of files, and of stdin's lines.

    Raises:
        OptionError: a file is too large, or something is no text, or there is none.
    """
    found: list[tuple[str, str]] = []
    for name in files:
        if name == "-":
            lines = [line.rstrip("\n") for line in sys.stdin]
            for i, line in enumerate(lines):
                if common.clean_input(line) != line:
                    raise OptionError(f"stdin, line {i + 1}: not UTF-8 text")
            found += [(line[:_SHOWN], line) for line in lines if line.strip()]
            continue
        try:
            text = _read(Path(name)).decode("utf-8")
        except UnicodeDecodeError:
            raise OptionError(f"{name}: not UTF-8 text") from None
        found.append((name, text))
    if not found:
        raise OptionError("no text given; stdin has no line that is not empty")
    return found


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise OptionError(f"{path}: larger than {_MOST_BYTES:,} bytes; give parts of it")
    return data
