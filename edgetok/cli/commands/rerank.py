"""`edgetok rerank`: texts by how well they answer a query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetok.cli import options as common
from edgetok.cli import streams
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
@click.option("--query", metavar="TEXT", required=True, help="Query that the texts are ranked for.")
@click.option(
    "--instruction",
    metavar="TEXT",
    help="Purpose of the query, told to the model.  [default: a search of the web]",
)
@click.option("--top", type=click.IntRange(1), metavar="N", help="Print only the best N.")
@click.argument("files", metavar="FILE...|-", nargs=-1, required=True, type=common.NAME)
@common.run_options_but(*common.ONLY_WRITING)
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
    """Rank texts by how well they answer a query; print score and name of each, the best first.

    Each FILE is one text; - is stdin, where each line is one. Texts that are empty are left out.
    Use a model that was trained to judge texts with "yes" or "no", such as
    Qwen/Qwen3-Reranker-0.6B. The scores of other models mean nothing.
    """
    if not query.strip():
        raise OptionError("--query is empty, expected the text to look for")
    texts = _texts(files)
    from edgetok.ranking import is_ranker

    with common.load_model(model, given) as loaded:
        if not is_ranker(loaded.names):
            click.echo(
                f'{model}: no name of it has "rerank", so it may not be trained to rank texts, and '
                "its scores may mean nothing",
                err=True,
            )
        ranked = [i for i, (_, text) in enumerate(texts) if text.strip()]
        asked = [texts[i][1] for i in ranked]
        found = loaded.rerank(query, asked, instruction=instruction or None)
    scores = dict(zip(ranked, found, strict=True))
    best = sorted(ranked, key=lambda i: -scores[i])[:top]
    if as_json:
        results = [{"index": i, "name": texts[i][0], "score": scores[i]} for i in best]
        streams.print_json({"query": query, "results": results})
        return
    for i in best:
        click.echo(f"{scores[i]:.4f}  {streams.for_terminal(texts[i][0])}")


def _texts(files: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names and texts of files, and of stdin's lines; one at least is not empty.

    Raises:
        OptionError: a file is too large, or something is no text, or there is none.
    """
    found: list[tuple[str, str]] = []
    for name in files:
        if name == "-":
            found += [(line[:_SHOWN], line) for line in streams.stdin_lines()]
            continue
        try:
            text = _read(Path(name)).decode("utf-8")
        except UnicodeDecodeError:
            raise OptionError(f"{name}: not UTF-8 text") from None
        if not text.strip():
            click.echo(f"{name}: empty, left out", err=True)
        found.append((name, text))
    if not any(text.strip() for _, text in found):
        raise OptionError("no text given: every file, or line of stdin, is empty")
    return found


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise OptionError(f"{path}: larger than {_MOST_BYTES:,} bytes; give parts of it")
    return data
