"""`edgetok convert`: a Hugging Face model becomes a small folder."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from edgetok.cli import options as common
from edgetok.errors import OptionError

_LINE_S = 30  # between two lines of progress where there is no terminal


@click.command("convert")
@click.argument("source", metavar="SRC")
@click.option(
    "--bits",
    type=click.Choice(["2", "3", "4", "8", "16"]),
    default="4",
    show_default=True,
    help="Bits of the linear layers; 16 quantises nothing.",
)
@click.option(
    "--method",
    type=click.Choice(["rtn", "gptq", "awq", "auto"]),
    default="auto",
    show_default=True,
    help="How weights are rounded: auto loses least, gptq is quicker on a small model, rtn needs "
    "no calibration.",
)
@click.option(
    "--without",
    type=click.Choice(["write", "fold", "search", "gptq", "descent", "tune"]),
    multiple=True,
    help="Leave a step of --method auto out; may be given more than once.",
)
@click.option(
    "--refine",
    type=click.IntRange(min=0),
    metavar="N",
    help="Have --method auto learn the integers as well, over N batches of text; takes long on a "
    "large model.  [default: 300 at 2 and 3 bits up to 20 million weights, else 0]",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    default="32",
    show_default=True,
    help="Inputs that share a scale.",
)
@click.option(
    "--head-bits",
    type=click.Choice(["2", "4", "8", "16"]),
    help="Bits of the output head and the embedding.  [default: 8]",
)
@click.option("--symmetric", is_flag=True, help="Store no zero points.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A text to calibrate on, instead of one that the model writes.",
)
@click.option(
    "--fit",
    metavar="SIZE",
    help="Choose bits and group sizes tensor by tensor, for the least loss in so much memory, "
    "such as 600MB.",
)
@click.option(
    "--context", help="Have --fit leave room for the cache of so many tokens, such as 8k."
)
@click.option(
    "--max-kl",
    type=float,
    help="Choose them for the smallest model that loses at most this, in nats; 0.05 is good.",
)
@click.option("--revision", help="Of a hub repository.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="The folder to write.  [default: artefacts/NAME-BITSbit, artefacts/NAME if SRC is "
    "quantised already]",
)
@common.JSON
def command(source: str, out: Path | None, as_json: bool, **given: Any) -> None:
    """Convert SRC: a Hugging Face model folder, a GGUF file, or a hub id such as owner/name.

    An interrupted conversion goes on where it was when it is called again.
    """
    with common.needs_extra("converting", "convert"):
        from edgetok.converter.convert import convert, is_quantised
        from edgetok.converter.options import ConvertOptions

    options = ConvertOptions(
        bits=int(given["bits"]),
        method=given["method"],
        without=given["without"],
        refine=given["refine"],
        group_size=int(given["group_size"]),
        head_bits=None if given["head_bits"] is None else int(given["head_bits"]),
        symmetric=given["symmetric"],
        calibration=given["calibration"],
        revision=given["revision"],
    )
    target = None
    if given["fit"] or given["max_kl"] is not None:
        target = _target(given)
    elif given["context"]:
        raise OptionError("--context says how much room --fit leaves: give --fit SIZE too")
    if out is None:
        path = Path(source).expanduser()
        name = path.resolve().name.removesuffix(".gguf") if path.exists() else source
        if not (path.exists() and is_quantised(path)):  # which keeps its bits, whatever they are
            name += f"-{_suffix(given)}"
        out = Path("artefacts") / re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    with _Bars(quiet=as_json) as progress:
        report = convert(source, out, options, progress, target)
    if as_json:
        common.print_json({"out": str(out), **report.to_json()})
        return
    common.print_table("", [*report.rows(), ("Written to", str(out))])
    if report.fit is not None:
        click.echo()
        columns = [
            (name, f"{point.nbytes / 1e6:,.3f} MB", f"{point.kl:.2g}")
            for name, point in report.fit.table()
        ]
        common.print_columns("Size against loss", ("", "weights", "expected KL"), columns)
    click.echo(f"\nTalk to it: edgetok chat {out}")


def _target(given: dict[str, Any]) -> Any:
    """What --fit, --context and --max-kl ask for."""
    from edgetok.cache.limits import parse_bytes
    from edgetok.converter.allocate.target import Target

    context = 0
    if given["context"]:
        found = re.fullmatch(r"([1-9][0-9]{0,8})(k?)", given["context"].strip().lower())
        if not found:
            raise OptionError(f"--context is {given['context']!r:.40}, expected tokens such as 8k")
        context = int(found[1]) * (1024 if found[2] else 1)
    return Target(
        nbytes=parse_bytes(given["fit"]) if given["fit"] else None,
        most_kl=given["max_kl"],
        context_tokens=context,
        cache_bytes=_cache_bytes,
    )


def _cache_bytes(spec: Any, tokens: int) -> int:
    """Of the CPU backend's cache with its usual 8 bits."""
    from edgetok.runtime.cpu.backend import BLOCK_TOKENS
    from edgetok.runtime.cpu.kv_cache import CpuKVCache

    return CpuKVCache(spec, capacity_tokens=tokens, kv_bits=8, block_tokens=BLOCK_TOKENS).nbytes


def _suffix(given: dict[str, Any]) -> str:
    if given["fit"]:
        return re.sub(r"[^A-Za-z0-9.]+", "", given["fit"])
    return f"{given['bits']}bit" if given["max_kl"] is None else f"kl{given['max_kl']:g}"


class _Bars:
    """The converter's progress as bars on stderr: what, how far, how long yet."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console(stderr=True, quiet=quiet)
        self._plain = not quiet and not sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or self._plain,
        )
        self._task: Any = None
        self._said = 0.0

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """A stage starts."""
        if self._plain:
            self._console.print(what)
            self._said = time.monotonic()
        self._task = self._progress.add_task(what, total=total, completed=done)

    def advance(self, units: int = 1) -> None:
        """Units of the stage are done."""
        if self._task is None:
            return
        self._progress.advance(self._task, units)
        if self._plain and time.monotonic() - self._said > _LINE_S:
            self._said = time.monotonic()
            task = self._progress.tasks[self._task]
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            self._console.print(f"  {task.completed:.0f} of {task.total:.0f}{left}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, markup=False, highlight=False)
