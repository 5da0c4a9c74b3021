"""Texts in C as in Python: tokens of texts, text of tokens, stop texts, conversations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

import edgetok
from edgetok.errors import EdgetokError, UnsupportedError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import TensorFormat
from edgetok.models.spec import DecoderSpec
from edgetok.native.check import check_texts
from edgetok.native.plan import Section
from edgetok.native.template import template_segments
from edgetok.native.tokenizer import _LLAMA3, tokenizer_tables
from edgetok.text.stop import StopFinder
from edgetok.text.template import ChatTemplate
from edgetok.text.tokenizer import Tokenizer, read_config
from tests.native.conftest import write_export
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact

STORED = ("tokenizers/smollm2", "tokenizers/phi-3-mini", "tokenizers/tinyllama-chat")
STORED += ("models/stories260k", "models/babyllama-105")
TRAINED = ("gpt2", "llama3", "qwen2", "qwen2-nfc", "gemma")


def trained_tokenizer(kind: str, corpus: list[str]) -> tokenizers.Tokenizer:
    """A small tokenizer of the kind that some family has."""
    core = tokenizers.Tokenizer(models.BPE())
    special = ["<|begin|>", "<|end|>"]
    if kind == "gemma":
        core = tokenizers.Tokenizer(
            models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
        )
        core.normalizer = normalizers.Replace(" ", "\u2581")
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        core.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        special += ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        # Gemma's merges cross words.
        trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
        core.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581\\w*"), "isolated")
        core.train_from_iterator(corpus, trainer)
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        return core
    if kind == "qwen2-nfc":
        core.normalizer = normalizers.NFC()
    if kind == "gpt2":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        pattern = Regex(_LLAMA3 % ("{1,3}" if kind == "llama3" else ""))
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    if kind == "llama3":
        state = json.loads(core.to_str())
        state["model"]["ignore_merges"] = True
        core = tokenizers.Tokenizer.from_str(json.dumps(state))
        core.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)]),
            ]
        )
    return core


@pytest.fixture
def opened(library, tiny, tmp_path):
    """A tiny model of random weights with a tokenizer, in C; and the tokenizer in Python."""
    made = []

    def open_it(core, config=None, folder=None):
        size = max(core.get_vocab().values()) + 1
        known = Tokenizer(core, config or {}, size, "tokenizer.json")
        spec = replace(tiny("llama", 16).spec, vocab_size=size)
        artefact = tmp_path / f"artefact-{size}"
        write_artefact(
            artefact, spec, random_tensors(spec), uniform_formats(spec, TensorFormat(16, 32))
        )
        extra = {Section.TOKENIZER: tokenizer_tables(core, known)}
        model = library.open(write_export(artefact, tmp_path / "out", extra=extra), 1)
        made.append(model)
        return model, known

    yield open_it
    for model in made:
        model.__exit__()


@pytest.fixture
def stored(data, opened):
    def open_stored(name):
        folder = data / name
        return opened(
            tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), read_config(folder)
        )

    return open_stored


@pytest.fixture
def corpus(data) -> list[str]:
    """Lines of stories, technical text and several languages."""
    names = ("tinystories.txt", "calibration.multilingual.txt", "calibration.technical.txt")
    return [
        line for name in names for line in (data / "text" / name).read_text()[:200_000].splitlines()
    ]


@pytest.mark.parametrize("name", STORED)
def test_tokens_of_stored_tokenizers(stored, corpus, name):
    model, known = stored(name)
    check_texts(model, known)
    for line in corpus:
        assert model.encode(line) == known.encode(line)
    whole = "\n".join(corpus[:400])
    assert model.encode(whole) == known.encode(whole)


@pytest.mark.parametrize("kind", TRAINED)
def test_tokens_by_each_pattern(opened, corpus, kind):
    model, known = opened(trained_tokenizer(kind, corpus))
    check_texts(model, known)
    for line in corpus:
        assert model.encode(line) == known.encode(line)
    assert (model.encode("a")[0] == 0) == (kind == "llama3")
    for token in range(known.vocab_size):
        assert model.piece(token) == known.piece(token)
    assert model.piece(known.vocab_size) is None
    with pytest.raises(EdgetokError, match="not valid UTF-8"):
        model.encode(b"ab\xff")
    with pytest.raises(EdgetokError, match="not valid UTF-8"):
        model.encode("ab\u20ac".encode()[:-1])


@pytest.mark.parametrize("name", STORED[:3])
def test_text_of_tokens(stored, name):
    """Random tokens make broken characters; stop texts cut what was written before."""
    model, known = stored(name)
    prompts = ([5], known.encode("Hello"), [*known.encode("Hi"), 0], [2, 2])
    rng = np.random.default_rng(1)
    with model.chat(64) as chat:
        for seed in range(24):
            prompt = prompts[seed % len(prompts)]
            stop, expected_stop = (), None
            for _ in range(2):
                chat.sample(temperature=2.0, seed=seed, max_tokens=40, stop=stop)
                chat.prefill(prompt)
                tokens, text, why = chat.answer()
                expected, found = python_text(known, prompt, tokens, stop)
                assert text == expected
                assert (why == "stop") == (found is not None or tokens[-1] == 2)
                if expected_stop is not None and len(expected) > 4:
                    assert expected_stop not in text
                at = int(rng.integers(0, max(1, len(text) - 3)))
                expected_stop = text[at : at + 3] or None
                stop = (expected_stop, "never written") if expected_stop else ()


def python_text(known, prompt, tokens, stops):
    stream, finder, text = known.stream(prompt), StopFinder(stops), ""
    for token in tokens:
        text += finder.push(stream.push(token, hide=token == 2), stream.hidden)
    if finder.found is None:
        text += finder.push(stream.finish())
        text += finder.finish() if finder.found is None else ""
    return text, finder.found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"normalizer": {"type": "NFKC"}}, "its normalizer is .*NFKC"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre-tokenizer has|neither byte-level"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "WordLevel"),
    ],
)
def test_other_tokenizers_are_refused(corpus, change, why):
    core = trained_tokenizer("gpt2", corpus[:200])
    state = json.loads(core.to_str()) | change
    other = tokenizers.Tokenizer.from_str(json.dumps(state))
    size = max(other.get_vocab().values()) + 1
    with pytest.raises(UnsupportedError, match=why):
        tokenizer_tables(other, Tokenizer(other, {}, size, "tokenizer.json"))


TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}"
    "{% endif %}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else "
    "m['role'] %}{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    # Gemma 3 trims what is said, but not the system message in front of it.
    "gemma3": "{{ bos_token }}{% set told = '' %}{% set rest = messages %}"
    "{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% endif %}{% for m in rest %}{% set role = 'model' if "
    "m['role'] == 'assistant' else m['role'] %}{{ '<start_of_turn>' + role + '\n' + (told if "
    "loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set told = "
    "messages[0]['content'] %}{% else %}{% set rest = messages %}{% set told = false %}{% endif %}"
    "{% for m in rest %}{% if loop.index0 == 0 and told != false %}{% set content = '<<SYS>>\\n' + "
    "told + '\\n<</SYS>>\\n\\n' + m['content'] %}{% else %}{% set content = m['content'] %}"
    "{% endif %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_in_pieces(name):
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    made = template_segments(template, seed=1)  # compares 300 conversations
    assert (made.system is None) == (name == "gemma")
    assert made.strips == name.startswith("gemma")
    assert made.strips_system == (name == "gemma")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ messages | length }}", "leaves messages out"),
        ("{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}", "later turns"),
        (TEMPLATES["chatml"].replace("+ m['content']", "+ m['content'] | upper"), "changes"),
        (
            TEMPLATES["chatml"].replace("m['content'] +", "m['content'] | replace('b', '') +"),
            "otherwise than in fixed pieces",
        ),
    ],
)
def test_other_templates_are_refused(source, why):
    with pytest.raises(UnsupportedError, match=why):
        template_segments(ChatTemplate(source, {}))


@pytest.fixture(scope="module")
def bundled(repository: Path) -> Path:
    return repository / "models/default-4bit"


def export_texts(folder: Path, out: Path, library, spec: DecoderSpec, eos, template=None):
    """As `edgetok export` does, without building the library again."""
    from edgetok.native.plan import PLAN_FILE, model_plan
    from edgetok.runtime.cpu.backend import plan_options
    from edgetok.runtime.cpu.plan import make_plan

    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = template or ChatTemplate.from_folder(folder, read_config(folder))
    extra = {
        Section.TOKENIZER: tokenizer_tables(core, Tokenizer.from_folder(folder, spec.vocab_size)),
        Section.TEMPLATE: template_segments(template).to_bytes(),
    }
    with open_artefact(folder) as artefact:
        plan = make_plan(spec, artefact, plan_options(8, "int8", 256))
        (out / PLAN_FILE).write_bytes(model_plan(plan, artefact, eos, extra))
    (out / "model.onnx.data").symlink_to((folder / "model.onnx.data").resolve())
    return library.open(out, 2)


def test_spaces_around_messages(bundled, library, tmp_path):
    """A template may strip what is said and keep the system message as it is."""
    template = ChatTemplate(TEMPLATES["gemma3"], {"bos_token": "<s>"})
    with open_artefact(bundled) as artefact:
        spec = artefact.spec
    core = tokenizers.Tokenizer.from_file(str(bundled / "tokenizer.json"))
    messages = [("system", " Be kind. \n"), ("user", " hi\n"), ("user", "\tagain ")]
    with (
        export_texts(bundled, tmp_path, library, spec, (2,), template) as model,
        model.chat(512) as chat,
    ):
        chat.sample(max_tokens=1)
        chat.say(messages[1][1], messages[0][1])
        for said in (messages[:2], [messages[0], messages[2]]):  # without an answer: replaced
            text = template.render([{"role": role, "content": text} for role, text in said])
            assert chat.tokens() == core.encode(text, add_special_tokens=False).ids
            chat.say(messages[2][1])


@pytest.mark.parametrize("policy", ["none", "recall"])
@pytest.mark.parametrize("system", [None, "You are a pirate.  "])
def test_conversations(bundled, library, tmp_path, policy, system, kernel_cache, monkeypatch):
    monkeypatch.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
    said = ["Hi! Who are you?", " Tell me a story about a cat.\n", "And then?", "1 + 2 = ?"]
    options = {"kv_policy": policy, "context": 512, "threads": 2}
    with edgetok.load(bundled, **options) as python:
        model = export_texts(
            bundled, tmp_path, library, python.backend.spec, python.engine.eos_tokens
        )
        chat = python.new_chat(system=system)
        with model, model.chat(512, policy=policy) as native:
            for i, text in enumerate(said):
                changes = {"max_tokens": 60, "temperature": 0.8, "seed": i}
                answer = chat.send(text, top_k=40, top_p=0.95, min_p=0.0, **changes).run()
                native.sample(top_k=40, top_p=0.95, **changes)
                native.say(text, system if i == 0 else None)
                tokens, written, _ = native.answer()
                assert written == answer.text
                assert tokens == list(answer.tokens)
                assert native.stats.prompt_tokens == answer.stats.prompt_tokens
                assert i == 0 or native.stats.cached_tokens > 10
            # What the cache was computed from, so that another chat can go on from it.
            ids = native.tokens()
            assert len(ids) == native.stats.tokens
            assert ids[-len(tokens) + 1 :] == tokens[:-1]
            assert all(text.strip() in python.tokenizer.decode(ids) for text in said)
            with model.chat(512, policy=policy) as second:
                second.restore(native.save(), ids)
                second.prefill([*ids, 7])
                assert second.stats.cached_tokens == len(ids)
            with pytest.raises(EdgetokError, match="belongs to the first turn"):
                native.say("x", "Be kind.")


def test_system_messages_that_do_not_fit(bundled, library, tmp_path):
    """The error says why, and the chat goes on as if nothing had been said."""
    with open_artefact(bundled) as artefact:
        spec = artefact.spec
    with export_texts(bundled, tmp_path, library, spec, (2,)) as model, model.chat(128) as chat:
        chat.sample(max_tokens=4)
        with pytest.raises(
            EdgetokError, match=r"a system message of \d+ tokens, expected at most 64"
        ):
            chat.say("Hi", "Be kind to every one of them. " * 30)
        with pytest.raises(EdgetokError, match="not valid UTF-8"):
            chat._done(chat.calls.edgetok_say, b"\xff", b"Hi")
        chat.say("Hi", "Be kind.")
        chat.answer()
        ids, block = chat.tokens(), chat.save()
        with model.chat(128) as other:
            other.say("Something else")
            other.answer()
            other.restore(block, ids)
            other.say("Hi", "Be kind.")  # a new conversation
            assert other.tokens() == ids[: len(other.tokens())]
            assert other.stats.cached_tokens > 10
