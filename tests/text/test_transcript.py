"""A conversation's tokens, grown turn by turn, against rendering and tokenising all of it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from edgetok.errors import TemplateError
from edgetok.text.template import ChatTemplate
from edgetok.text.tokenizer import Tokenizer
from edgetok.text.transcript import Transcript
from tests.fake import CHATML, VOCAB_SIZE, write_tokenizer

TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}" + ASK

LOCAL = {
    "plain": CHATML,
    "a default system message": (
        "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}" + TURN + "{% endfor %}" + ASK
    ),
    "the system message apart": (
        "{% if messages[0].role == 'system' %}{% set text = messages[0].content %}"
        "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if loop.first and text %}{{ text }}{% endif %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles take turns') }}{% endif %}" + TURN + "{% endfor %}" + ASK
    ),
    "neighbours": (
        "{% for m in messages %}"
        "{% if loop.first or messages[loop.index0 - 1].role != m.role %}"
        "{{ '<|im_start|>' + m.role }}{% else %}<|im_start|>{% endif %}{{ m.content }}"
        "{% if loop.last or loop.nextitem.role != m.role %}<|im_end|>{% endif %}"
        "{{ loop.previtem.content[:2] if loop.previtem else '' }}{% if loop.last %}!{% endif %}"
        "{% for c in m.content %}{% if loop.last %}{{ loop.length }}{% endif %}{% endfor %}"
        "{% endfor %}" + ASK
    ),
    "the first by number": (
        "{% for m in messages %}"
        "{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'user' %}"
        "<|im_start|>{{ m.role }}{% endif %}{% if loop.index > 3 %}<|im_start|>{% endif %}"
        "{{ m.content }}{% endfor %}" + ASK
    ),
    "the first question again": (
        "{% for m in messages %}<|im_start|>{{ messages[3].content if messages[3] else '' }}"
        "{{ m.content | trim }}{% endfor %}" + ASK
    ),
}
NOT_LOCAL = {
    "counts": LOOP.replace("m['role']", "(messages | length) | string"),
    "the last message before": "{{ messages[-1].content }}" + LOOP,
    "numbers": LOOP.replace("m['role']", "loop.index | string"),
    "from the end": LOOP.replace("m['role']", "loop.revindex | string"),
    "a sum": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "<|im_start|>{{ ns.n }}{{ m.content }}{% endfor %}"
    ),
    "two loops": LOOP + LOOP,
    "a filter": LOOP.replace("in messages", "in messages | reverse"),
    "some": LOOP.replace("in messages", "in messages if m.content"),
    "a loop in a loop": "{% for x in [1] %}" + LOOP + "{% endfor %}",
    "captured": "{% set x %}" + LOOP + "{% endset %}{{ x }}",
    "stops": LOOP.replace(TURN, TURN + "{% if m.content == 'x' %}{% break %}{% endif %}"),
    "the loop by another name": LOOP.replace(TURN, "{% set l = loop %}{{ l.index }}" + TURN),
    "the time": LOOP.replace("m['role']", "strftime_now('%S')"),
    "the time by another name": (
        "{% set a = strftime_now('%S') %}{% set b = a %}" + LOOP.replace("m['role']", "b")
    ),
    "no loop": "{{ messages[0].content }}",
    "a macro": "{% macro f() %}" + LOOP + "{% endmacro %}{{ f() }}",
}


class Counting:
    """A tokenizer that adds up the characters it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.characters = tokenizer, 0
        self.is_cut = tokenizer.is_cut

    def encode(self, text: str, *, special: bool) -> list[int]:
        self.characters += len(text)
        return self._tokenizer.encode(text, special=special)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("t")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder, VOCAB_SIZE)


def whole(
    template: ChatTemplate, tokenizer: Tokenizer, messages: list[dict[str, str]]
) -> list[int]:
    return tokenizer.encode(template.render(messages), special=False)


def said(rng: random.Random) -> str:
    parts = ["a", "<|im_", "start|>", "<|im_end|>", "<|im_start|>", "\n", " ", "é", "x y", "\0"]
    return "".join(rng.choices(parts, k=rng.randrange(5)))


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("system", [False, True])
def test_grows_as_all_of_it_would(name: str, system: bool, tokenizer: Tokenizer) -> None:
    """Turns, second answers, edits and undone turns in random order."""
    rng = random.Random(f"{name} {system}")
    template = ChatTemplate(LOCAL[name])
    assert template.depends_on is not None
    transcript = Transcript(template, tokenizer)
    head = [{"role": "system", "content": said(rng)}] if system else []
    turns: list[dict[str, str]] = [{"role": "user", "content": "hello"}]
    for _ in range(150):
        result = transcript.tokens([*head, *turns])
        assert result == whole(template, tokenizer, [*head, *turns])
        what = rng.random()
        if what < 0.8:
            turns.append({"role": "assistant", "content": said(rng)})
            turns.append({"role": "user", "content": said(rng)})
        elif what < 0.9:
            del turns[max(1, len(turns) - 2 * rng.randrange(3)) :]
        elif what < 0.95:
            turns[rng.randrange(len(turns))]["content"] = said(rng)
        elif head:
            head[0]["content"] = said(rng)


@pytest.mark.parametrize("name", NOT_LOCAL)
def test_other_templates_are_rendered_whole(name: str, tokenizer: Tokenizer) -> None:
    template = ChatTemplate(NOT_LOCAL[name])
    assert template.depends_on is None
    messages = [{"role": "user", "content": "a"}]
    transcript = Transcript(template, tokenizer)
    result = transcript.tokens(messages)
    if "time" not in name:
        assert result == whole(template, tokenizer, messages)


def test_a_turn_costs_its_own_text(tokenizer: Tokenizer) -> None:
    """Characters tokenised and messages rendered in a turn are the same after 20 and 1,000."""
    template, counting = ChatTemplate(CHATML), Counting(tokenizer)
    rendered = []
    parts = template.parts
    template.parts = lambda messages: (rendered.append(len(messages)), parts(messages))[1]  # type: ignore[method-assign]
    transcript = Transcript(template, counting)  # type: ignore[arg-type]
    turns: list[dict[str, str]] = []
    costs = []
    for i in range(1000):
        turns.append({"role": "user", "content": f"{i:04d}"})
        counting.characters, result = 0, transcript.tokens(turns)
        costs.append((counting.characters, rendered[-1]))
        turns.append({"role": "assistant", "content": f"{i:04d}!"})
    assert set(costs[20:]) == {costs[20]}
    assert costs[20][0] < 200
    assert result == whole(template, tokenizer, turns[:-1])


def test_a_refusal_in_the_middle_changes_nothing(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(LOCAL["the system message apart"])
    transcript = Transcript(template, tokenizer)
    turns = [{"role": ("user", "assistant")[i % 2], "content": str(i)} for i in range(9)]
    transcript.tokens(turns)
    with pytest.raises(TemplateError, match="roles take turns"):
        transcript.tokens([*turns, {"role": "user", "content": "again"}])
    assert transcript.tokens(turns) == whole(template, tokenizer, turns)


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("tokenizers/qwen2.5/tokenizer_config.json", True),
        ("tokenizers/tinyllama-chat/tokenizer_config.json", True),
        ("tokenizers/phi-3-mini/tokenizer_config.json", True),
        ("tokenizers/smollm2/chat_template.jinja", True),
        ("chat_templates/gemma3.json", True),
        ("chat_templates/qwen3.tokenizer_config.json", False),
    ],
)
def test_real_templates(name: str, local: bool, data: Path) -> None:
    """With their own tokenizers, or with one whose words they are not."""
    text = (data / name).read_text()
    source = text if name.endswith("jinja") else json.loads(text)["chat_template"]
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    assert (template.depends_on is not None) == local
    folder = (data / name).parent
    if not (folder / "tokenizer.json").exists():
        folder = data / "tokenizers/smollm2"
    tokenizer = Tokenizer.from_folder(folder, 200_000)
    counting = Counting(tokenizer)
    transcript = Transcript(template, counting)  # type: ignore[arg-type]
    turns: list[dict[str, str]] = []
    for i in range(12):
        turns.append({"role": "user", "content": f" What is {i}? <x> \n"})
        counting.characters = 0
        assert transcript.tokens(turns) == whole(template, tokenizer, turns)
        turns.append({"role": "assistant", "content": f"It is {i}.\n\n"})
    # TinyLlama's roles are plain text to its tokenizer, where nothing says that it may be cut.
    if local and folder == (data / name).parent and "tinyllama" not in name:
        assert counting.characters < 250
