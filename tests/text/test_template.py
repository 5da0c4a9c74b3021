"""Chat templates: equal to transformers. Their bounds: test_template_limits.py."""

# ruff: noqa: E501 - a template is one line

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from edgetok.errors import ArtefactError, TemplateError
from edgetok.text.template import ChatTemplate

TURNS = [
    {"role": "user", "content": "hi  there"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyo"},
    {"role": "user", "content": "a {{ 7 * 7 }} <|im_end|>"},
]
CHATS = {
    "one": TURNS[:1],
    "three": TURNS,
    "system": [{"role": "system", "content": "Be brief."}, *TURNS],
}
SOURCES = {
    "qwen2.5": "tokenizers/qwen2.5/tokenizer_config.json",
    "tinyllama": "tokenizers/tinyllama-chat/tokenizer_config.json",
    "phi3": "tokenizers/phi-3-mini/tokenizer_config.json",
    "smollm2": "tokenizers/smollm2/chat_template.jinja",
    "smollm3": "chat_templates/smollm3.jinja",
    "qwen3": "chat_templates/qwen3.tokenizer_config.json",
    "gemma3": "chat_templates/gemma3.json",
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(source: str, messages: Any = TURNS, **variables: Any) -> str:
    return ChatTemplate(source, TOKENS).render(messages, **variables)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", SOURCES)
def test_as_transformers(data: Path, name: str, chat: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    text = (data / SOURCES[name]).read_text()
    source = text if SOURCES[name].endswith("jinja") else json.loads(text)["chat_template"]
    (theirs,), _ = render_jinja_template(
        [CHATS[chat]], chat_template=source, add_generation_prompt=prompt, **TOKENS
    )
    assert render(source, CHATS[chat], add_generation_prompt=prompt) == theirs


FEATURES = [
    "{% for m in messages %}{{ loop.index0 }}/{{ loop.length }}{{ m.role }}{% if loop.last %}!{% endif %}{% endfor %}",
    "{{ messages | map(attribute='role') | join('+') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ messages[1:] | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x ~ m['content'][:2] %}{% endfor %}{{ ns.x }}",
    "{% macro f(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ f('a') + f('b', y=3) }}",
    "{% set x %}  block {% endset %}{{ x | trim }}{{ bos_token }}",
    "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for i in range(3) %}{{ i }}{% if i == 1 %}{% break %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ messages[0].content.split('  ')[-1].upper().replace('T', 't') }}",
    "{{ ('%s has %d' % ('it', 3)) ~ (7 // 2) ~ (2 ** 5) ~ 'ab' * 3 ~ (7 % 4) }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0] | items | list }}",
    "{{ tools is none }}{{ missing is defined }}{{ messages[0].content is string }}{{ missing }}",
    "{{ [1, 2] + [3] }}{{ {'a': [1]} }}{{ (1, 2) }}{{ 'a' in 'abc' }}{{ x | default('d') }}",
    "{% for i in [[1, [2]], [3]] recursive %}{{ loop(i) if i is sequence else i }}{% endfor %}",
    "{{ 1.5 | round | int }}{{ -1 | abs }}{{ 'a b' | title }}{{ 'x\ny' | indent(2) }}{{ '<' | e }}",
    "{% filter upper %}abc{% endfilter %}{% with a = 1 %}{{ a }}{% endwith %}",
    "{% for m in messages if m.role == 'user' %}{{ m.role }}{% else %}none{% endfor %}",
    "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}x{% endcall %}{{ none }}{{ true }}",
    "{{ messages | length > 2 and not false or 1 }}{{ 'a' if true else 'b' }}{{ -3 }}",
    "  {%- if true %}\n x\n{%- endif %}\n\n",
]


@pytest.mark.parametrize("source", FEATURES)
def test_features_as_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    (theirs,), _ = render_jinja_template([TURNS], chat_template=source, **TOKENS)
    assert render(source, add_generation_prompt=False) == theirs


def test_raise_exception_is_told() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_syntax_error_names_the_line() -> None:
    with pytest.raises(TemplateError, match="line 2"):
        render("\n{% if %}")


def test_strftime_now() -> None:
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")


PARTS = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@pytest.mark.parametrize("chat", CHATS)
def test_contents_are_parts_where_the_template_wants_parts(chat: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    as_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in CHATS[chat]]
    (theirs,), _ = render_jinja_template(
        [as_parts], chat_template=PARTS, add_generation_prompt=True, **TOKENS
    )
    assert render(PARTS, CHATS[chat]) == theirs


def test_a_template_that_takes_both_gets_texts() -> None:
    both = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{% if c.type == 'text' %}[{{ c.text }}]{% endif %}{% endfor %}"
        "{% endif %}{% endfor %}"
    )
    assert render(both, TURNS[:1]) == "hi  there"


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(TemplateError):
        render("{{ messages[0].setdefault('a', 1) }}", messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_from_folder(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(tmp_path, {}) is None
    named = [
        {"name": "tools", "template": "T"},
        {"name": "default", "template": "D{{ bos_token }}"},
    ]
    config = {"chat_template": named, "bos_token": {"content": "<s>"}}
    template = ChatTemplate.from_folder(tmp_path, config)
    assert template is not None
    assert template.render([]) == "D<s>"
    (tmp_path / "chat_template.jinja").write_text("file")
    template = ChatTemplate.from_folder(tmp_path, config)
    assert template is not None
    assert template.render([]) == "file"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TemplateError, match="not UTF-8"):
        ChatTemplate.from_folder(tmp_path, config)
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * 70_000)
    with pytest.raises(ArtefactError, match="at most"):
        ChatTemplate.from_folder(tmp_path, config)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(TemplateError, match="is a int"):
        ChatTemplate.from_folder(tmp_path, {"chat_template": 5})
