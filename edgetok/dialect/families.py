"""Formats of tool calls and reasoning, one entry a family, as data.

Calls read: begin, call, (between, call)*, end; a call: before_name, the tool's name,
before_arguments, its arguments as JSON, after. Families were trained on these texts; the grammar
allows no others, so that the reader needs no tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """A family's format of tool calls.

    Attributes:
        name: name of the family.
        signs: texts in a chat template, or in the vocabulary, that all show the family.
        trigger: beginning of a call in the middle of text; "" where calls are the whole answer.
        begin: before the first call, `trigger` included.
        before_name, before_arguments, after: of one call.
        between: two calls; None where only one call can be made.
        end: after the last call.
        optional: text that may stand before `begin` where calls are the whole answer.
        attached: whether the template expects the tools as text with the system message.
        own_prompt: whether templates of the family do not write tools, so that `messages.py` does.
    """

    name: str
    signs: tuple[str, ...]
    trigger: str = ""
    begin: str = ""
    before_name: str = '{"name": "'
    before_arguments: str = '", "arguments": '
    after: str = "}"
    between: str | None = None
    end: str = ""
    optional: str = ""
    attached: bool = False
    own_prompt: bool = False


HERMES = CallFormat(
    name="hermes",
    signs=("<tool_call>",),
    trigger="<tool_call>",
    begin="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    end="\n</tool_call>",
)
"""Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4."""

FORMATS: tuple[CallFormat, ...] = (
    CallFormat(
        name="mistral-args",
        signs=("[TOOL_CALLS]", "[ARGS]"),
        trigger="[TOOL_CALLS]",
        before_name="[TOOL_CALLS]",
        before_arguments="[ARGS]",
        after="",
        between="",
    ),
    CallFormat(
        name="mistral",
        signs=("[TOOL_CALLS]",),
        trigger="[TOOL_CALLS]",
        begin="[TOOL_CALLS][",
        between=", ",
        end="]",
    ),
    CallFormat(
        name="hunyuan",
        signs=("<tool_calls>", "</tool_calls>"),
        trigger="<tool_calls>",
        begin="<tool_calls>[",
        between=", ",
        end="]</tool_calls>",
    ),
    CallFormat(
        name="phi",
        signs=("<|tool|>", "<|/tool|>"),
        trigger="<|tool_call|>",
        begin="<|tool_call|>[",
        between=", ",
        end="]<|/tool_call|>",
        attached=True,
    ),
    CallFormat(
        name="granite",
        signs=("<|tool_call|>",),
        trigger="<|tool_call|>",
        begin="<|tool_call|>[",
        between=", ",
        end="]",
    ),
    CallFormat(
        name="deepseek",
        signs=("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
        trigger="<｜tool▁calls▁begin｜>",
        begin="<｜tool▁calls▁begin｜>",
        before_name="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        before_arguments="\n```json\n",
        after="\n```<｜tool▁call▁end｜>",
        between="\n",
        end="<｜tool▁calls▁end｜>",
    ),
    HERMES,
    CallFormat(
        name="llama",
        signs=("<|start_header_id|>", '"parameters": '),
        before_arguments='", "parameters": ',
        optional="<|python_tag|>",
    ),
    CallFormat(
        name="gemma",
        signs=("<start_of_turn>",),
        before_arguments='", "parameters": ',
        own_prompt=True,
    ),
)
"""In the order in which they are tried; the first whose signs are all there."""

GENERIC = replace(HERMES, name="generic", signs=(), own_prompt=True)
"""For every other model: Hermes' format, which the system message explains."""

UNSUPPORTED = {
    "<function=": "calls with parameters as XML (Qwen3-Coder, Qwen3.5)",
    "<start_function_call>": "FunctionGemma's calls",
    "<|channel|>": "calls in channels (gpt-oss)",
    "<arg_key>": "calls with keys and values as XML (GLM 4.5)",
    "<|START_ACTION|>": "numbered calls (Command R7B)",
    "<|tool_call_start|>": "calls as Python (LFM2)",
    "<|tool_call>": "calls with keys without quotes (Gemma 4)",
}
"""Signs of formats that have no entry yet, and what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """A family's markers around reasoning.

    Attributes:
        begin, end: markers around the reasoning.
    """

    begin: str
    end: str


THINKING: tuple[Thinking, ...] = (
    Thinking(begin="<think>", end="</think>"),
    Thinking(begin="[THINK]", end="[/THINK]"),
    Thinking(begin="<seed:think>", end="</seed:think>"),
    Thinking(begin="<thinking>", end="</thinking>"),
    Thinking(begin="Here is my thought process:", end="Here is my response:"),
)
"""The first whose end a template names, or whose markers the vocabulary has."""

SWITCHES = ("enable_thinking", "thinking")
"""Variables of templates that turn reasoning on (True) or off (False)."""

EFFORTS: dict[str, int | None] = {
    "none": 0,
    "minimal": 128,
    "low": 512,
    "medium": 2048,
    "high": 8192,
}
"""Tokens of reasoning that each effort stands for."""
