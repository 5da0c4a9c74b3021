"""The chat in the terminal: read lines, run commands, print answers and the status line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetok.cli import settings, streams
from edgetok.cli.terminal.answer_view import ReadingLine, answer_view, show_answer, styled
from edgetok.cli.terminal.blocks import summarised
from edgetok.cli.terminal.interrupt import cancel_on_interrupt
from edgetok.cli.terminal.keys import quiet_keys
from edgetok.cli.terminal.lines import LineReader
from edgetok.cli.terminal.wrap import wrapped
from edgetok.energy import EnergyMeter
from edgetok.engine.cached_tokens import or_larger
from edgetok.errors import EdgetokError, OptionError
from edgetok.library.folder import shown_name

if TYPE_CHECKING:
    from edgetok.answer import ChatAnswer
    from edgetok.chat import Chat
    from edgetok.model import Model

HELP = (
    ("/help", "list the commands"),
    ("/system [TEXT]", "show or set the system message; /system - removes it"),
    ("/undo", "remove the last message and its answer"),
    ("/retry", "answer the last message again"),
    ("/clear", "start a new conversation"),
    ("/set [NAME VALUE]", "show or change sampling options, e.g. /set temp 0.5"),
    ("/memory", "show which tokens the cache still holds"),
    ("/save FILE", "save the conversation to a file"),
    ("/load FILE", "load a saved conversation and continue it"),
    ("/exit", "end the chat; Ctrl-D does the same"),
)
KEYS = (
    ("/re, /m, ...", "short for /retry, /memory, ...: any beginning that only one command has"),
    ("Ctrl-C", "stop the answer, or clear the line"),
    ("Alt-Enter", "begin a new line of the message"),
    ("\\ at the end", "continue the message in the next line"),
    ('"""', "begin, and end, a message of several lines"),
)
_ENDS = {
    "cancelled": "stopped",
    "length": "cut at max_tokens",
    "time": "cut at max_seconds",
    "context": "context full: /undo or /clear",
    "loop": "stopped, because it repeats itself: /set stop_loops off lets it go on",
}


class Repl:
    """A loop that reads, answers and prints until the user leaves."""

    def __init__(self, chat: Chat, model: Model, *, plain: bool = False) -> None:
        """Prepare the terminal.

        Args:
            chat: the conversation.
            model: it is held with.
            plain: show answers as they are, not as markdown.
        """
        self._chat, self._model, self._plain = chat, model, plain
        self._colour = styled()
        self._meter = EnergyMeter(gpu=model.backend.name == "cuda")
        self._told_energy = False
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
            reading = ReadingLine()
            self._answer(self._chat.send(text, progress=reading), reading)
            return False
        name, _, rest = text.strip().partition(" ")
        action = self._commands[settings.find(name.lower(), self._commands, "command")]
        return bool(action(rest.strip()))

    def _answer(self, answer: ChatAnswer, reading: ReadingLine) -> None:
        view = answer_view(self._plain)
        counted = self._meter.read()
        with quiet_keys():
            try:
                with cancel_on_interrupt(answer):
                    show_answer(answer, view, reading.clear)
            finally:
                reading.clear()
                view.finish()
        self._status(answer, self._meter.joules(counted))

    def _status(self, answer: ChatAnswer, joules: float | None) -> None:
        result, chat = answer.result, self._chat
        parts = []
        if result.stats.tokens_per_s:
            parts.append(f"{result.stats.tokens_per_s:,.1f} tokens/s")
        if joules is not None and result.tokens:
            parts.append(f"{joules / len(result.tokens):.2g} J/token")
        memory = chat.memory
        if memory is None:
            parts.append(f"{chat.used_tokens:,} of {chat.context_tokens:,} tokens")
        elif memory.retained >= memory.seen:
            parts.append(f"{memory.seen:,} tokens, all retained")
        else:
            parts.append(f"{memory.retained:,.0f} of {memory.seen:,} tokens retained")
            parts.append(f"{100 * memory.loss:.1f} % of attention lost")
        parts.append(f"{_resident_mb():,.0f} MB")
        if result.finish in _ENDS:
            parts.append(_ENDS[result.finish])
            if result.finish == "context":
                context, trained = self._model.context_tokens, self._model.backend.context_tokens
                parts[-1] += or_larger(context, trained, "a larger --context")
        if self._meter.missing and not self._told_energy:
            self._told_energy = True
            parts.append(f"energy not known: {self._meter.missing}")
        self._note("  " + " · ".join(parts))
        click.echo()

    def _banner(self) -> None:
        model = self._model
        artefact = model.artefact
        bits = artefact.bits_per_weight
        size = streams.megabytes(artefact.weight_bytes)
        if bits is not None:
            size += f", {bits:.1f} bits per weight"
        click.echo(self._styled("edgetok", bold=True) + f"  {shown_name(model.path)}")
        self._note(f"{size} · {model.backend.name} · {model.context_tokens:,} tokens")
        self._note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat")
        click.echo()

    def _help(self, rest: str) -> None:
        del rest
        streams.print_table("", (*HELP, *KEYS))

    def _system(self, rest: str) -> None:
        if rest:
            self._chat.system = None if rest == "-" else rest
        self._note(self._chat.system or "(no system message)")

    def _undo(self, rest: str) -> None:
        del rest
        message = self._chat.undo()
        self._note("(nothing to remove)" if message is None else f"removed: {_short(message)}")

    def _retry(self, rest: str) -> None:
        del rest
        reading = ReadingLine()
        self._answer(self._chat.retry(progress=reading), reading)

    def _clear(self, rest: str) -> None:
        del rest
        self._chat.clear()
        self._note("(a new conversation)")

    def _set(self, rest: str) -> None:
        names = settings.NAMES
        if rest:
            name, value = settings.parse_assignment(rest)
            if value:
                changed = {name: settings.parse_setting(name, value)}
                self._chat.sampling = self._chat.sampling.with_changes(changed)
            names = (name,)
        now = self._chat.sampling
        streams.print_table(
            "", [(name, settings.shown(name, getattr(now, name))) for name in names]
        )

    def _memory(self, rest: str) -> None:
        del rest
        memory = self._chat.memory
        if memory is None:
            self._note("(the cache evicts nothing)" if self._chat.used_tokens else "(empty)")
            return
        size = f"at most {streams.megabytes(memory.nbytes)}"
        if memory.states_bytes:
            share = 100 * memory.states_bytes / memory.nbytes
            size += (
                f", {share:.0f} % of it states of recurrent layers, which are the same "
                "whatever is evicted"
            )
        streams.print_table(
            "",
            [
                ("Tokens so far", f"{memory.seen:,}"),
                ("Retained", f"{memory.retained:,.0f} per head, of at most {memory.slots:,}"),
                (
                    "Always kept",
                    f"first {memory.sinks:,}, system message {memory.pinned:,}, "
                    f"latest {memory.recent:,}",
                ),
                ("Chosen", f"{memory.chosen:,} others, by at least half of the heads"),
                ("Attention lost", f"{100 * memory.loss:.2f} % so far, by evicting"),
                ("Cache", size),
            ],
        )
        self._note(memory.text(self._model.tokenizer.stream().push))

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save FILE")
        self._chat.save(path)
        self._note(f"saved to {path}")

    def _load(self, rest: str) -> None:
        self._chat.load(_path(rest, "/load FILE"))
        for message in self._chat.messages:
            mark = {"user": "› ", "system": "⚙ "}.get(message["role"])
            if mark is not None:
                first, *more = self._wrapped(
                    mark + streams.for_terminal(summarised(message["content"]))
                )
                click.echo(self._styled(mark, bold=True) + first.removeprefix(mark))
                for line in more:
                    click.echo(line)
            else:
                view = answer_view(self._plain)
                view.push(message["content"])
                view.finish()
                click.echo()

    def _exit(self, rest: str) -> bool:
        del rest
        return True

    def _note(self, text: str) -> None:
        for line in self._wrapped(streams.for_terminal(text)):
            click.echo(self._styled(line, dim=True))

    def _error(self, text: str) -> None:
        for line in self._wrapped(streams.for_terminal(" ".join(text.split()))):
            click.echo(self._styled(line, fg="red"))

    def _wrapped(self, text: str) -> list[str]:
        """Return lines for this terminal; elsewhere they stay as they are."""
        if not sys.stdout.isatty():
            return text.split("\n")
        return wrapped(text, shutil.get_terminal_size().columns - 1)

    def _styled(self, text: str, *, bold: bool = False, dim: bool = False, fg: str = "") -> str:
        if not self._colour:
            return text
        return click.style(text, bold=bold or None, dim=dim or None, fg=fg or None)


def _short(text: str) -> str:
    """Return the beginning of a text, cut between words."""
    first = wrapped(" ".join(text.split()), 60)
    return first[0] + (" ..." if len(first) > 1 else "")


def _path(text: str, usage: str) -> Path:
    if not text:
        raise OptionError(f"no file given; use {usage}")
    return Path(text).expanduser()


def _resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6
