"""40 templates in the styles of the known families, 20 conversations each, against jinja2.

The environment is set up as transformers sets it up. What one of the two refuses the other refuses.
"""

# ruff: noqa: E501 - a template is one line

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2
import pytest
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgetok.errors import TemplateError
from edgetok.text.template import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    def _support(self, caller: Any) -> str:
        return str(caller())


def as_transformers(source: str, messages: Any, **variables: Any) -> str:
    """Render as `transformers.utils.chat_template_utils` does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    values = {"tools": None, "documents": None, "add_generation_prompt": True}
    text: str = environment.from_string(source).render(
        messages=messages, **{**values, **TOKENS, **variables}
    )
    return text


def said(*turns: Any) -> list[dict[str, Any]]:
    """Messages of "role text" or of objects."""
    found = []
    for turn in turns:
        if isinstance(turn, str):
            role, _, text = turn.partition(" ")
            turn = {
                "role": {"u": "user", "a": "assistant", "s": "system", "t": "tool"}[role],
                "content": text,
            }
        found.append(turn)
    return found


CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}},
}
CALL_TEXT = {
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": [2, null]}'},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say the <weather> & wind",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "days": {"type": "integer"},
            },
            "required": ["city"],
        },
    },
}
BARE = {
    "name": "add",
    "description": 'Adds "two"',
    "parameters": {"type": "object", "properties": {}},
}
THOUGHT = "<think>\nLet me see: 1 < 2\n</think>\n\nYes & no"
PARTS = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
PICTURE = [{"type": "image", "image": "x.png"}, {"type": "text", "text": "What is this?"}]

CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one": (said("u Hi"), {}),
    "three": (said("u Hi", "a  Hello there. ", "u  Bye\n"), {}),
    "system": (said("s Be brief.", "u Hi"), {}),
    "system-three": (said("s Be\nbrief. ", "u Hi", "a Yo", "u So?"), {}),
    "system-in-the-middle": (said("u Hi", "a Yo", "s Be rude.", "u So?"), {}),
    "two-systems": (said("s One.", "s Two.", "u Hi"), {}),
    "no-prompt": (said("u Hi", "a Yo"), {"add_generation_prompt": False}),
    "ends-with-assistant": (said("u Hi", "a Yo"), {}),
    "two-users": (said("u Hi", "u Are you there?"), {}),
    "assistant-first": (said("a Welcome.", "u Hi"), {}),
    "thought": (said("u Hi", {"role": "assistant", "content": THOUGHT}, "u Why?"), {}),
    "reasoning": (
        said("u Hi", {"role": "assistant", "content": "Yes", "reasoning_content": "Hm."}, "u Why?"),
        {"enable_thinking": False},
    ),
    "none-content": (
        said("u Hi", {"role": "assistant", "content": None, "tool_calls": [CALL]}, "t 21 °C"),
        {"tools": [TOOL]},
    ),
    "no-content": (
        said(
            "u Hi", {"role": "assistant", "tool_calls": [CALL, CALL_TEXT]}, "t 21", "t 3", "u Good"
        ),
        {"tools": [TOOL, BARE]},
    ),
    "tools-unused": (said("s Help.", "u Hi"), {"tools": [TOOL]}),
    "parts": ([{"role": "user", "content": PARTS}], {}),
    "system-parts": (
        [{"role": "system", "content": PARTS}, {"role": "user", "content": PICTURE}],
        {},
    ),
    "odd-text": (said("u \r\n<b>'x'</b> {{ 7 }} {% if %} 😀 ﬁ ß\t\u2028", "a ", "u #"), {}),
    "empty": ([], {}),
    "long": (
        said(*[f"{'ua'[i % 2]} turn {i}, [INST] a-b c" for i in range(41)]),
        {
            "documents": [{"title": "T", "text": "D"}],
            "enable_thinking": True,
            "date_string": "1 Jan",
        },
    ),
}

_CHATML = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_INST = "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"

TEMPLATES = {
    "chatml": _CHATML,
    "chatml-default-system": "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}" + _CHATML,
    "chatml-attributes": "{%- for m in messages -%}\n{{- '<|im_start|>' ~ m.role ~ '\\n' -}}\n{{- m.content | trim -}}\n{{- '<|im_end|>\\n' -}}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n{{- '<|im_start|>assistant\\n' -}}\n{%- endif -%}",
    "smollm-first": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nA helper<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "qwen-tools": "{%- if tools %}\n{{- '<|im_start|>system\\n' }}\n{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You help.' }}{%- endif %}\n{{- '\\n\\n# Tools\\n<tools>' }}\n{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}\n{{- '\\n</tools><|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n{%- if message.role == 'user' or (message.role == 'system' and not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n{%- elif message.role == 'assistant' %}{{- '<|im_start|>' + message.role }}{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}\n{%- for tool_call in message.tool_calls %}{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}{{- '\\n<tool_call>\\n{\"name\": \"' }}{{- tool_call.name }}{{- '\", \"arguments\": ' }}{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}\n{%- elif message.role == 'tool' %}\n{%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|im_start|>user' }}{%- endif %}{{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}{%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\\n' }}{%- endif %}\n{%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    "qwen-thinking": "{%- set ns = namespace(multi_step=true, last=messages | length - 1) %}\n{%- for message in messages[::-1] %}{%- set index = (messages | length - 1) - loop.index0 %}{%- if ns.multi_step and message.role == 'user' and message.content is string and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}{%- set ns.multi_step = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}\n{%- for message in messages %}{%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}{%- if message.role == 'assistant' %}{%- set reasoning = '' %}{%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}{%- elif '</think>' in content %}{%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{%- if loop.index0 > ns.last %}{{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "llama3-tools": "{{- bos_token }}\n{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}\n{%- if messages and messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{%- endif %}{{- 'Today: ' + date_string + '\\n\\n' }}{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}{%- endif %}{{- system_message }}{{- '<|eot_id|>' }}\n{%- for message in messages %}{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{%- elif 'tool_calls' in message %}{%- if not message.tool_calls | length == 1 %}{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}{%- set tool_call = message.tool_calls[0].function %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{{- '{\"name\": \"' + tool_call.name + '\", \"parameters\": ' }}{{- tool_call.arguments | tojson }}{{- '}' }}{{- '<|eot_id|>' }}{%- elif message.role == 'tool' %}{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}{%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}{{- '<|eot_id|>' }}{%- endif %}{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}",
    "mistral": _INST,
    "mistral-tools": "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{%- set user_messages = loop_messages | selectattr('role', 'equalto', 'user') | list %}{{- bos_token }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}{%- if tools is not none and (message == user_messages[-1]) %}{{- '[AVAILABLE_TOOLS] [' }}{%- for tool in tools %}{%- set tool = tool.function if tool.function is defined else tool %}{{- '{\"type\": \"function\", \"function\": {' }}{%- for key, val in tool.items() if key != 'return' %}{%- if val is string %}{{- '\"' + key + '\": \"' + val + '\"' }}{%- else %}{{- '\"' + key + '\": ' + val | tojson }}{%- endif %}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- '}}' }}{%- if not loop.last %}{{- ', ' }}{%- else %}{{- ']' }}{%- endif %}{%- endfor %}{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}{%- if loop.last and system_message is defined %}{{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}{%- elif message.tool_calls is defined and message.tool_calls is not none %}{{- '[TOOL_CALLS] [' }}{%- for tool_call in message.tool_calls %}{%- set out = tool_call.function | tojson %}{{- out[:-1] }}{{- ', \"id\": \"' + (tool_call.id or 'none') + '\"}' }}{%- endfor %}{{- ']' + eos_token }}{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] | trim + eos_token }}{%- elif message['role'] in ['tool', 'tool_results'] %}{%- set content = message.content %}{{- '[TOOL_RESULTS] {\"content\": ' + content | string + '}[/TOOL_RESULTS]' }}{%- else %}{{- raise_exception('Only user and assistant roles are supported, with the exception of an initial optional system message!') }}{%- endif %}{%- endfor %}",
    "mixtral-names": "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' -%} [INST] {{ m.content }} [/INST] {%- elif m.role == 'assistant' -%} {{ m.content }}{{ eos_token }} {%- endif -%}{%- endfor -%}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}",
    "gemma3-parts": "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- else -%}{%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}\n{%- for message in loop_messages -%}{%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}{{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else '') }}{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- else -%}{{ raise_exception('Invalid content type') }}{%- endif -%}{{ '<end_of_turn>\\n' }}{%- endfor -%}\n{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}",
    "phi3": "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
    "phi4-tools": "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "falcon-replace": "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}{% if message['role'] == 'system' %}{{ 'System: ' }}{% elif message['role'] == 'user' %}{{ 'User: ' }}{% else %}{{ 'Falcon: ' }}{% endif %}{{ message['content'].strip().replace('\\r\\n', '\\n').replace('\\n\\n', '\\n') }}{% endfor %}{% if add_generation_prompt %}{{ '\\nFalcon:' }}{% endif %}",
    "vicuna": "{% if messages and messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + ' ' %}{% set rest = messages[1:] %}{% else %}{% set system = 'A chat between a user and an assistant. ' %}{% set rest = messages %}{% endif %}{{ bos_token + system }}{% for m in rest %}{{ m['role'].upper() + ': ' + m['content'].rstrip() + (' ' if m['role'] == 'user' else eos_token) }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "alpaca-title": "{% for m in messages %}### {{ 'Instruction' if m.role == 'user' else m.role.title() if m.role != 'assistant' else 'Response' }}:\n{{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}",
    "title-and-case": "{% for m in messages %}{{ m.role | title }}/{{ m.role.title() }}/{{ m.role.capitalize() }}/{{ m.content.swapcase() if m.content is string else m.content | length }}: {{ (m.content or '') | string | title }}\n{% endfor %}",
    "openchat": "{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>'}}{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}",
    "deepseek": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is none %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls']%}{%- if not ns.is_first %}{{'<|Assistant|><|tool_calls_begin|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments'] | tojson + '\\n```'}}{%- set ns.is_first = true -%}{%- else %}{{'\\n' + tool['type']}}{%- endif %}{%- endfor %}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + '<|end|>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|>'}}{% endif %}",
    "command-r": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}{% set system_message = 'default' %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% if system_message != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% for message in loop_messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% elif message['role'] == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
    "python-signatures": "{%- macro kind(spec) %}{%- set names = {'string': 'str', 'number': 'float', 'integer': 'int', 'boolean': 'bool'} %}{%- if names[spec.type] is defined %}{{- names[spec.type] }}{%- elif spec.type == 'array' %}{{- 'List[' + kind(spec['items']) + ']' }}{%- else %}{{- 'Any' }}{%- endif %}{%- endmacro %}{%- for tool in tools or [] %}{%- set f = tool.function or tool %}{{- 'def ' + f.name + '(' }}{%- for name, spec in f.parameters.properties.items() %}{{- name + ': ' + kind(spec) }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ') # ' + f.description + '\\n' }}{%- endfor %}{%- for m in messages %}{{- m.role + ': ' }}{{- m.content if m.content is string }}{{- '\\n' }}{%- endfor %}",
    "xml-tools": "{% for tool in tools or [] %}<tool name=\"{{ (tool.function or tool).name | e }}\">{{ (tool.function or tool).description | escape }}{% for k, v in (tool.function or tool).items() | sort %}{{ k }}={{ v | tojson(sort_keys=true) }};{% endfor %}</tool>\n{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content | e }}</{{ m.role }}>\n{% endfor %}",
    "granite": "{%- if messages and messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set system_message = 'Today: ' ~ strftime_now('%B %d, %Y') %}{%- if tools and documents %}{%- set system_message = system_message + ' both' %}{%- elif tools %}{%- set system_message = system_message + ' tools' %}{%- elif documents %}{%- set system_message = system_message + ' documents' %}{%- endif %}{%- set loop_messages = messages %}{%- endif %}{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' }}{{- tools | tojson(indent=4) }}{{- '<|end_of_text|>\\n' }}{%- endif %}{%- if documents %}{%- for document in documents %}{{- 'Document ' + loop.index | string + '\\n' + document['title'] + '\\n' + document['text'] }}{%- if not loop.last %}{{- '\\n\\n' }}{%- endif %}{%- endfor %}{%- endif %}{%- for message in loop_messages %}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}{%- endfor %}",
    "olmo": "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}{% else %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}",
    "generation-marks": "{% for m in messages %}{% if m.role == 'assistant' %}<|a|>{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}<|{{ m.role[:1] }}|>{{ m.content }}{% endif %}\n{% endfor %}",
    "macros-and-calls": "{% macro turn(role, end='<|end|>') %}<|{{ role }}|>{{ caller() }}{{ end }}{% endmacro %}{% for m in messages %}{% call turn(m.role) %}{{ m.content | default('', true) }}{% endcall %}{% endfor %}{{ turn.name is defined and '' }}",
    "filter-block": "{% for m in messages %}{% filter upper %}{{ m.role }}{% endfilter %}: {% set text %}{{ m.content }}{% endset %}{{ text | replace('\\n', ' ') | truncate(20) }}|{{ text | wordcount }}|{{ text | indent(2) }}\n{% endfor %}",
    "loop-names": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}/{{ loop.revindex0 }}{{ loop.cycle('x', 'y') }}{% if loop.changed(m.role) %}!{% endif %}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role if not loop.last }} {{ m.content }}\n{% else %}nothing{% endfor %}",
    "select-and-map": "{{ messages | map(attribute='role') | join(',') }};{{ messages | map(attribute='role') | unique | join(',') }};{{ messages | rejectattr('role', 'in', ['system', 'tool']) | map(attribute='content', default='?') | select('string') | map('length') | join('+') }};{% for role, group in messages | groupby('role') %}{{ role }}={{ group | length }} {% endfor %};{{ messages | selectattr('tool_calls') | list | length }}",
    "parts-joined": "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}{% if m.content is string %}{{ m.content }}{% elif m.content is sequence %}{{ m.content | selectattr('type', 'eq', 'text') | map(attribute='text') | join('') }}{% else %}{{ m.content }}{% endif %}\n{% endfor %}",
    "break-and-continue": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index > 3 %}{% break %}{% endif %}{{ m.role }}:{{ m.content }};{% endfor %}{{ messages[-1:] | length }}{{ (messages | last).role }}{{ (messages | first).role }}",
    "methods-in-loops": "{% for m in messages if m.content is string %}{{ m.content.split()[:2] | join('_') }}|{{ m.content.partition(' ')[2] }}|{{ m.content.rsplit(' ', 1)[-1] }}|{{ m.content.find('i') }}|{{ m.content.count('t') }}|{{ m.content.removeprefix('Hi') }}|{{ m.content.splitlines() }}|{{ m.content.ljust(6, '.') }}|{{ m.role.center(12) }}|{{ '7'.zfill(3) }}|{{ 'a\\tb'.expandtabs(4) }}|{{ '-'.join(m.role) }}|{{ m.content.encode is defined and '' if false }}\n{% endfor %}",
    "formats": "{% for m in messages %}{{ '%s:%d %5.2f%%' % (m.role, loop.index, 1.5) }} {{ '{}-{:>4}-{r!r}'.format(m.role, loop.index, r=m.role) }} {{ '%-10s|' | format(m.role) }} {{ '%(a)s' % {'a': m.role} }}\n{% endfor %}",
    "escaped-text": "{% for m in messages %}{{ (m.role | e) + '<' + (m.content | string) }}{{ ('<' | e) ~ '<' }}{{ (m.role | safe) + '<&>' }}{{ (m.content | string | forceescape) is escaped }}{{ ('a<b' | e).replace('a', '<') }}\n{% endfor %}",
    "numbers": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + (m.content | string | length) %}{{ ns.n is odd }}{{ ns.n is divisibleby(3) }}{{ ns.n // 2 }}{{ (ns.n / 3) | round(2) }}{{ -ns.n | abs }}{{ ns.n | float }}{{ '12' | int }}{{ 'ff' | int(0, 16) }}{{ 2 ** 3 }}{{ ns.n | filesizeformat }}\n{% endfor %}{{ [1, 2, 3] | sum }}{{ messages | sum(attribute='role', start=0) if false }}{{ [3, 1, 2] | sort(reverse=true) | join }}{{ [1, 5] | min }}{{ [1, 5] | max }}",
    "other-filters": "{% for row in range(7) | batch(3, '-') %}{{ row | join(',') }};{% endfor %}{% for part in range(7) | slice(3) %}{{ part }}{% endfor %}{{ {'b': 1, 'a': 2} | dictsort }}{{ {'a': 1} | items | list }}{{ 'a b&c' | urlencode }}{{ '<p>x  y</p>' | striptags }}{{ {'id': 'x'} | xmlattr }}{{ 'one two three' | wordwrap(7) }}{{ [1, [2]] | pprint }}{{ 'see http://a.b/c' | urlize }}{{ messages[0] | attr('keys') is callable }}{{ 'x' | attr('upper') is defined }}{{ messages | reverse | map(attribute='role') | join }}{{ cycler('a', 'b').next() }}{% set j = joiner('/') %}{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}{{ 'upper' is filter }}{{ 'odd' is test }}{{ messages.copy() | length }}{{ messages[0].copy() is mapping }}{{ none | d('x', true) }}{{ 1.0.is_integer() }}{{ 'É'.casefold() }}",
}  # fmt: skip


def test_there_are_forty_templates_and_twenty_conversations() -> None:
    assert len(TEMPLATES) >= 40
    assert len(CONVERSATIONS) == 20


@pytest.mark.parametrize("name", TEMPLATES)
def test_as_jinja2_set_up_by_transformers(name: str) -> None:
    template = ChatTemplate(TEMPLATES[name], TOKENS)
    written = 0
    for chat, (messages, variables) in CONVERSATIONS.items():
        try:
            theirs = as_transformers(TEMPLATES[name], messages, **variables)
        except Exception:
            theirs = None
        if theirs is None:
            with pytest.raises(TemplateError):
                template.render(messages, **variables)
        else:
            assert template.render(messages, **variables) == theirs, chat
            written += 1
    assert written >= 5


def test_the_environment_is_that_of_transformers() -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    theirs = utils._compile_jinja_template("{{ 1 }}").environment
    ours = ChatTemplate("{{ 1 }}")._template.environment
    assert set(theirs.filters) == set(ours.filters)
    assert set(theirs.tests) == set(ours.tests)
    assert set(theirs.globals) == set(ours.globals)
    for flag in (
        "trim_blocks",
        "lstrip_blocks",
        "keep_trailing_newline",
        "autoescape",
        "undefined",
    ):
        assert getattr(theirs, flag) == getattr(ours, flag)
    (messages, variables), source = CONVERSATIONS["no-content"], TEMPLATES["qwen-tools"]
    (text,), _ = utils.render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, **TOKENS, **variables
    )
    assert text == as_transformers(source, messages, **variables)


# What would be different at each rendering is refused, with the reason.
@pytest.mark.parametrize("source", ["{{ [1, 2] | random }}", "{{ lipsum() }}"])
def test_what_is_random_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="each rendering is different"):
        ChatTemplate(source).render([])
