"""The options of an answer to a conversation, as keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetok.dialect.request import ChatRequest, Effort
from edgetok.dialect.tool import Tool, tools_of
from edgetok.errors import OptionError
from edgetok.grammar.definition import Grammar
from edgetok.sampling.options import SamplingChanges
from edgetok.text.inputs import (
    checked_messages,
    checked_tools,
    checked_variables,
    joined_parts,
)


class ChatChanges(SamplingChanges, total=False):
    """Options of `Model.chat` beside those of sampling.

    Attributes:
        tools: that the model may call: JSON objects such as {"type": "function", "function":
            {"name", "description", "parameters"}}, or `Tool`s.
        tool_choice: "auto" (the default), "none", "required", or the name of the tool to call.
        parallel_tool_calls: whether one answer may have several calls; True by default.
        schema: a JSON schema or pydantic model that the answer must match.
        grammar: another rule that it must match; see `Grammar.of`.
        effort: of reasoning: "none", "minimal", "low", "medium" or "high"; None leaves it to the
            model.
        reasoning_tokens: most tokens of reasoning, instead of what the effort stands for.
        chat_template_kwargs: what else the chat template looks at.
    """

    tools: Sequence[Mapping[str, Any] | Tool] | None
    tool_choice: str
    parallel_tool_calls: bool
    schema: object
    grammar: object
    effort: Effort | None
    reasoning_tokens: int | None
    chat_template_kwargs: Mapping[str, Any] | None


def needs_messages(options: Mapping[str, Any]) -> bool:
    """Return whether an option has a meaning only for the answer to given messages."""
    own = ChatChanges.__annotations__.keys() - SamplingChanges.__annotations__.keys()
    return not (own | {"progress"}).isdisjoint(options)


def request_of(messages: object, options: dict[str, Any]) -> tuple[ChatRequest, dict[str, Any]]:
    """Return what an answer is asked for with, checked, and the options of sampling.

    Args:
        messages: see `ChatRequest`.
        options: `ChatChanges`.

    Raises:
        GrammarError: schema or grammar are invalid or unsupported, or both given.
        OptionError: something is of another kind or out of range.
    """
    left = dict(options)
    held = Grammar.asked(left.pop("schema", None), left.pop("grammar", None))
    given = left.pop("tools", None)
    choice = left.pop("tool_choice", "auto")
    if not isinstance(choice, str):
        raise OptionError(f"tool_choice is {choice!r:.80}, expected a text")
    request = ChatRequest(
        messages=joined_parts(checked_messages(messages)),
        tools=_tools(given),
        tool_choice=choice,
        parallel_calls=bool(left.pop("parallel_tool_calls", True)),
        effort=left.pop("effort", None),
        reasoning_tokens=left.pop("reasoning_tokens", None),
        grammar=held,
        variables=checked_variables(left.pop("chat_template_kwargs", None)),
    )
    return request, left


def _tools(given: object) -> tuple[Tool, ...]:
    if isinstance(given, (list, tuple)):
        plain = [one for one in given if not isinstance(one, Tool)]
        checked_tools(plain)
    else:
        checked_tools(given)
    return tools_of(given)
