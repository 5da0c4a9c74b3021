"""Take an answer's text apart as it comes: reasoning, text, and calls with their arguments.

The grammar (`compose.py`) has held the text, so a call is read literally. What is not literally a
call, which only text that no grammar held can be, is text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgetok.dialect.compose import Opening
from edgetok.dialect.families import GENERIC, THINKING, CallFormat, Thinking
from edgetok.dialect.json_end import JsonEnd
from edgetok.dialect.tool import (
    AnswerPiece,
    CallArguments,
    CallBegin,
    ReasoningPiece,
    TextPiece,
    ToolCall,
    new_call_id,
)


class AnswerReader:
    """Reads one answer.

    Attributes:
        reasoning: the model's reasoning, without markers and the line ends around.
        text: the answer, without calls.
    """

    def __init__(
        self,
        *,
        thinking: Thinking | None = None,
        opening: Opening = "off",
        calls: CallFormat | None = None,
        tools: Sequence[str] = (),
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """Begin.

        Args:
            thinking: markers of reasoning; None for none.
            opening: where the answer begins.
            calls: format of calls; None where none are looked for.
            tools: names that can be called.
            new_id: makes ids of calls.
        """
        self.reasoning = ""
        self.text = ""
        self._thinking = THINKING[0] if thinking is None else thinking
        self._thinks = thinking is not None
        self._calls = GENERIC if calls is None else calls
        self._looking = calls is not None  # for calls
        self._tools, self._new_id = tools, new_id
        self._made: list[tuple[str, str]] = []
        self._arguments: list[str] = []
        self._held = ""
        self._json = JsonEnd()
        self._fresh = True  # whether nothing of the text or reasoning was given yet
        self._state: Callable[[bool], list[AnswerPiece] | None] = self._read_text
        if thinking is not None and opening == "open":
            self._state = self._read_reasoning
        elif thinking is not None and opening == "possible":
            self._state = self._read_start

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Return the calls so far; where the answer was cut, the last one's arguments are, too."""
        return tuple(
            ToolCall(id=made[0], name=made[1], arguments=arguments)
            for made, arguments in zip(self._made, self._arguments, strict=True)
        )

    def push(self, text: str) -> list[AnswerPiece]:
        """Add text, markers that are special tokens spelled out; return what is certain."""
        self._held += text
        return self._run(last=False)

    def finish(self) -> list[AnswerPiece]:
        """Return the rest when no more comes."""
        pieces = self._run(last=True)
        self._held = ""
        return pieces

    def _run(self, *, last: bool) -> list[AnswerPiece]:
        """Let states read until one wants more text; each returns None for that."""
        pieces: list[AnswerPiece] = []
        while True:
            before = self._state, len(self._held)
            found = self._state(last)
            pieces += found or []
            if found is None or (self._state, len(self._held)) == before:
                return pieces

    # States. Each takes what it can from what is held, and may set the next one.

    def _read_start(self, last: bool) -> list[AnswerPiece] | None:
        begin, held = self._thinking.begin, self._held.lstrip()
        if held.startswith(begin):
            self._held = held[len(begin) :]
            self._state = self._read_reasoning
            return []
        if begin.startswith(held) and not last:
            return None
        self._state = self._read_text
        return []

    def _read_reasoning(self, last: bool) -> list[AnswerPiece] | None:
        end = self._thinking.end
        place = self._held.find(end)
        if place >= 0:
            text, self._held = self._held[:place], self._held[place + len(end) :]
            pieces = self._thought(text.rstrip())
            self._state, self._fresh = self._read_text, True
            return pieces
        keep = 0 if last else _kept(self._held, end)
        text, self._held = _cut(self._held, len(self._held) - keep)
        return self._thought(text.rstrip() if last else text)

    def _thought(self, text: str) -> list[AnswerPiece]:
        if self._fresh:
            text = text.lstrip()
        if not text:
            return []
        self._fresh = False
        self.reasoning += text
        return [ReasoningPiece(text)]

    def _read_text(self, last: bool) -> list[AnswerPiece] | None:
        calls = self._calls
        if not self._looking:
            return self._said(len(self._held))
        if not calls.trigger:
            self._state = self._read_whole
            return []
        place = self._held.find(calls.trigger)
        if place >= 0:
            head, self._held = self._held[:place], self._held[place:]
            tail = head[len(head.rstrip()) :]
            self._held, rest = head.rstrip(), self._held
            pieces = self._said(len(self._held))
            self._held = rest
            self._before_call = tail
            self._expected = calls.begin
            self._state = self._read_begin
            return pieces
        return self._said(len(self._held) - (0 if last else _kept(self._held, calls.trigger)))

    def _read_whole(self, last: bool) -> list[AnswerPiece] | None:
        """Find out whether an answer that has no marker is a call."""
        held = self._held.lstrip().removeprefix(self._calls.optional).lstrip()
        begin = self._calls.before_name
        if held.startswith(begin):
            self._held, self._before_call, self._expected = held, "", ""
            self._state = self._read_begin
            return []
        partly = begin.startswith(held) or self._calls.optional.startswith(held)
        if partly and not last:
            return None
        self._looking = False
        self._state = self._read_text
        return []

    def _said(self, size: int) -> list[AnswerPiece]:
        """Give the first `size` held characters as text."""
        text, self._held = self._held[:size], self._held[size:]
        if self._fresh and self._thinks:
            text = text.lstrip("\n")
        if not text:
            return []
        self._fresh = False
        self.text += text
        return [TextPiece(text)]

    def _read_begin(self, last: bool) -> list[AnswerPiece] | None:
        """Read what stands before a call's arguments."""
        calls = self._calls
        for name in self._tools:
            head = f"{self._expected}{calls.before_name}{name}{calls.before_arguments}"
            if self._held.startswith(head):
                self._held = self._held[len(head) :]
                index, made = len(self._made), (self._new_id(), name)
                self._made.append(made)
                self._arguments.append("")
                self._json = JsonEnd()
                self._state = self._read_arguments
                return [CallBegin(index, *made)]
            if head.startswith(self._held) and not last:
                return None
        if self._made:  # something between calls that is none
            self._held = ""
            return None
        if last and self._held:
            # Cut before it was certain: a beginning of a call is nothing that a reader wants.
            possible = f"{self._expected}{calls.before_name}"
            if possible.startswith(self._held) or self._held.startswith(possible):
                self._held = ""
                return None
        self._looking = False
        self._held = self._before_call + self._held
        self._state = self._read_text
        return []

    def _read_arguments(self, last: bool) -> list[AnswerPiece] | None:
        size, ended = self._json.push(self._held)
        text, self._held = self._held[:size], self._held[size:]
        index = len(self._arguments) - 1
        self._arguments[index] += text
        if ended:
            self._state = self._read_between
        if text:
            return [CallArguments(index, text)]
        return [] if ended else None

    def _read_between(self, last: bool) -> list[AnswerPiece] | None:
        """Read what stands after a call: another one follows, or the end."""
        calls = self._calls
        more = None if calls.between is None else calls.after + calls.between
        if more is not None and self._held.startswith(more + calls.before_name[:1]):
            self._held = self._held[len(more) :]
            self._expected = ""
            self._state = self._read_begin
            return []
        return None


def _kept(text: str, marker: str) -> int:
    """Return how many characters at the end may belong to a marker, or to the space before it."""
    size = next(
        (n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])),
        0,
    )
    head = text[: len(text) - size]
    return size + len(head) - len(head.rstrip())


def _cut(text: str, size: int) -> tuple[str, str]:
    return text[:size], text[size:]
