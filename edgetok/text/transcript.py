"""The tokens of a growing conversation, computed at the cost of the new text.

The text of n messages begins with that of the first n - 1 where the template writes each message by
itself (`text/template_growth.py`), and so do the tokens where a message begins with a special
token, at which tokenizers split first. Both are checked; if either fails, everything is rendered
and tokenised again. The result always equals that of rendering and tokenising everything.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgetok.errors import TemplateError
from edgetok.text.template import ChatTemplate, Message
from edgetok.text.tokenizer import Tokenizer


class Transcript:
    """Tokens of one conversation.

    Attributes:
        end: the last text that `tokens` rendered: at least where the assistant begins.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        """Start without any rendered message."""
        self._template, self._tokenizer = template, tokenizer
        self._head = template.depends_on
        # Tokens before the last of these messages, and the texts of the first ones.
        self._messages: list[dict[str, object]] = []
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._shift = 0
        self.end = ""

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant begins.

        Raises:
            TemplateError: the template refuses the messages.
            OptionError: a message is not valid Unicode or names a token without embedding.
        """
        result = self._grown(messages)
        return self._rendered_again(messages) if result is None else result

    def _rendered_again(self, messages: Sequence[Message]) -> list[int]:
        self._messages = []
        if self._head is None:
            self.end = self._template.render(messages)
            return self._encode(self.end)
        parts = self._template.parts(messages)
        ids = self._encode("".join(parts))
        self._shift = len(parts) - len(messages)
        self._texts = parts[: self._head + 1 + self._shift]
        self._ids = []
        self.end = parts[-1]
        self._remember(messages, ids, parts[-1])
        return ids

    def _grown(self, messages: Sequence[Message]) -> list[int] | None:
        """None where nothing is known of a conversation that begins like this one."""
        before = len(self._messages)
        if self._head is None or before == 0 or list(messages[:before]) != self._messages:
            return None
        # The first messages, then from the last one but one that was rendered, which is only there
        # as a neighbour; its number is odd where it was.
        start = before - 2
        head = self._head + (start - self._head) % 2
        if start < head:
            return None
        try:
            parts = self._template.parts([*messages[:head], *messages[start:]])
        except TemplateError:
            return None
        shift = len(parts) - head - (len(messages) - start)
        same = head - 1 + shift  # the last of them had another neighbour
        if shift != self._shift or parts[:same] != self._texts[:same]:
            return None
        added = self._encode("".join(parts[head + 1 + shift :]))
        if not added or not self._tokenizer.is_cut(added[0]):
            return None
        ids = self._ids + added
        self.end = parts[-1]
        self._remember(messages, added, parts[-1])
        return ids

    def _remember(self, messages: Sequence[Message], added: list[int], last: str) -> None:
        """Keep the tokens before the last message, if it begins where a token does."""
        tail = self._encode(last)
        cut = len(added) - len(tail)
        if not tail or not self._tokenizer.is_cut(tail[0]) or added[cut:] != tail:
            self._messages = []
            return
        self._ids += added[:cut]
        self._messages += [dict(message) for message in messages[len(self._messages) :]]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=False)
