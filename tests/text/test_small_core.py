"""Tokenizers kept as arrays give the tokens that the `tokenizers` package gives."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from edgetok.errors import ArtefactError
from edgetok.text import small_core
from edgetok.text.detokenizer import byte_alphabet
from edgetok.text.tokenizer import Tokenizer
from edgetok.text.tokenizer_check import open_core

NAMES = ["tokenizers/phi-3-mini", "tokenizers/smollm2", "tokenizers/tinyllama-chat"]
RANGES = [
    (32, 127),
    (32, 127),
    (0x20, 0x2FF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1FAFF),
]


def never() -> tokenizers.Tokenizer:
    raise AssertionError("the whole tokenizer was loaded")


def kept(folder: Path, data: bytes, read: Callable[[], Any] = never) -> Any:
    """Save and load again."""
    digest = hashlib.sha256(data).hexdigest()
    small_core.save(folder, digest, open_core(data, "x", ArtefactError), data)
    return small_core.load(folder, digest, read)


def texts(core: tokenizers.Tokenizer, count: int) -> list[str]:
    """Texts of words, of any characters, with runs of spaces and added tokens."""
    rng = random.Random(5)
    words = Path(__file__).read_text().split(" ")
    added = [token.content for token in core.get_added_tokens_decoder().values()]
    made = [" ".join(rng.choices([*words, "", "\n"], k=rng.randrange(30))) for _ in range(count)]
    for _ in range(count):
        chars = [chr(rng.randrange(*rng.choice(RANGES))) for _ in range(rng.randrange(40))]
        made.append("".join(chars) + rng.choice(added) + "".join(chars[:5]))
    return made


@pytest.mark.parametrize("name", NAMES)
def test_same_tokens_as_the_package(data: Path, tmp_path: Path, name: str) -> None:
    raw = (data / name / "tokenizer.json").read_bytes()
    core = open_core(raw, name, ArtefactError)
    small = kept(tmp_path / "kept", raw)
    for text in texts(core, 100):
        small._chars = 0
        for special in (True, False):
            theirs = core.encode(text, add_special_tokens=special)
            ours = small.encode(text, add_special_tokens=special)
            assert (ours.ids, ours.tokens) == (theirs.ids, theirs.tokens), text
            for skip in (True, False):
                decoded = small.decode(ours.ids, skip_special_tokens=skip)
                assert decoded == core.decode(ours.ids, skip_special_tokens=skip)
    size = core.get_vocab_size(with_added_tokens=True)
    assert [small.id_to_token(i) for i in range(size + 3)] == [
        core.id_to_token(i) for i in range(size + 3)
    ]
    for text in [*random.Random(1).sample(sorted(core.get_vocab()), 300), "no such token", ""]:
        assert small.token_to_id(text) == core.token_to_id(text)
    for with_added in (True, False):
        expected = core.get_vocab_size(with_added_tokens=with_added)
        assert small.get_vocab_size(with_added_tokens=with_added) == expected


def test_words_that_are_tokens_are_not_merged(data: Path, tmp_path: Path) -> None:
    """Llama 3's tokenizer asks for it: a word is looked up before its merges are applied."""
    state = json.loads((data / "tokenizers/smollm2/tokenizer.json").read_text())
    state["model"]["ignore_merges"] = True
    vocab = state["model"]["vocab"]
    new = max(vocab.values()) + 1
    vocab["Ġqzxv"] = new  # no merge makes it
    core = open_core(json.dumps(state).encode(), "x", ArtefactError)
    assert small_core.tables(core, json.dumps(state).encode()) is None  # some bytes have no token
    for char in byte_alphabet():
        vocab.setdefault(char, len(vocab))
    raw = json.dumps(state).encode()
    core = open_core(raw, "x", ArtefactError)
    small = kept(tmp_path / "kept", raw)
    assert core.encode("a qzxv b", add_special_tokens=False).ids[1] == new
    for text in ["a qzxv b", " qzxv", "qzxv", *texts(core, 30)]:
        small._chars = 0
        ours = small.encode(text, add_special_tokens=False).ids
        assert ours == core.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("field", "value"), [("end_of_word_suffix", "</w>"), ("continuing_subword_prefix", "##")]
)
def test_other_kinds_are_left_to_the_package(tmp_path: Path, field: str, value: str) -> None:
    vocab = {text: i for i, text in enumerate(["a", "b", "a</w>", "b</w>", "##a", "##b"])}
    model = tokenizers.models.BPE(vocab=vocab, merges=[], **{field: value})
    core = tokenizers.Tokenizer(model)
    core.decoder = tokenizers.decoders.ByteLevel()
    assert small_core.tables(core, core.to_str().encode()) is None


def test_long_texts_load_the_whole(data: Path, tmp_path: Path) -> None:
    raw = (data / NAMES[1] / "tokenizer.json").read_bytes()
    core = open_core(raw, "x", ArtefactError)
    loads: list[int] = []

    def read() -> tokenizers.Tokenizer:
        loads.append(1)
        return core

    small = kept(tmp_path / "kept", raw, read)
    assert len(small.encode("one two", add_special_tokens=False).ids) == 2
    assert loads == []
    text = "word " * small_core.LONG_CHARS
    ours = small.encode(text, add_special_tokens=False).ids
    assert ours == core.encode(text, add_special_tokens=False).ids
    assert small.get_vocab(with_added_tokens=True) == core.get_vocab(with_added_tokens=True)
    assert loads == [1]


def test_loaded_by_hash_and_made_anew_if_damaged(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_core, "MIN_TOKENIZER_BYTES", 0)
    source = data / NAMES[1] / "tokenizer.json"
    path = tmp_path / "tokenizer.json"
    path.write_bytes(source.read_bytes())
    digest, kept_in = hashlib.sha256(path.read_bytes()).hexdigest(), tmp_path / "kept"

    def load() -> Any:
        return Tokenizer.from_folder(tmp_path, 49_152, digest=digest, kept=kept_in)

    first, second = load(), load()
    assert isinstance(first._core, tokenizers.Tokenizer)
    assert isinstance(second._core, small_core.SmallCore)
    assert first.encode("Hello, world") == second.encode("Hello, world")
    (file,) = kept_in.glob("*.tokens")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    assert isinstance(load()._core, tokenizers.Tokenizer)
    again = load()
    assert isinstance(again._core, small_core.SmallCore)
    path.write_bytes(path.read_bytes().replace(b'"type": "BPE"', b'"type":  "BPE"') + b"\n")
    with pytest.raises(ArtefactError, match="changed since it was opened"):
        again.vocabulary()
    kept_in.chmod(0o777)
    path.write_bytes(source.read_bytes())
    assert isinstance(load()._core, tokenizers.Tokenizer)
