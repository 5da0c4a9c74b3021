"""`edgetok`: the group of commands, and the handling of their errors.

A command's module is imported when the command is called, so that no command waits for the imports
of another.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

import click

from edgetok.errors import OutputError, UserError

_COMMANDS = {
    "convert": "Convert a Hugging Face or GGUF model to an artefact, a small folder.",
    "chat": "Talk to a model.",
    "generate": "Continue a text.",
    "embed": "Compute vectors of texts, one JSON array a line.",
    "rerank": "Rank texts by how well they answer a query.",
    "serve": "Serve models over HTTP with OpenAI's and Anthropic's APIs.",
    "pull": "Download and convert a model by name.",
    "list": "List the models in the model folder.",
    "rm": "Remove models from the model folder.",
    "inspect": "Show what an artefact contains.",
    "verify": "Check an artefact's files and arithmetic.",
    "compile": "Compile kernels for this or other machines, to ship them.",
    "export": "Write an artefact as a checkpoint, or for apps without Python.",
    "eval": "Measure quality: perplexity, agreement with the original, recall.",
    "bench": "Measure speed and memory.",
}
BAD_INPUT = 2
INTERRUPTED = 130


class _Unread(Exception):
    """A broken pipe, which click would end the process for, with 1."""


class _Lazy(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"edgetok.cli.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _Unread from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click would import every command for its one-line help.
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"edgetok {version('edgetok')}")
        ctx.exit()


_HELP = """Convert language models to 2 to 8 bits and run them on small machines.

Run `edgetok COMMAND --help` for the options of a command.
"""
_EXAMPLES = """\b
Examples:
  edgetok chat
  edgetok convert models/default --out artefacts/default-4bit
  edgetok bench artefacts/default-4bit
"""


@click.group(
    cls=_Lazy,
    help=_HELP,
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Show help and version."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command's words; None takes those of the process.

    Returns:
        The exit code: 0; 2 with one line on stderr for an error that the user can fix; 130 for
        Ctrl-C.
    """
    _prepare_streams()
    try:
        result = cli.main(
            None if arguments is None else list(arguments),
            prog_name="edgetok",
            standalone_mode=False,
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return BAD_INPUT
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see {error.ctx.command_path} --help)"
        return _fail(error.format_message() + hint)
    except (UserError, OutputError) as error:
        return _fail(str(error))
    except (BrokenPipeError, _Unread):
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}")
    except MemoryError as error:
        return _fail(f"not enough memory: {error}" if str(error) else "not enough memory")
    except (KeyboardInterrupt, click.Abort):  # click has already ended the line
        return INTERRUPTED


def _fail(message: str) -> int:
    line = " ".join(message.split())
    with contextlib.suppress(OSError):  # nobody reads stderr either
        click.echo(click.style("error: ", fg="red", bold=True) + line, err=True)
    return BAD_INPUT


def _prepare_streams() -> None:
    """Open closed standard streams on the null device, and write whatever an encoding lacks as "?".

    A file that is opened later would otherwise take a closed stream's number, and what is written
    to the stream.
    """
    for name, mode, errors in (
        ("stdin", "r", "surrogateescape"),
        ("stdout", "w", "replace"),
        ("stderr", "w", "backslashreplace"),
    ):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _drop_output() -> None:
    """Send what stdout still holds to the null device if it cannot be written: exit flushes it."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
