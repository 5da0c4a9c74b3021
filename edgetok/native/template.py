"""A chat template as the pieces that it writes around messages, or the reason why it is none.

Found by rendering conversations whose messages are marks, and checked by rendering others: a
conversation is the pieces with the messages, stripped or not, between them
(`kernels_cpu/text/template.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgetok.errors import TemplateError, UnsupportedError
from edgetok.kernels_cpu.text.launch import PIECES, STRIPS, STRIPS_SYSTEM
from edgetok.text.template import ChatTemplate

_MARK = "\ue000"
_CHECKED_CHATS = 300
_SAID = ("hi", " hello \n", "a\n\nb", "x ", "\tWas ist das?", "1 < 2 & {{ x }}", "日本語\u3000", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The pieces around the messages of a conversation.

    Attributes:
        first: before the first message.
        system_to_user: between the system message and the first user's; "" without one.
        user_to_assistant: between a message and its answer.
        assistant_to_user: between an answer and the next message.
        generate: after the last message, up to where the answer begins.
    """

    first: str
    system_to_user: str = ""
    user_to_assistant: str
    assistant_to_user: str
    generate: str

    def texts(self) -> tuple[str, ...]:
        """Texts of the template, in the order of `kernels_cpu/text/template.py`."""
        return (
            self.first,
            self.system_to_user,
            self.user_to_assistant,
            self.assistant_to_user,
            self.generate,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """A template in pieces.

    Attributes:
        plain: without a system message.
        system: with one; None where the template refuses it.
        strips: whether spaces around messages are left out.
        strips_system: likewise, around a system message.
    """

    plain: Pieces
    system: Pieces | None
    strips: bool
    strips_system: bool

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """Render (role, text) pairs up to where the answer begins, as C does.

        Raises:
            UnsupportedError: the template takes no such conversation.
        """
        has_system = messages[0][0] == "system"
        pieces = self.system if has_system else self.plain
        if pieces is None:
            raise UnsupportedError("this template takes no system message")
        texts = [
            text.strip() if (self.strips_system if role == "system" else self.strips) else text
            for role, text in messages
        ]
        made = pieces.first
        if has_system:
            made += texts.pop(0) + pieces.system_to_user
        for i, text in enumerate(texts):
            between = (pieces.user_to_assistant, pieces.assistant_to_user)[i % 2]
            made += text + (between if i < len(texts) - 1 else pieces.generate)
        return made

    def to_bytes(self) -> bytes:
        """The section TEMPLATE."""
        numbers, texts = [STRIPS * self.strips | STRIPS_SYSTEM * self.strips_system], b""
        for pieces in (self.plain, self.system):
            parts = [text.encode() for text in pieces.texts()] if pieces else [b""] * PIECES
            numbers += [int(pieces is not None), *map(len, parts)]
            texts += b"".join(parts)
        return np.array(numbers, "<i8").tobytes() + texts


def template_segments(template: ChatTemplate, seed: int = 0) -> Segments:
    """Cut a template into pieces, and compare them with it on some hundred conversations.

    Raises:
        UnsupportedError: it is not made of such pieces; says where it differs.
    """
    plain = _pieces(template, [])
    try:
        system = _pieces(template, [("system", _marked("s"))])
    except TemplateError:
        system = None
    spaced = "  a \n"
    strips = spaced not in _render(template, [("user", spaced)])
    strips_system = strips
    if system is not None:
        strips_system = spaced not in _render(template, [("system", spaced), ("user", "x")])
    made = Segments(plain=plain, system=system, strips=strips, strips_system=strips_system)
    for messages in _chats(random.Random(seed), with_system=system is not None):
        if made.render(messages) != _render(template, messages):
            raise _refused(f"it writes {len(messages)} messages otherwise than in fixed pieces")
    return made


def _chats(rng: random.Random, *, with_system: bool) -> list[list[tuple[str, str]]]:
    made = []
    for _ in range(_CHECKED_CHATS):
        head = with_system and rng.random() < 0.5
        messages = [("system", rng.choice(["Be kind. ", "Du bist hilfreich.", "x"]))] * head
        for i in range(rng.choice([1, 3, 5, 7])):
            said = rng.choice(_SAID)
            messages.append((("user", "assistant")[i % 2], said))
        made.append(messages)
    return made


def _pieces(template: ChatTemplate, head: list[tuple[str, str]]) -> Pieces:
    """The pieces between marks: the middle is to repeat."""
    turns = [(("user", "assistant")[i % 2], _marked(str(i))) for i in range(5)]
    messages = [*head, *turns]
    parts = _render(template, messages).split(_MARK)
    if parts[1::2] != [text.strip(_MARK) for _, text in messages]:
        raise _refused("it leaves messages out, or changes them")
    between, more = parts[0::2], bool(head)
    if between[1 + more : 3 + more] != between[3 + more : 5 + more]:
        raise _refused("it writes later turns otherwise than the first")
    once = _render(template, [*head, turns[0]]).split(_MARK)[-1]
    if once != between[-1]:
        raise _refused("its end depends on how many messages there are")
    return Pieces(
        first=between[0],
        system_to_user=between[1] if more else "",
        user_to_assistant=between[1 + more],
        assistant_to_user=between[2 + more],
        generate=between[-1],
    )


def _marked(text: str) -> str:
    return f"{_MARK}{text}{_MARK}"


def _render(template: ChatTemplate, messages: Sequence[tuple[str, str]]) -> str:
    return template.render([{"role": role, "content": text} for role, text in messages])


def _refused(why: str) -> UnsupportedError:
    return UnsupportedError(f"the chat template cannot be exported: {why}")
