"""The editor of one line: prompt_toolkit, with summaries for large pasted blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import DummyHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from edgetok.cli.terminal.blocks import is_large, size_of
from edgetok.cli.terminal.history import LineHistory

_SUMMARY = re.compile(r"\[pasted #\d+: [^\]\n]*\]")


class LineEditor:
    """Reads lines. A large pasted block is shown as a summary, which Backspace erases whole."""

    def __init__(self, commands: Sequence[str], history: Path | None) -> None:
        """Prepare.

        Args:
            commands: words that the tab key completes at the start of a line.
            history: file for typed lines; None keeps none.
        """
        self._pasted: list[str] = []
        self._session: PromptSession[str] = PromptSession(
            history=DummyHistory() if history is None else LineHistory(history, without=_SUMMARY),
            completer=_Commands(commands),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_suspend=True,
            key_bindings=self._keys(),
            style=Style.from_dict({"prompt": "ansicyan bold"}),
        )

    def read(self, prompt: str) -> str:
        """Return one line as it is shown, with summaries in the place of pasted blocks.

        Raises:
            EOFError: Ctrl-D on an empty line, or the terminal is gone.
            KeyboardInterrupt: Ctrl-C.
        """
        return self._session.prompt([("class:prompt", prompt)])

    def expanded(self, text: str) -> str:
        """Return a text with the pasted blocks in the place of their summaries."""
        blocks = {_summary(i, block): block for i, block in enumerate(self._pasted, start=1)}
        return _SUMMARY.sub(lambda match: blocks.get(match[0], match[0]), text)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add(Keys.BracketedPaste)
        def _paste(event: KeyPressEvent) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            if is_large(text):
                self._pasted.append(text)
                text = _summary(len(self._pasted), text)
            event.current_buffer.insert_text(text)

        @keys.add("escape", "enter")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("backspace")
        def _erase(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            before = buffer.document.text_before_cursor
            last = re.search(_SUMMARY.pattern + "$", before)
            buffer.delete_before_cursor(event.arg if last is None else len(last[0]))

        return keys


class _Commands(Completer):
    """Completes a command at the start of a line."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        del complete_event
        text = document.text_before_cursor
        if text.startswith("/") and not re.search(r"\s", text):
            for word in self._words:
                if word.startswith(text):
                    yield Completion(word + " ", start_position=-len(text))


def _summary(number: int, text: str) -> str:
    """Return what is shown of a pasted block."""
    return f"[pasted #{number}: {size_of(text)}]"
