"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgetok.errors import MissingExtraError

if TYPE_CHECKING:
    from edgetok.model import Model

F = TypeVar("F", bound=Callable[..., Any])

MODEL = click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)

_RUN = (
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "onnxruntime", "cuda"]),
        default="auto",
        show_default=True,
        help="What computes: edgetok's own kernels on the CPU or (cuda) a GPU, or onnxruntime; "
        "auto takes a GPU that has room for the model.",
    ),
    click.option(
        "--gpu-layers",
        type=int,
        metavar="N",
        help="Compute the last N layers on a GPU that has no room for all, the others on the CPU.",
    ),
    click.option(
        "--threads", type=int, help="Threads that compute.  [default: physical cores, or 1]"
    ),
    click.option(
        "--context",
        type=int,
        help="Most tokens of prompt and answer together.  [default: 4096, or the model's length]",
    ),
    click.option(
        "--kv-bits",
        type=click.Choice(["4", "8", "16", "32"]),
        default="8",
        show_default=True,
        help="Bits of keys and values in the cache.",
    ),
    click.option(
        "--kv-budget",
        metavar="BYTES",
        help="Bytes of the cache, such as 64MB; it then forgets, and a conversation has no end.",
    ),
    click.option(
        "--kv-policy",
        metavar="NAME",
        help="What a full cache keeps: retain, window, h2o, tova, snapkv, keydiff, "
        "expected-attention; none refuses more.  [default: retain in chat]",
    ),
    click.option(
        "--prefix-cache",
        metavar="BYTES",
        help="Keep beginnings of prompts, up to so many bytes, to read them once.",
    ),
    click.option(
        "--compute",
        type=click.Choice(["int8", "float32"]),
        default="int8",
        show_default=True,
        help="Type of activations in products.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Say which device auto took and why."),
    click.option("--isa", help="Restrict the instruction set, for comparison.", hidden=True),
)

_SAMPLING = (
    click.option("--temperature", type=float, help="0 is always the most likely token."),
    click.option("--top-k", type=int, help="Choose among this many tokens; 0 is all."),
    click.option(
        "--top-p", type=float, help="Choose among tokens that add up to this probability."
    ),
    click.option("--min-p", type=float, help="Least probability relative to the likeliest token."),
    click.option("--repetition-penalty", type=float, help="Above 1 avoids tokens already there."),
    click.option("--presence-penalty", type=float, help="Taken from tokens already in the answer."),
    click.option("--frequency-penalty", type=float, help="Likewise, for each time they are there."),
    click.option("--seed", type=int, help="Equal seeds give equal answers."),
    click.option(
        "--max-tokens", type=int, help="Longest answer.  [default: what the context holds]"
    ),
    click.option("--stop", multiple=True, help="End before this text; may be given several times."),
)
_SAMPLING_NAMES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "stop",
)
_RUN_NAMES = (
    "device",
    "gpu_layers",
    "verbose",
    "threads",
    "context",
    "kv_bits",
    "kv_budget",
    "kv_policy",
    "prefix_cache",
    "compute",
    "isa",
)


def run_options(function: F) -> F:
    """--device, --gpu-layers, --threads, --context, --kv-bits, --compute."""
    for option in reversed(_RUN):
        function = option(function)
    return function


def sampling_options(function: F) -> F:
    """--temperature and so on."""
    for option in reversed(_SAMPLING):
        function = option(function)
    return function


@contextlib.contextmanager
def needs_extra(doing: str, extra: str) -> Iterator[None]:
    """Around an import of what the base install lacks.

    Raises:
        MissingExtraError: a package of others is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "edgetok":
            raise
        raise MissingExtraError(
            f"{doing} needs {error.name}: pip install 'edgetok[{extra}]'"
        ) from error


def load_model(path: Path, options: Mapping[str, Any], *, endless: bool = False) -> Model:
    """Load with what `run_options` gave; its notes go to stderr.

    With `endless` the cache forgets unless `--kv-policy none` was given, where the model's context
    is long enough for that.
    """
    from edgetok.model import Model

    chosen = {name: options[name] for name in _RUN_NAMES if options.get(name) is not None}
    if "kv_bits" in chosen:
        chosen["kv_bits"] = int(chosen["kv_bits"])
    model = Model.load(path, progress=compiling, **chosen)
    if endless and "kv_policy" not in chosen and model.limits is None:
        model.be_endless()
    for note in model.notes:
        click.echo(note, err=True)
    return model


def compiling(done: int, total: int) -> None:
    """Tell, once, why the first start on a machine takes longer."""
    if done == 0:
        click.echo(f"compiling {total} kernels for this machine, once ...", err=True)


def sampling_changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `sampling_options` gave, without what was left out."""
    changes = {name: options[name] for name in _SAMPLING_NAMES if options.get(name) is not None}
    if not changes.get("stop"):
        changes.pop("stop", None)
    else:
        changes["stop"] = tuple(unescape(stop) for stop in changes["stop"])
    return changes


def unescape(text: str) -> str:
    r"""A typed text with \n and \t for line ends and tabs."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def prompt_text(given: str | None) -> str | None:
    """The prompt: as an argument, or all of stdin where that is no terminal; None for neither."""
    if given is not None:
        return clean_input(given)
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    return clean_input(sys.stdin.buffer.read().decode("utf-8", "replace")).rstrip("\n")


def clean_input(text: str) -> str:
    """Typed text as valid Unicode: bytes that are none arrive as lone surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def for_terminal(text: str) -> str:
    """Model text without control characters, which could move the cursor or worse.

    Line feeds and tabs stay; others show as U+2400 and up.
    """
    if text.isprintable():
        return text
    return "".join(
        c
        if c in "\n\t" or not (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0)
        else chr(0x2400 + ord(c))
        if ord(c) < 0x20
        else "\u2421"
        for c in text
    )


def answer_writer() -> Callable[[str], None]:
    """How an answer is shown: between words and safely in a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        return lambda text: click.echo(text, nl=False)
    from edgetok.cli.wrap import WordWrap

    wrap = WordWrap(lambda text: click.echo(text, nl=False))
    return lambda text: wrap.push(for_terminal(text))


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(values, ensure_ascii=False, allow_nan=False))


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Labels and values below each other, long values broken at the terminal's width."""
    if title:
        click.secho(title, bold=True)
    left = max((len(label) for label, _ in rows), default=0)
    width = max(40, shutil.get_terminal_size().columns - left - 4)
    for label, value in rows:
        lines = textwrap.wrap(for_terminal(value), width) or [""]
        click.echo(f"  {click.style(f'{label:<{left}}', fg='cyan')}  {lines[0]}")
        for line in lines[1:]:
            click.echo(" " * (left + 4) + line)


def print_columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns under headings, all but the first to the right."""
    click.secho(title, bold=True)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = [
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  " + "  ".join(cells)
        click.secho(line, fg="cyan") if row is header else click.echo(line)


def megabytes(count: float) -> str:
    """A number of bytes, in 10^6 bytes."""
    return f"{count / 1e6:,.1f} MB"
