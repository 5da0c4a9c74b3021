"""Each template: found out, rendered with a call, held by the grammar, and read back."""

from __future__ import annotations

import contextlib
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from edgetok.dialect.detect import detect
from edgetok.dialect.families import GENERIC, UNSUPPORTED
from edgetok.dialect.messages import messages_for
from edgetok.dialect.request import ChatRequest, Speaker
from edgetok.dialect.tool import (
    AnswerPiece,
    CallArguments,
    CallBegin,
    ReasoningPiece,
    TextPiece,
    tools_of,
)
from edgetok.grammar.definition import Grammar
from edgetok.grammar.vocabulary import Vocabulary
from edgetok.sampling.constraint import allowed_tokens
from edgetok.text.template import ChatTemplate
from edgetok.text.tokenizer import Tokenizer
from tests.dialect.conftest import byte_tokenizer
from tests.dialect.templates import MANNERS, TEMPLATES, THOUGHTS, template

TOOLS = tools_of(
    [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Weather of a city",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                    "required": ["city"],
                },
            },
        },
        {"name": "get", "parameters": {"type": "object", "properties": {"a": {}}}},
        {"name": "now"},
    ]
)
MADE = [
    ("get_weather", {"city": 'Zürich "{[', "days": 3}),
    ("now", {}),
    ("get", {"a": {"b": ["}", "\\", "\n"]}}),
]
NAMES = ["-".join(names) for names in TEMPLATES]


@cache
def vocabulary(special: bool) -> Vocabulary:
    tokenizer = byte_tokenizer(special)
    assert tokenizer.eos_token is not None
    return Vocabulary(tokenizer, {tokenizer.eos_token})


def of(tokenizer: Tokenizer) -> Vocabulary:
    return vocabulary(tokenizer is byte_tokenizer(True))


def speaker(names: tuple[str, str, str], tokenizer: Tokenizer) -> Speaker:
    return Speaker(ChatTemplate(template(*names)), tokenizer)


def asked(count: int, content: str, reasoning: str) -> list[dict[str, Any]]:
    calls = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for i, (name, arguments) in enumerate(MADE[:count])
    ]
    answer = {"role": "assistant", "content": content, "tool_calls": calls}
    if reasoning:
        answer["reasoning_content"] = reasoning
    return [{"role": "user", "content": "What now?"}, answer]


def read(plan: Any, tokenizer: Tokenizer, tokens: list[int]) -> list[AnswerPiece]:
    """Let grammar and reader look at an answer's tokens, then at its end."""
    stream = tokenizer.stream((), exact=True, shown=plan.shown)
    pieces: list[AnswerPiece] = []
    for token in tokens:
        if plan.constraint is not None:
            allowed = allowed_tokens(plan.constraint.mask(), tokenizer.vocab_size)
            assert allowed[token], (tokenizer.token_text(token), pieces)
            plan.constraint.accept(token)
        pieces += plan.reader.push(stream.push(token))
    return pieces + plan.reader.push(stream.finish()) + plan.reader.finish()


def joined(pieces: list[AnswerPiece]) -> dict[str, Any]:
    found: dict[str, Any] = {"reasoning": "", "text": "", "calls": []}
    for piece in pieces:
        match piece:
            case ReasoningPiece(text):
                found["reasoning"] += text
            case TextPiece(text):
                found["text"] += text
            case CallBegin(index, call_id, name):
                assert index == len(found["calls"])
                assert call_id
                found["calls"].append([name, ""])
            case CallArguments(index, text):
                assert index == len(found["calls"]) - 1
                found["calls"][index][1] += text
    found["calls"] = [(name, json.loads(arguments)) for name, arguments in found["calls"]]
    return found


@pytest.mark.parametrize("names", TEMPLATES, ids=NAMES)
def test_detected(names: tuple[str, str, str]) -> None:
    _, manner, thought = names
    dialect = speaker(names, byte_tokenizer(False)).dialect
    family = "gemma" if names == ("gemma", "plain", "none") else MANNERS[manner].family
    assert dialect.calls.name == family
    assert dialect.writes_tools == (family not in ("generic", "gemma"))
    assert dialect.writes_calls == bool(MANNERS[manner].call)
    markers = THOUGHTS[thought][2]
    found = dialect.thinking and (dialect.thinking.begin, dialect.thinking.end)
    assert found == markers
    assert dialect.switches == {"switch": ("enable_thinking",), "granite": ("thinking",)}.get(
        thought, ()
    )


@pytest.mark.parametrize("names", TEMPLATES, ids=NAMES)
def test_what_a_template_writes_is_held_and_read(
    names: tuple[str, str, str], tokenizer: Tokenizer
) -> None:
    style, _, thought = names
    one = speaker(names, tokenizer)
    calls = one.dialect.calls
    count = 3 if calls.between is not None else 1
    content = "Let me look." if calls.trigger and style != "mistral" else ""
    early = "<tool_call>" if tokenizer is byte_tokenizer(False) else "A call"
    reasoning = f"Hm.\n{early} would be early. {{" if THOUGHTS[thought][2] else ""
    messages = asked(count, content, reasoning)
    variables: dict[str, object] = {"enable_thinking": True, "thinking": True}
    request = ChatRequest(messages=messages[:1], tools=TOOLS, variables=variables)
    prompt = one.prompt(request)
    tools = {"tools": [tool.json for tool in TOOLS]} if one.dialect.writes_tools else {}
    whole = one.template.render(
        messages_for(one.dialect, messages, TOOLS),
        add_generation_prompt=False,
        **tools,
        **variables,
    )
    if not whole.startswith(prompt):  # Granite's prompt opens the reasoning without a line end
        prompt = prompt.rstrip("\n")
    assert whole.startswith(prompt)
    for name, _ in MADE[:count]:
        assert name in whole[len(prompt) :]
    answer = whole[len(prompt) :]
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
    end |= {"granite": "<|end_of_text|>", "phi": "<|end|>", "deepseek": "<｜end▁of▁sentence｜>"}
    answer = answer.removesuffix("\n").removesuffix(end.get(style, "</s>"))
    plan = one.plan(prompt, request, lambda: of(tokenizer))
    tokens = tokenizer.encode(answer, special=False)
    found = joined(read(plan, tokenizer, tokens))
    assert found == {"reasoning": reasoning, "text": content, "calls": MADE[:count]}
    assert plan.constraint is not None
    assert plan.constraint.complete
    assert [c.values for c in plan.reader.calls] == [arguments for _, arguments in MADE[:count]]


@pytest.mark.parametrize("choice", ["auto", "required", "get_weather"])
@pytest.mark.parametrize("names", [t for t in TEMPLATES if t[2] in ("none", "switch")], ids=str)
def test_whatever_is_drawn_is_valid(
    names: tuple[str, str, str], choice: str, tokenizer: Tokenizer
) -> None:
    """Tokens drawn from the masks; calls begin where the trigger is put into the text."""
    import jsonschema

    one, rng = speaker(names, tokenizer), random.Random(str(names) + choice)
    messages = [{"role": "user", "content": "hi"}]
    request = ChatRequest(messages=messages, tools=TOOLS, tool_choice=choice, effort="none")
    prompt = one.prompt(request)
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    finished = 0
    for _ in range(3):
        plan = one.plan(prompt, request, lambda: of(tokenizer))
        assert plan.constraint is not None
        start = one.dialect.calls.trigger or one.dialect.calls.before_name
        begun = tokenizer.encode("Well. " * bool(one.dialect.calls.trigger) + start, special=False)
        tokens: list[int] = []
        while len(tokens) < 600 and not plan.constraint.ended:
            allowed = allowed_tokens(plan.constraint.mask(), tokenizer.vocab_size)
            token = int(rng.choice(allowed.nonzero()[0]))
            if choice == "auto" and len(tokens) < len(begun):
                token = begun[len(tokens)]
                assert allowed[token]
            quote = tokenizer.encode('"', special=False)[0]
            if allowed[quote] and rng.random() < 0.5 and len(tokens) > len(begun):
                token = quote
            plan.constraint.accept(token)
            if token == tokenizer.eos_token:
                break
            tokens.append(token)
        stream = tokenizer.stream((), exact=True, shown=plan.shown)
        for token in tokens:
            plan.reader.push(stream.push(token))
        plan.reader.finish()
        if not plan.constraint.complete:
            continue
        finished += 1
        assert plan.reader.calls
        assert plan.reader.text == (
            "Well." if choice == "auto" and one.dialect.calls.trigger else ""
        )
        for call in plan.reader.calls:
            jsonschema.validate(call.values, schemas[call.name])
        if choice == "get_weather":
            assert [call.name for call in plan.reader.calls] == [choice]
    assert finished


def test_answers_without_a_call_are_text(tokenizer: Tokenizer) -> None:
    for names in TEMPLATES:
        one = speaker(names, tokenizer)
        request = ChatRequest(messages=[{"role": "user", "content": "hi"}], tools=TOOLS)
        prompt = one.prompt(request)
        plan = one.plan(prompt, request, lambda: of(tokenizer))
        answer = 'It is {"name" :  <tool> or\n"name": "x"}. \n'
        before = ""
        if one.dialect.thinking is not None and prompt.rstrip().endswith(
            one.dialect.thinking.begin
        ):
            before = one.dialect.thinking.end
        found = joined(read(plan, tokenizer, tokenizer.encode(before + answer, special=False)))
        assert found == {"reasoning": "", "text": answer, "calls": []}
        assert plan.constraint is not None
        assert plan.constraint.complete


def test_a_schema_or_a_call(tokenizer: Tokenizer) -> None:
    one = speaker(("chatml", "hermes", "switch"), tokenizer)
    grammar = Grammar.json_schema({"type": "object", "properties": {"x": {"const": 1}}})
    request = ChatRequest(
        messages=[{"role": "user", "content": "hi"}], tools=TOOLS, grammar=grammar
    )
    for answer, text, calls in [
        ('<think>\n{"y"\n</think>\n\n{"x": 1}', '{"x": 1}', []),
        ('{"x":1}', '{"x":1}', []),
        ('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', "", [("now", {})]),
    ]:
        plan = one.plan("", request, lambda: of(tokenizer))
        found = joined(read(plan, tokenizer, tokenizer.encode(answer, special=False)))
        assert (found["text"], found["calls"]) == (text, calls)
        assert plan.constraint is not None
        assert plan.constraint.complete
    for wrong in ("<think>\nno end", "x", '<think>\n</think>\n\n\n\n\n{"x": 1}'):
        plan = one.plan("", request, lambda: of(tokenizer))
        assert plan.constraint is not None
        with contextlib.suppress(AssertionError):
            read(plan, tokenizer, tokenizer.encode(wrong, special=False))
        assert not plan.constraint.complete


REAL = {
    "tokenizers/qwen2.5/tokenizer_config.json": ("hermes", None, ()),
    "chat_templates/qwen3.tokenizer_config.json": ("hermes", "<think>", ("enable_thinking",)),
    "chat_templates/smollm3.jinja": ("hermes", "<think>", ("enable_thinking",)),
    "chat_templates/gemma3.json": ("gemma", None, ()),
    "tokenizers/phi-3-mini/tokenizer_config.json": ("generic", None, ()),
    "tokenizers/tinyllama-chat/tokenizer_config.json": ("generic", None, ()),
    "tokenizers/smollm2/chat_template.jinja": ("generic", None, ()),
}


@pytest.mark.parametrize("path", REAL)
def test_published_templates(data: Path, path: str) -> None:
    """Found out, and calls and results go through them and back."""
    text = (data / path).read_text()
    source = text if path.endswith(".jinja") else json.loads(text)["chat_template"]
    tokenizer = byte_tokenizer(False)
    one = Speaker(ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}), tokenizer)
    family, begin, switches = REAL[path]
    dialect = one.dialect
    assert dialect.calls.name == family
    assert (dialect.thinking and dialect.thinking.begin) == begin
    assert dialect.switches == switches
    count = 3 if dialect.calls.between is not None else 1
    messages = asked(count, "", "")
    request = ChatRequest(messages=messages[:1], tools=TOOLS, effort="none")
    prompt = one.prompt(request)
    assert "get_weather" in prompt
    results = [
        {"role": "tool", "tool_call_id": f"call_{i}", "content": f"result {i}"}
        for i in range(count)
    ]
    if family == "gemma":  # its template wants users and the model to take turns
        results = results[:1]
    again = one.prompt(ChatRequest(messages=[*messages, *results], tools=TOOLS, effort="none"))
    assert "result 0" in again
    assert again.startswith(prompt.removesuffix("<think>\n\n</think>\n\n"))
    start = again.rindex(dialect.calls.begin + dialect.calls.before_name + "get_weather")
    plan = one.plan(prompt, request, lambda: of(tokenizer))
    closing = dialect.calls.end or "}"
    end = again.rindex(closing, start, again.index("result 0")) + len(closing)
    found = joined(read(plan, tokenizer, tokenizer.encode(again[start:end], special=False)))
    assert found["calls"] == MADE[:count]


def test_channels_are_not_taken_for_another_format() -> None:
    source = "{% for m in messages %}<|start|>{{ m.role }}<|channel|>final<|message|>{% endfor %}"
    dialect = detect(source, frozenset({"messages", "tools"}), lambda text: False)
    assert not dialect.writes_tools
    assert "gpt-oss" in dialect.reason


@pytest.mark.parametrize("sign", sorted(UNSUPPORTED))
def test_a_format_without_an_entry_is_asked_for_the_generic_one(sign: str) -> None:
    """And neither tools nor calls are left to its template, which would write both ways."""
    source = f"<tool_call>{sign}{{{{ tools }}}}{{% if m.tool_calls %}}'tool'{{% endif %}}"
    found = detect(source, frozenset({"tools"}), lambda text: False)
    assert (found.calls, sign in found.reason) == (GENERIC, True)
    assert not any((found.writes_tools, found.writes_calls, found.writes_results))
