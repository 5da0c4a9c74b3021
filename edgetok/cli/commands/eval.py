"""`edgetok eval`: perplexity, agreement with the original, recall in context."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.errors import OptionError

if TYPE_CHECKING:
    from edgetok.evaluation.perplexity import Evaluation, Reference
    from edgetok.model import Model

MAX_TEXT_BYTES = 256 << 20


@click.command(
    "eval",
    epilog=common.examples(
        "edgetok eval artefacts/default-4bit --recall --cases 2 --distance 128",
        "edgetok eval artefacts/default-4bit --text story.txt --reference models/default",
        "edgetok eval artefacts/default-4bit --cache --cases 1 --tokens 320 --policy retain",
    ),
)
@common.MODEL
@click.option("--text", type=common.PATH, help="Text file on which to measure perplexity.")
@click.option(
    "--reference",
    type=common.NAME,
    metavar="SRC",
    help="Original to compare with, for KL divergence and agreement: whatever `edgetok convert` "
    "takes, a GGUF file, too.",
)
@click.option(
    "--max-tokens",
    type=common.TOKENS,
    default=20_000,
    show_default=True,
    help="Maximum tokens of the text to predict.",
)
@click.option(
    "--window",
    type=common.TOKENS,
    default=512,
    show_default=True,
    help="Tokens evaluated together.",
)
@click.option(
    "--stride",
    type=common.TOKENS,
    help="Tokens from the start of a window to the next.  [default: half a window]",
)
@click.option(
    "--separator",
    default="<|endoftext|>",
    show_default=True,
    help="Separator between documents; each document is predicted by itself.",
)
@click.option("--recall", is_flag=True, help="Ask for facts mentioned earlier in a conversation.")
@click.option(
    "--cache",
    is_flag=True,
    help="Measure recall and perplexity of bounded caches, by policy and size.",
)
@click.option(
    "--policy",
    multiple=True,
    help="With --cache: policy to measure, e.g. retain. May be given several times.  "
    "[default: all]",
)
@click.option(
    "--share",
    type=float,
    multiple=True,
    help="With --cache: size as a share of the full cache's. May be given several times.  "
    "[default: 1 0.6 0.5 0.25 0.125]",
)
@click.option(
    "--tokens",
    type=common.TOKENS,
    default=1024,
    show_default=True,
    help="With --cache: length of each context in tokens.",
)
@click.option(
    "--plot",
    type=common.PATH,
    help="With --cache: draw the results into this file, e.g. cache.png.",
)
@click.option(
    "--cases", type=int, default=10, show_default=True, help="Test cases per task and distance."
)
@click.option(
    "--distance",
    type=int,
    multiple=True,
    help="With --recall: tokens between a fact and its question. May be given several times.",
)
@common.run_options_but("draft")
@common.JSON
def command(
    model: Path,
    text: Path | None,
    reference: str | None,
    recall: bool,
    cache: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure the quality of MODEL.

    --text measures perplexity, --text with --reference compares with the original, --recall asks
    for facts mentioned earlier, and --cache measures bounded caches.
    """
    if text is None and not recall and not cache:
        raise OptionError("nothing to measure; give --text FILE, --recall or --cache")
    content = None if text is None else _read(text)
    if cache:
        from edgetok.cli.commands.eval_cache import measure_caches

        with common.load_model(model, given) as loaded:
            measure_caches(loaded, content, given, as_json)
        return
    with common.load_model(model, given) as loaded:
        values: dict[str, Any] = {
            "perplexity": None,
            "tokens": None,
            "kl": None,
            "top1_agreement": None,
            "weight_bytes": loaded.artefact.weight_bytes,
            "bits_per_weight": loaded.artefact.bits_per_weight,
        }
        rows = [("Weights", streams.megabytes(loaded.artefact.weight_bytes))]
        if content is not None:
            result = _evaluate(loaded, content, _reference(reference, given["threads"]), given)
            known = dataclasses.asdict(result)
            if not math.isfinite(result.perplexity):
                raise OptionError(
                    "the perplexity is infinite; choose a text that this model can predict"
                )
            values |= known
            rows += _rows(result)
        if recall:
            from edgetok.cli.commands.recall import measure_recall

            scores = measure_recall(loaded, given["cases"], given["distance"])
            values["recall"] = scores
            rows += [
                (
                    f"Recall, {task}",
                    "  ".join(f"{distance}: {share:.2f}" for distance, share in by.items()),
                )
                for task, by in scores.items()
            ]
    if as_json:
        streams.print_json(values)
    else:
        streams.print_table(str(model), rows)


def _evaluate(
    model: Model, content: str, reference: Reference | None, given: dict[str, Any]
) -> Evaluation:
    from edgetok.evaluation.perplexity import documents, evaluate, windows

    window = min(given["window"], model.context_tokens)
    stride = max(1, window // 2) if given["stride"] is None else given["stride"]
    cut = windows(
        documents(content, model.tokenizer, given["separator"]),
        window,
        stride,
        given["max_tokens"],
    )
    if not sys.stderr.isatty():
        return evaluate(model.backend, cut, reference)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("predicting", total=given["max_tokens"])
        return evaluate(model.backend, cut, reference, lambda n: bars.advance(task, n))


def _reference(source: str | None, threads: int | None) -> Reference | None:
    if source is None:
        return None
    with common.needs_extra("comparing with the original", "convert"):
        from edgetok.converter.calibrate.reference import TransformersReference
    return TransformersReference(source, threads=threads or 0)


def _rows(result: Evaluation) -> list[tuple[str, str]]:
    text = f"{result.perplexity:.4f} over {result.tokens:,} tokens"
    if result.reference_perplexity is not None:
        ratio = result.perplexity / result.reference_perplexity
        text += f" (original {result.reference_perplexity:.4f}, ratio {ratio:.4f})"
    rows = [("Perplexity", text)]
    if result.kl is not None and result.top1_agreement is not None:
        rows.append(("KL to the original", f"{result.kl:.5f} nats"))
        rows.append(("Same most likely token", f"{100 * result.top1_agreement:.2f} %"))
    return rows


def _read(path: Path) -> str:
    from edgetok.formats import strict_json

    data = strict_json.read_bytes(path, max_bytes=MAX_TEXT_BYTES, error=OptionError)
    return data.decode("utf-8", "replace").replace("\r\n", "\n")
