"""Reading of arguments and stdin, and printing, for all commands."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from edgetok.cli.terminal.wrap import WordWrap, wrapped
from edgetok.errors import OptionError

_LEAST_VALUE = 24  # columns of a value beside its label


def unescape(text: str) -> str:
    r"""Replace a typed \n by a line end and a typed \t by a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def one_prompt(argument: str | None, option: str | None) -> str | None:
    """Return the prompt that was given as an argument or with --prompt; None: neither.

    Raises:
        OptionError: both were given.
    """
    if argument is not None and option is not None:
        raise OptionError(
            "the prompt was given twice, as an argument and with --prompt; remove one"
        )
    return argument if option is None else option


def prompt_text(given: str | None) -> str | None:
    """Return the prompt: the argument, or all of stdin if that is not a terminal; else None."""
    if given is not None:
        return clean_input(given)
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    return clean_input(sys.stdin.buffer.read().decode("utf-8", "replace")).rstrip("\n")


def stdin_lines() -> list[str]:
    """Return the lines of stdin that are not empty.

    Raises:
        OptionError: a line is not UTF-8 text.
    """
    found = []
    for i, line in enumerate(sys.stdin or ()):
        if clean_input(line) != line:
            raise OptionError(f"stdin, line {i + 1}: not UTF-8 text")
        if line.strip():
            found.append(line.rstrip("\n"))
    return found


def clean_input(text: str) -> str:
    """Return typed text as valid Unicode: invalid bytes, which arrive as surrogates, become �."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def for_terminal(text: str) -> str:
    """Replace control characters, which could move the cursor or worse.

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
    """Return a function that prints an answer: wrapped and safe in a terminal, else unchanged."""
    if not sys.stdout.isatty():
        return lambda text: click.echo(text, nl=False)
    wrap = WordWrap(lambda text: click.echo(text, nl=False))
    return lambda text: wrap.push(for_terminal(text))


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; in ASCII if the encoding lacks characters."""
    encoding = (sys.stdout.encoding or "utf-8").replace("-", "").lower()
    plain = not encoding.startswith("utf")
    click.echo(json.dumps(values, ensure_ascii=plain, allow_nan=False))


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print a line for each label and value, wrapped; in a narrow terminal values go below."""
    if title:
        click.secho(title, bold=True)
    left = max((len(label) for label, _ in rows), default=0)
    columns = shutil.get_terminal_size().columns
    beside = columns - left - 5 >= _LEAST_VALUE
    indent = left + 4 if beside else 6
    for label, value in rows:
        lines = wrapped(for_terminal(value), max(columns - indent - 1, 8))
        first = click.style(f"{label:<{left}}" if beside else label, fg="cyan")
        click.echo(f"  {first}  {lines.pop(0)}" if beside else f"  {first}")
        for line in lines:
            click.echo(" " * indent + line)


def print_columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns under headings, all but the first aligned to the right.

    In a terminal that is too narrow for them, the first column has lines of its own.
    """
    click.secho(title, bold=True)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    narrow = sum(widths) + 2 * len(widths) >= shutil.get_terminal_size().columns
    apart = narrow and sys.stdout.isatty()
    for row in (header, *rows):
        first = f"  {row[0]}" if apart else f"  {row[0]:<{widths[0]}}"
        others = "  ".join(f"{row[i]:>{widths[i]}}" for i in range(1, len(row)))
        if apart:
            if row[0]:
                click.secho(first, fg="cyan" if row is header else None)
            first = " " * 4
        click.secho(f"{first}  {others}", fg="cyan" if row is header else None)


def megabytes(count: float) -> str:
    """Format a number of bytes in units of 10^6."""
    return f"{count / 1e6:,.1f} MB"
