"""`edgetok bench --chats`: several chats at the same time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.errors import OptionError


def measure(path: Path, given: dict[str, Any], as_json: bool) -> None:
    """Measure every combination of threads and depth and print it.

    Raises:
        OptionError: an option is out of range, or has no meaning beside --chats.
    """
    from edgetok.environment import read_settings
    from edgetok.evaluation.chats import measure_chats

    if given["profile"] or given["energy"] or given["beside"] is not None:
        raise OptionError("--chats conflicts with --profile, --energy and --beside; remove them")
    runs = []
    for threads in given["threads"] or (read_settings().threads,):
        for depth in given["depth"] or (512,):
            options = given | {"threads": threads, "context": _context(path)}
            with common.load_model(path, options) as model:
                found = measure_chats(
                    model.engine,
                    model.sampling.with_changes({"seed": 0}),
                    chats=given["chats"],
                    depth=depth,
                    decode_tokens=given["decode_tokens"],
                    prompt_tokens=given["prompt_tokens"],
                    repeats=given["repeats"],
                )
            runs.append(found.values())
    if as_json:
        streams.print_json({**runs[0], "runs": runs})
        return
    streams.print_columns(
        f"{path}, {given['chats']} chats",
        ("threads", "depth", "tokens/s", "one chat", "speedup", "wait p95", "Python a step"),
        [
            (
                str(run["threads"] or "?"),
                f"{run['depth']:,}",
                f"{run['total_tokens_per_s']:,.1f}",
                f"{run['single_tokens_per_s']:,.1f}",
                f"{run['speedup']:.2f}",
                f"{run['wait_p95_ms']:,.0f} ms",
                f"{run['python_ms_per_step']:.2f} ms",
            )
            for run in runs
        ],
    )
    streams.print_table(
        "",
        [
            ("tokens/s", "of all chats together, the median of the repeats"),
            (
                "wait p95",
                "between two tokens of a chat while a prompt is read: 95 of 100 waits are shorter",
            ),
        ],
    )


def _context(path: Path) -> int:
    """Return the trained length: chats and prompt may need all of it."""
    from edgetok.formats.artefact import open_artefact

    artefact = open_artefact(path)
    try:
        return 4096 if artefact.spec is None else artefact.spec.context_tokens
    finally:
        artefact.close()
