"""Write docs/cli.md: `make docs` runs this, and `make lint` fails when the page is out of date.

The text stands in docs/cli.template.md. Four kinds of lines in it are replaced:

    {help COMMAND}   the output of `edgetok COMMAND --help`
    {chat}           the commands and keys of the chat, as /help prints them
    {variables}      the environment variables, from `edgetok.environment`
    {names}          the short names of models
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import click

from edgetok import environment
from edgetok.cli.main import cli
from edgetok.cli.repl import HELP, KEYS
from edgetok.library.names import SHORT_NAMES

FOLDER = Path(__file__).resolve().parent
WIDTH = 100


def help_text(name: str) -> str:
    """Return what `edgetok NAME --help` prints."""
    group = click.Context(cli, info_name="edgetok", **cli.context_settings)
    command = cli.get_command(group, name)
    if command is None:
        raise SystemExit(f"docs/cli.template.md: {name} is not a command")
    context = click.Context(
        command, info_name=name, parent=group, terminal_width=WIDTH, max_content_width=WIDTH
    )
    return f"```text\n{command.get_help(context)}\n```"


def chat_table() -> str:
    """Return the chat's commands and keys as a table."""
    rows = [f"| `{left}` | {right} |" for left, right in (*HELP, *KEYS)]
    return "\n".join(["| typed | effect |", "|---|---|", *rows])


def variables_table() -> str:
    """Return the table of environment variables in `edgetok.environment`."""
    match = re.search(r"^\|.*\|$(\n^\|.*\|$)*", environment.__doc__ or "", re.MULTILINE)
    if match is None:
        raise SystemExit("edgetok/environment.py: the docstring has no table of variables")
    return match[0]


def names_table() -> str:
    """Return the table of short names."""
    rows = [f"| `{name}` | `{repository}` |" for name, repository in SHORT_NAMES.items()]
    return "\n".join(["| short name | hub id |", "|---|---|", *rows])


def page() -> str:
    """Return the text of docs/cli.md."""
    text = (FOLDER / "cli.template.md").read_text()
    text = text.replace("{chat}", chat_table()).replace("{variables}", variables_table())
    text = text.replace("{names}", names_table())
    text = re.sub(r"^\{help (\w+)\}$", lambda m: help_text(m[1]), text, flags=re.MULTILINE)
    return "<!-- Written by docs/generate_cli.py; edit docs/cli.template.md instead. -->\n\n" + text


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description="Write docs/cli.md.")
    parser.add_argument(
        "--check", action="store_true", help="compare only; exit with 1 if it differs"
    )
    target = FOLDER / "cli.md"
    if not parser.parse_args().check:
        target.write_text(page())
    elif target.read_text() != page():
        sys.exit("docs/cli.md is out of date: run `make docs`")


if __name__ == "__main__":
    main()
