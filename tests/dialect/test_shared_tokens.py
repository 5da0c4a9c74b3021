"""Where the next turn's prompt parts from this one, against rendering the turn that follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetok.dialect.request import ChatRequest, Speaker
from edgetok.dialect.tool import Tool
from edgetok.text.template import ChatTemplate, Message
from edgetok.text.tokenizer import Tokenizer
from tests.dialect.conftest import byte_tokenizer
from tests.tiny import write_tokenizer

TURN = "{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}{{ m.content }}<|end|>{{ '\n' }}"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}"
ASK = "{% if add_generation_prompt %}<|assistant|>{{ OPENING }}{% endif %}"
HELLO = [{"role": "user", "content": "hello"}]
TALK = [*HELLO, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "the dog"}]


@pytest.fixture(scope="module")
def joining(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One whose tokens are several letters, so that texts join."""
    folder = tmp_path_factory.mktemp("t")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder, 307)


def shared(template: str, tokenizer: Tokenizer, messages: list[Message], **options: object) -> int:
    speaker = Speaker(ChatTemplate(template), tokenizer)
    request = ChatRequest(messages=messages, **options)  # type: ignore[arg-type]
    return speaker.shared_tokens(request, speaker.encode(speaker.prompt(request)))


def parts(template: str, tokenizer: Tokenizer, messages: list[Message]) -> tuple[int, int]:
    """How many tokens the prompts of two turns have in common, and of all of the first one."""
    made = ChatTemplate(template)
    later = [
        *messages,
        {"role": "assistant", "content": "All right."},
        {"role": "user", "content": "go on"},
    ]
    one, two = (tokenizer.encode(made.render(said), special=False) for said in (messages, later))
    same = max(n for n in range(len(one) + 1) if one[:n] == two[:n])
    return same, len(one)


@pytest.mark.parametrize("messages", [HELLO, TALK], ids=["first", "second"])
def test_another_question_begins_where_this_one_does(
    messages: list[Message], joining: Tokenizer
) -> None:
    template = LOOP + ASK.replace("OPENING", json.dumps("<think>\n"))
    speaker, made = Speaker(ChatTemplate(template), joining), ChatTemplate(template)
    head = made.render(messages[:-1], add_generation_prompt=False) + "<|user|>"
    expected = len(joining.encode(head, special=False))
    for said in ("the dog", "x", "1", ""):
        request = ChatRequest(messages=[*messages[:-1], {"role": "user", "content": said}])
        prompt = speaker.encode(speaker.prompt(request))
        assert speaker.asked_tokens(request, prompt) == expected
    assert speaker.asked_tokens(ChatRequest(messages=[]), [1, 2]) == 0


@pytest.mark.parametrize("messages", [HELLO, TALK], ids=["first", "second"])
@pytest.mark.parametrize("opening", ["<think>\n\n</think>\n\n", "<think>\n", "\n"])
def test_it_is_where_prompts_part(
    opening: str, messages: list[Message], joining: Tokenizer
) -> None:
    template = LOOP + ASK.replace("OPENING", json.dumps(opening))
    expected, whole = parts(template, joining, messages)
    assert 0 < expected < whole
    found = shared(template, joining, messages)
    assert found == (expected if expected < whole - 1 else 0)


def test_texts_that_join(joining: Tokenizer) -> None:
    """Without special tokens between: the last letters are another token in either text."""
    loop = "{% for m in messages %}{{ m.content }} the {% endfor %}"
    template = loop + "{% if add_generation_prompt %}{{ 'little small dog' }}{% endif %}"
    expected, whole = parts(template, joining, HELLO)
    plain = joining.encode("hello the ", special=False)
    prompt = joining.encode("hello the little small dog", special=False)
    assert prompt[: len(plain)] != plain
    assert shared(template, joining, HELLO) == expected < whole


@pytest.mark.parametrize("opening", ["", "x"])
def test_nothing_where_the_history_has_the_opening(opening: str, joining: Tokenizer) -> None:
    written = TURN.replace("{{ m.content }}", "{{ ADDED if m.role != 'user' }}{{ m.content }}")
    loop = "{% for m in messages %}" + written.replace("ADDED", json.dumps(opening))
    template = loop + "{% endfor %}" + ASK.replace("OPENING", json.dumps(opening))
    expected, whole = parts(template, joining, HELLO)
    assert expected == whole
    assert shared(template, joining, HELLO) == 0


def test_a_template_that_refuses_what_comes_next(joining: Tokenizer) -> None:
    refusing = "{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}"
    template = refusing + LOOP + ASK.replace("OPENING", "'<think>'")
    prompt = joining.encode("<|user|>hello<|end|>\n", special=False)
    assert shared(template, joining, HELLO) == len(prompt)
    always = refusing + LOOP + "<|assistant|><think>"
    assert shared(always, joining, HELLO) == 0


def test_a_result_of_a_tool_changes_no_earlier_answer() -> None:
    """A new question leaves out what was thought before, an answer to a tool's result does not."""
    tokenizer = byte_tokenizer(True)
    template = (
        "{{ tools }};{% set ns = namespace(last=0) %}{% for m in messages %}"
        "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{{ m.role }}:"
        "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
        "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
        "{% for t in m.tool_calls or [] %}<tool_call>{{ t.function.name }}</tool_call>{% endfor %}"
        "{% if m.role == 'tool' %}<tool_response>{% endif %};{% endfor %}"
        "{% if add_generation_prompt %}assistant:<think>{{ '\n\n' }}{% endif %}"
    )
    call = {"id": "call_1", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Message] = [
        *HELLO,
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "call_1"},
    ]
    speaker = Speaker(ChatTemplate(template), tokenizer)
    request = ChatRequest(messages=messages, tools=[Tool(name="f", parameters={})])
    text = speaker.prompt(request)
    closed = text.removesuffix("assistant:<think>\n\n")
    assert closed.endswith("tool:1<tool_response>;")
    assert "hm" in closed
    found = speaker.shared_tokens(request, speaker.encode(text))
    assert found == len(tokenizer.encode(closed, special=False))


@pytest.mark.parametrize("thinks", [False, True])
def test_the_template_of_qwen3(joining: Tokenizer, data: Path, thinks: bool) -> None:
    """Without reasoning it opens the answer with an empty thought, which is in no history."""
    settings = json.loads((data / "chat_templates/qwen3.tokenizer_config.json").read_text())
    speaker = Speaker(ChatTemplate(settings["chat_template"]), joining)
    variables = {"enable_thinking": thinks}
    later = [*TALK, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "no"}]
    texts = [
        speaker.prompt(ChatRequest(messages=said, variables=variables)) for said in (TALK, later)
    ]
    one, two = (joining.encode(text, special=False) for text in texts)
    same = max(n for n in range(len(one) + 1) if one[:n] == two[:n])
    assert texts[0].endswith("<think>\n\n</think>\n\n") != thinks
    found = speaker.shared_tokens(ChatRequest(messages=TALK, variables=variables), one)
    assert found == (0 if thinks else same)
    assert (same == len(one)) == thinks
