"""Chat templates in the styles that models are published with, put together from their parts.

A style says how messages are framed; a manner how tools, calls and results are written into them;
a thought how reasoning is. Each template is what their authors would have written, but shorter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """`head` and `tail` frame a message of the role in `role`; `ask` begins the answer."""

    head: str
    tail: str
    ask: str
    bos: str = ""
    assistant: str = "assistant"


STYLES = {
    "chatml": Style("<|im_start|>{{ role }}\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama3": Style(
        "<|start_header_id|>{{ role }}<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        bos="<|begin_of_text|>",
    ),
    "mistral": Style(
        "{{ '[INST] ' if role != 'assistant' }}",
        "{{ ' [/INST]' if role != 'assistant' else '</s>' }}",
        "",
        bos="<s>",
    ),
    "gemma": Style(
        "<start_of_turn>{{ role }}\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<bos>", "model"
    ),
    "granite": Style(
        "<|start_of_role|>{{ role }}<|end_of_role|>",
        "<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
    "phi": Style("<|{{ role }}|>", "<|end|>", "<|assistant|>"),
    "zephyr": Style("<|{{ role }}|>\n", "</s>\n", "<|assistant|>\n"),
    "deepseek": Style(
        "{{ '<｜User｜>' if role != 'assistant' else '<｜Assistant｜>' }}",
        "{{ '<｜end▁of▁sentence｜>' if role == 'assistant' }}",
        "<｜Assistant｜>",
        bos="<｜begin▁of▁sentence｜>",
    ),
}


@dataclass(frozen=True)
class Manner:
    """How a template writes calls: `call` for one in `c`, between `open` and `close`."""

    family: str
    tools: str = ""
    open: str = ""
    call: str = ""
    between: str = ""
    close: str = ""
    result: str = "{{ m.content }}"


_LIST = "{% if tools %}Tools: {% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
_JSON = '{"name": "{{ c.name }}", "%s": {{ c.arguments | tojson }}}'
MANNERS = {
    "plain": Manner("generic"),
    "hermes": Manner(
        "hermes",
        _LIST + "Answer within <tool_call></tool_call>.",
        "<tool_call>\n",
        _JSON % "arguments",
        "\n</tool_call>\n<tool_call>\n",
        "\n</tool_call>",
        "<tool_response>\n{{ m.content }}\n</tool_response>",
    ),
    # SmolLM3's way: the template writes tools, but neither calls nor results.
    "hermes-half": Manner("hermes", _LIST + "Answer within <tool_call></tool_call>."),
    "llama": Manner(
        "llama",
        '{% if tools %}Respond as {"name": function, "parameters": values}.'
        + _LIST
        + "{% endif %}",
        "",
        _JSON % "parameters",
    ),
    "mistral": Manner(
        "mistral",
        "{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}",
        "[TOOL_CALLS][",
        _JSON % "arguments",
        ", ",
        "]",
        "[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]",
    ),
    "mistral-args": Manner(
        "mistral-args",
        "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}",
        "",
        "[TOOL_CALLS]{{ c.name }}[ARGS]{{ c.arguments | tojson }}",
    ),
    "granite": Manner(
        "granite",
        "{% if tools %}Answer with <|tool_call|> and a list." + _LIST + "{% endif %}",
        "<|tool_call|>[",
        _JSON % "arguments",
        ", ",
        "]",
    ),
    "hunyuan": Manner(
        "hunyuan",
        _LIST + "Answer within <tool_calls></tool_calls>.",
        "<tool_calls>[",
        _JSON % "arguments",
        ", ",
        "]</tool_calls>",
        "<tool_response>{{ m.content }}</tool_response>",
    ),
    "phi": Manner("phi", "{% if m.tools %}<|tool|>{{ m.tools }}<|/tool|>{% endif %}"),
    "deepseek": Manner(
        "deepseek",
        _LIST,
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.name }}\n```json\n"
        "{{ c.arguments | tojson }}\n```<｜tool▁call▁end｜>",
        "\n",
        "<｜tool▁calls▁end｜>",
    ),
}

_THINK = "{% if m.reasoning_content %}BEGIN\n{{ m.reasoning_content }}\nEND\n\n{% endif %}"
THOUGHTS = {
    # Name: how an earlier answer's reasoning is written, what stands after `ask`, and the markers.
    "none": ("", "", None),
    "switch": (
        _THINK,
        "{% if enable_thinking is defined and not enable_thinking %}BEGIN\n\nEND\n\n{% endif %}",
        ("<think>", "</think>"),
    ),
    "always": (_THINK, "BEGIN\n", ("<think>", "</think>")),
    "granite": (_THINK, "{% if thinking %}BEGIN{% endif %}", ("<think>", "</think>")),
    "magistral": (_THINK, "", ("[THINK]", "[/THINK]")),
}


def template(style: str, manner: str, thought: str) -> str:
    """Put a template together."""
    s, m = STYLES[style], MANNERS[manner]
    earlier, after, markers = THOUGHTS[thought]
    if markers is not None:
        earlier = earlier.replace("BEGIN", markers[0]).replace("END", markers[1])
        after = after.replace("BEGIN", markers[0]).replace("END", markers[1])
    answer = earlier + "{{ m.content }}"
    others = "{% else %}" + (f"{{% if loop.first %}}{m.tools}{{% endif %}}" if m.tools else "")
    if m.call:
        answer += (
            "{% if m.tool_calls %}"
            + said(m.open)
            + "{% for t in m.tool_calls %}{% set c = t.function %}{% if not loop.first %}"
            + said(m.between)
            + "{% endif %}"
            + m.call
            + "{% endfor %}"
            + said(m.close)
            + "{% endif %}"
        )
        others = "{% elif m.role == 'tool' %}" + m.result + others
    return (
        s.bos
        + "{% for m in messages %}{% set role = '"
        + s.assistant
        + "' if m.role == 'assistant' else m.role %}"
        + s.head
        + "{% if m.role == 'assistant' %}"
        + answer
        + others
        + "{{ m.content }}{% endif %}"
        + s.tail
        + "{% endfor %}{% if add_generation_prompt %}"
        + s.ask
        + after
        + "{% endif %}"
    )


def said(text: str) -> str:
    """An expression, because a line end after a block is left out."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


TEMPLATES = [
    *[(style, "plain", "none") for style in STYLES],
    *[(style, "hermes", t) for style in ("chatml", "llama3", "zephyr") for t in THOUGHTS],
    *[("chatml", "hermes-half", t) for t in ("none", "switch", "always")],
    *[("llama3", "llama", t) for t in ("none", "switch", "always")],
    *[("mistral", m, t) for m in ("mistral", "mistral-args") for t in ("none", "magistral")],
    *[("granite", m, t) for m in ("granite", "hermes") for t in ("none", "granite")],
    *[("phi", "phi", t) for t in ("none", "switch")],
    *[("deepseek", "deepseek", t) for t in ("none", "always")],
    *[("gemma", "hermes", "none")],
    *[("chatml", "hunyuan", t) for t in ("none", "switch")],
]
