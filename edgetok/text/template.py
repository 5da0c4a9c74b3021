"""Chat templates: render messages as the text that a model was trained on.

Templates come from strangers. They are rendered as Hugging Face does, in jinja2's immutable
sandbox, and within limits: see `edgetok.text.template_sandbox`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from edgetok.errors import ArtefactError, TemplateError
from edgetok.formats import strict_json
from edgetok.text.inputs import checked_messages, checked_tools, checked_variables
from edgetok.text.template_growth import MARK, mark
from edgetok.text.template_sandbox import MAX_SOURCE_BYTES, compile_template, render

Message = Mapping[str, Any]

_PROBE = "probe"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class ChatTemplate:
    """One compiled template. Safe to use from many threads."""

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        """Compile.

        Args:
            source: the template's text.
            tokens: special tokens by name ("bos_token", ...), as the template sees them.

        Raises:
            TemplateError: it is not a template, or uses what no chat template needs.
        """
        self.source = source
        self._tokens = dict(tokens or {})
        self._template = compile_template(source)

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
        """Load `chat_template.jinja`, or the template in tokenizer_config.json.

        Args:
            folder: the model's folder.
            config: the content of tokenizer_config.json.

        Returns:
            None where the model has no template.

        Raises:
            TemplateError: the template is not usable.
            ArtefactError: the file cannot be read.
        """
        source = find_source(folder, config)
        if source is None:
            return None
        tokens = {}
        for name in _SPECIAL:
            value = config.get(name)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str) and value:
                tokens[name] = value
        return cls(source, tokens)

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names of all variables in the template."""
        found: list[frozenset[str]] = []

        def look(tree: nodes.Template) -> None:
            found.append(frozenset(name.name for name in tree.find_all(nodes.Name)))

        compile_template(self.source, look)
        return found[0]

    @property
    def depends_on(self) -> int | None:
        """Return the number of first messages that a later one's text depends on; None: all.

        Beside these on itself, its neighbours, whether it is the last and its number odd.
        """
        return self._marked[1]

    def parts(self, messages: Sequence[Message]) -> list[str]:
        """Return the text of `render` in pieces: what comes before the messages, then one for each.

        A template that writes the first message apart gives a piece less. `depends_on` is not None.

        Raises:
            TemplateError: as `render`.
        """
        return self._render(self._marked[0], messages, True, {}).split(MARK)

    @cached_property
    def _marked(self) -> tuple[jinja2.Template, int | None]:
        """The template that marks messages, and `depends_on`: only chats that grow ask for them."""
        result: list[int | None] = []
        template = compile_template(self.source, lambda tree: result.append(mark(tree)))
        return template, result[0]

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """Write messages as the model's text.

        Args:
            messages: each with "role" and "content".
            add_generation_prompt: whether the text ends where the assistant begins.
            variables: further variables of the template, such as `enable_thinking`.

        Raises:
            TemplateError: the template refuses the messages, fails, or exceeds its bounds.
        """
        return self._render(self._template, messages, add_generation_prompt, variables)

    def conversation(
        self,
        messages: object,
        tools: object = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Write what an app handed in as the model's text, up to where the assistant begins.

        Args:
            messages: each with "role" and "content".
            tools: descriptions of tools; None for none.
            variables: further variables of the template.

        Raises:
            OptionError: messages, tools or variables are of another kind.
            TemplateError: the template does not use tools, or as `render`.
        """
        given, described = checked_messages(messages), checked_tools(tools)
        if described is not None and "tools" not in self.variables:
            raise TemplateError(
                "this model's chat template does not use tools, so the model would not see them; "
                "use a model that was trained with tools, or describe them in the system message"
            )
        return self.render(given, tools=described, **checked_variables(variables))

    def _render(
        self,
        template: jinja2.Template,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        variables: Mapping[str, object],
    ) -> str:
        given = [dict(message) for message in messages]
        return self._filled(
            template,
            _as_parts(given) if self._takes_parts else given,
            add_generation_prompt,
            variables,
        )

    @cached_property
    def _takes_parts(self) -> bool:
        """Return whether a message's content is a list of parts, as multimodal models have them.

        Such a template passes over a content that is a text, or fails, so both are tried.
        """
        if not re.search(r"""['"]text['"]""", self.source):
            return False
        probe = [{"role": "user", "content": _PROBE}]

        def shown(messages: list[dict[str, Any]]) -> bool:
            try:
                return _PROBE in self._filled(self._template, messages, True, {})
            except TemplateError:
                return False

        return not shown(probe) and shown(_as_parts(probe))

    def _filled(
        self,
        template: jinja2.Template,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, object],
    ) -> str:
        return render(
            template,
            {
                "messages": messages,
                "tools": None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **self._tokens,
                **variables,
            },
        )


def _as_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with texts as lists of one part."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def find_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the template's text: the file beside the tokenizer, or the entry in its configuration.

    Raises:
        ArtefactError: the file cannot be read.
        TemplateError: the entry is not a template.
    """
    path = folder / "chat_template.jinja"
    if path.exists():
        data = strict_json.read_bytes(path, max_bytes=MAX_SOURCE_BYTES, error=ArtefactError)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TemplateError(f"{path}: not UTF-8: {error}") from error
    result = config.get("chat_template")
    if isinstance(result, list):
        named = {
            entry.get("name"): entry.get("template") for entry in result if isinstance(entry, dict)
        }
        result = named.get("default")
    if result is not None and not isinstance(result, str):
        raise TemplateError(
            f"tokenizer_config.json: chat_template is a {type(result).__name__}, expected a text "
            'or a list with an entry named "default"'
        )
    return result


def no_template(folder: Path) -> TemplateError:
    """Return the error for a model without a chat template."""
    return TemplateError(
        f"{folder}: has no chat template, so this model continues text but does not chat; use "
        "`edgetok generate`, or put a chat_template.jinja beside the checkpoint and convert again"
    )
