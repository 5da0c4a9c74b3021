"""The chat in the terminal: read lines, run commands, print answers and the status line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_type_hints

import click

from edgetok.cli import options as common
from edgetok.cli.interrupt import cancel_on_interrupt
from edgetok.cli.lines import LineReader
from edgetok.errors import EdgetokError, OptionError
from edgetok.sampling.options import SamplingOptions

if TYPE_CHECKING:
    from edgetok.chat import Chat
    from edgetok.engine.generation import Generation
    from edgetok.model import Model

HELP = (
    ("/help", "list the commands"),
    ("/system [TEXT]", "show or set the system message; /system - removes it"),
    ("/undo", "remove the last message and its answer"),
    ("/retry", "answer the last message again"),
    ("/clear", "start a new conversation"),
    ("/set [NAME VALUE]", "show or change sampling options, e.g. /set temperature 0.5"),
    ("/memory", "show which tokens the cache still holds"),
    ("/save FILE", "save the conversation to a file"),
    ("/load FILE", "load a saved conversation and continue it"),
    ("/exit", "end the chat; Ctrl-D does the same"),
)
KEYS = (
    ("Ctrl-C", "stops an answer, or clears the line"),
    ("\\ at the end", "continues the message in the next line"),
    ('"""', "begins and ends a message of several lines"),
)


class Repl:
    """A loop that reads, answers and prints until the user leaves."""

    def __init__(self, chat: Chat, model: Model) -> None:
        """Prepare the terminal."""
        self._chat, self._model = chat, model
        self._colour = sys.stdout.isatty()
        self._commands: dict[str, Callable[[str], bool | None]] = {
            "/help": self._help,
            "/system": self._system,
            "/undo": self._undo,
            "/retry": self._retry,
            "/clear": self._clear,
            "/set": self._set,
            "/memory": self._memory,
            "/save": self._save,
            "/load": self._load,
            "/exit": self._exit,
            "/quit": self._exit,
            "/bye": self._exit,
        }
        self._lines = LineReader([name for name in self._commands if name not in ("/quit", "/bye")])

    def run(self) -> None:
        """Talk until the user leaves."""
        self._banner()
        with self._lines:
            while True:
                try:
                    text = self._lines.read()
                except KeyboardInterrupt:
                    self._note("(Ctrl-D or /exit ends the chat)")
                    continue
                if text is None:
                    click.echo()
                    return
                if not text.strip():
                    continue
                try:
                    if self._turn(text):
                        return
                except EdgetokError as error:
                    self._error(str(error))
                except KeyboardInterrupt:
                    click.echo()

    def _turn(self, text: str) -> bool:
        """Handle one input; return True to leave."""
        if not text.startswith("/") or "\n" in text:
            self._answer(self._chat.send(text))
            return False
        name, _, rest = text.strip().partition(" ")
        action = self._commands.get(name)
        if action is None:
            near = difflib.get_close_matches(name, self._commands, n=1)
            raise OptionError(
                f"unknown command {name}; " + (f"did you mean {near[0]}?" if near else "try /help")
            )
        return bool(action(rest.strip()))

    def _answer(self, answer: Generation) -> None:
        show = common.answer_writer()
        ended = "\n"
        with cancel_on_interrupt(answer):
            for piece in answer:
                ended = piece
                show(piece)
        if not ended.endswith("\n") or not answer.result.text:
            click.echo()
        self._status(answer)

    def _status(self, answer: Generation) -> None:
        result, chat = answer.result, self._chat
        parts = []
        if result.stats.tokens_per_s:
            parts.append(f"{result.stats.tokens_per_s:,.1f} tokens/s")
        memory = chat.memory
        if memory is None:
            parts.append(f"{chat.used_tokens:,} of {chat.context_tokens:,} tokens")
        elif memory.retained >= memory.seen:
            parts.append(f"{memory.seen:,} tokens, all retained")
        else:
            parts.append(f"{memory.retained:,.0f} of {memory.seen:,} tokens retained")
            parts.append(f"{100 * memory.loss:.1f} % of attention lost")
        parts.append(f"{_resident_mb():,.0f} MB")
        if result.finish == "cancelled":
            parts.append("stopped")
        elif result.finish == "length":
            parts.append("cut at max_tokens")
        elif result.finish == "context":
            parts.append("context full: /undo, /clear, or a larger --context")
        self._note("  " + " · ".join(parts))
        click.echo()

    def _banner(self) -> None:
        model = self._model
        artefact = model.artefact
        bits = artefact.bits_per_weight
        size = common.megabytes(artefact.weight_bytes)
        if bits is not None:
            size += f", {bits:.1f} bits per weight"
        click.echo(
            self._styled("edgetok", bold=True)
            + f"  {model.path.resolve().name}  "
            + self._styled(
                f"{size} · {model.backend.name} · {model.context_tokens:,} tokens", dim=True
            )
        )
        self._note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat")
        click.echo()

    def _help(self, rest: str) -> None:
        del rest
        for left, right in (*HELP, *KEYS):
            click.echo(f"  {self._styled(f'{left:<18}', bold=True)} {right}")

    def _system(self, rest: str) -> None:
        if rest:
            self._chat.system = None if rest == "-" else rest
        self._note(self._chat.system or "(no system message)")

    def _undo(self, rest: str) -> None:
        del rest
        message = self._chat.undo()
        self._note("(nothing to remove)" if message is None else f"removed: {message:.60}")

    def _retry(self, rest: str) -> None:
        del rest
        self._answer(self._chat.retry())

    def _clear(self, rest: str) -> None:
        del rest
        self._chat.clear()
        self._note("(a new conversation)")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name and value:
            changed = {name.replace("-", "_"): parse_setting(name.replace("-", "_"), value.strip())}
            self._chat.sampling = self._chat.sampling.with_changes(changed)
        now = dataclasses.asdict(self._chat.sampling)
        if name and name.replace("-", "_") not in now:
            raise OptionError(f"unknown option {name!r}; use one of {', '.join(now)}")
        for key, setting in now.items():
            if not name or key == name.replace("-", "_"):
                click.echo(f"  {key:<20} {setting}")

    def _memory(self, rest: str) -> None:
        del rest
        memory = self._chat.memory
        if memory is None:
            self._note("(the cache evicts nothing)" if self._chat.used_tokens else "(empty)")
            return
        common.print_table(
            "",
            [
                ("Seen", f"{memory.seen:,} tokens"),
                ("Retained", f"{memory.retained:,.0f} per head, at most {memory.slots:,}"),
                ("First", f"{memory.sinks:,}, and {memory.pinned:,} of the system message"),
                ("Latest", f"{memory.recent:,}"),
                ("Chosen", f"{memory.chosen:,} by at least half of the heads"),
                ("Attention lost", f"{100 * memory.loss:.2f} % so far"),
                ("Bytes", f"{memory.nbytes:,}, fixed"),
            ],
        )
        self._note(memory.text(self._model.tokenizer.decode))

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save FILE")
        self._chat.save(path)
        self._note(f"saved to {path}")

    def _load(self, rest: str) -> None:
        self._chat.load(_path(rest, "/load FILE"))
        for message in self._chat.messages:
            mark = {"user": "› ", "system": "⚙ "}.get(message["role"], "")
            click.echo(self._styled(mark, bold=True) + common.for_terminal(message["content"]))

    def _exit(self, rest: str) -> bool:
        del rest
        return True

    def _note(self, text: str) -> None:
        click.echo(self._styled(common.for_terminal(text), dim=True))

    def _error(self, text: str) -> None:
        click.echo(self._styled(" ".join(text.split()), fg="red"))

    def _styled(self, text: str, *, bold: bool = False, dim: bool = False, fg: str = "") -> str:
        if not self._colour:
            return text
        return click.style(text, bold=bold or None, dim=dim or None, fg=fg or None)


def parse_setting(name: str, text: str) -> object:
    """Return the value that was typed for a sampling option.

    Raises:
        OptionError: the option is unknown, or the text is not a value of it.
    """
    kinds = get_type_hints(SamplingOptions)
    if name not in kinds:
        raise OptionError(f"unknown option {name!r}; use one of {', '.join(kinds)}")
    if name == "stop":
        return () if text in ("-", "none") else (common.unescape(text),)
    if type(None) in get_args(kinds[name]) and text in ("-", "none"):
        return None
    with contextlib.suppress(ValueError):
        return float(text) if kinds[name] is float else int(text)
    raise OptionError(f"{name} is {text!r}, expected a number")


def _path(text: str, usage: str) -> Path:
    if not text:
        raise OptionError(f"no file given; use {usage}")
    return Path(text).expanduser()


def _resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6
