"""`edgetok convert`: make an artefact of a Hugging Face model or a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.converter.options import BITS, GROUP_SIZES, HEAD_BITS, ConvertOptions
from edgetok.environment import read_settings
from edgetok.errors import OptionError
from edgetok.quantities import parse_bytes


@click.command(
    "convert",
    epilog=common.examples(
        "edgetok convert models/default --method rtn --out artefacts/small",
        "edgetok convert Qwen/Qwen3-0.6B --bits 4",
        "edgetok convert Qwen/Qwen3-0.6B --fit 400MB --context 8k",
    ),
)
@click.argument("source", metavar="SRC", type=common.NAME)
@common.options_of(ConvertOptions, "bits", type=common.Choice(BITS))
@common.options_of(ConvertOptions, "method", "without")
@common.options_of(ConvertOptions, "refine", type=click.IntRange(min=0), metavar="N")
@common.options_of(ConvertOptions, "group_size", type=common.Choice(GROUP_SIZES))
@common.options_of(ConvertOptions, "head_bits", type=common.Choice(HEAD_BITS))
@common.options_of(ConvertOptions, "symmetric", "uniform")
@common.options_of(
    ConvertOptions,
    "calibration",
    type=common.PathType(path_type=Path, exists=True, dir_okay=False),
)
@click.option(
    "--fit",
    metavar="SIZE",
    help="Choose bits and group size of each tensor for the least loss in this size, e.g. 600MB.",
)
@click.option(
    "--context",
    type=common.TOKENS,
    help="With --fit: also leave room for a KV cache of this many tokens, e.g. 8k.",
)
@click.option(
    "--max-kl",
    type=float,
    help="Choose them for the smallest model that loses at most this, in nats, e.g. 0.05.",
)
@common.options_of(ConvertOptions, "portable", "measure_cache")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of threads; the result does not depend on it.  [default: EDGETOK_THREADS, else "
    "one per core]",
)
@common.options_of(ConvertOptions, "revision")
@click.option(
    "-o",
    "--out",
    type=common.PATH,
    help="Folder to write.  [default: artefacts/NAME-BITSbit, or artefacts/NAME if SRC is "
    "quantised already]",
)
@common.JSON
def command(source: str, out: Path | None, as_json: bool, **given: Any) -> None:
    """Convert SRC to an artefact, a small folder that edgetok runs.

    SRC is a Hugging Face model folder, a GGUF file, a hub id such as owner/name, or a short
    name. A GGUF file keeps its values exactly, unless --bits, --fit or --max-kl is given. An
    interrupted conversion continues where it stopped when the same command is run again.
    """
    with common.needs_extra("converting", "convert"):
        from edgetok.converter.convert import convert, is_quantised

    asked = click.get_current_context().get_parameter_source("bits")
    keep = asked is not click.core.ParameterSource.COMMANDLINE
    options = ConvertOptions(**common.given_of(ConvertOptions, given), keep_codes=keep)
    target = None
    if given["fit"] or given["max_kl"] is not None:
        target = _target(given)
    elif given["context"]:
        raise OptionError("--context needs --fit SIZE; add it, or remove --context")
    if out is None:
        path = Path(source).expanduser()
        name = path.resolve().name.removesuffix(".gguf") if path.exists() else source
        kept = target is None and (keep or path.is_dir())
        if not (path.exists() and kept and is_quantised(path)):
            name += f"-{_suffix(given)}"
        out = Path("artefacts") / re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    from edgetok.cli.terminal.bars import Bars

    with Bars(quiet=as_json) as progress:
        threads = given["threads"] or read_settings().threads
        report = convert(source, out, options, progress, target, threads=threads)
    if as_json:
        streams.print_json({"out": str(out), **report.to_json()})
        return
    streams.print_table("", [*report.rows(), ("Written to", str(out))])
    if report.fit is not None:
        click.echo()
        columns = [
            (name, f"{point.nbytes / 1e6:,.3f} MB", f"{point.kl:.2g}")
            for name, point in report.fit.table()
        ]
        streams.print_columns("Size against loss", ("", "weights", "expected KL"), columns)
    hint = f"For vectors of texts: edgetok embed {out} TEXT"
    click.echo(f"\n{hint if report.vectors else f'To talk to it: edgetok chat {out}'}")


def _target(given: dict[str, Any]) -> Any:
    """Return the target that --fit, --context and --max-kl describe."""
    from edgetok.converter.allocate.target import Target

    return Target(
        nbytes=parse_bytes(given["fit"]) if given["fit"] else None,
        most_kl=given["max_kl"],
        context_tokens=given["context"] or 0,
        cache_bytes=_cache_bytes,
    )


def _cache_bytes(spec: Any, tokens: int) -> int:
    """Return the size of the CPU backend's cache at its default of 8 bits."""
    from edgetok.runtime.cpu.backend import BLOCK_TOKENS
    from edgetok.runtime.cpu.cache_memory import CacheStore, new_cache

    cache = new_cache(
        spec, CacheStore(1), capacity_tokens=tokens, kv_bits=8, block_tokens=BLOCK_TOKENS
    )
    return cache.nbytes


def _suffix(given: dict[str, Any]) -> str:
    if given["fit"]:
        return re.sub(r"[^A-Za-z0-9.]+", "", given["fit"])
    return f"{given['bits']}bit" if given["max_kl"] is None else f"kl{given['max_kl']:g}"
