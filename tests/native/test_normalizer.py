"""Normal form C in C as in the `tokenizers` package: the tokenizer of Qwen 2.5 as it is."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from edgetok.errors import EdgetokError, UnsupportedError
from edgetok.kernels_cpu.text.launch import NUMBERS
from edgetok.native import languages
from edgetok.native.check import check_texts
from edgetok.native.library import HEADER
from edgetok.native.normalizer import normal_tables
from edgetok.native.plan import PLAN_FILE, Section
from edgetok.native.tokenizer import tokenizer_tables
from edgetok.text.tokenizer import Tokenizer
from tests.native.conftest import write_export
from tests.native.test_plan import sections

WRAPPER = Path(languages.__file__).parent / "wrappers/python/libedgetok.py"
# Of Qwen2's tokenizer.json: its pattern, as transformers writes it.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SCRIPTS = {
    "latin": (0x20, 0x250), "vietnamese": (0x1E00, 0x1F00), "greek": (0x370, 0x400),
    "polytonic": (0x1F00, 0x2000), "cyrillic": (0x400, 0x530), "hebrew": (0x591, 0x5F5),
    "arabic": (0x600, 0x700), "arabic later": (0x890, 0x900), "devanagari": (0x900, 0x980),
    "bengali": (0x980, 0xA00), "tamil": (0xB80, 0xC00), "kannada": (0xC80, 0xD00),
    "sinhala": (0xD80, 0xE00), "thai": (0xE00, 0xE60), "tibetan": (0xF00, 0x1000),
    "jamo": (0x1100, 0x1200), "kana": (0x3040, 0x3100), "hangul": (0xAC00, 0xD7A4),
    "symbols": (0x2000, 0x2330), "han": (0x4E00, 0x5000), "compatible": (0xF900, 0xFB50),
    "music": (0x1D15E, 0x1D1E9), "later han": (0x2F800, 0x2FA1E), "balinese": (0x1B00, 0x1B80),
    "grantha": (0x11300, 0x11380), "kaithi": (0x11080, 0x110D0), "dives": (0x11930, 0x11960),
    "marks": (0x300, 0x370), "more marks": (0x1DC0, 0x1E00),
}  # fmt: skip


@pytest.fixture(scope="module")
def qwen(data) -> tokenizers.Tokenizer:
    """Qwen 2.5's tokenizer, put together from its vocabulary and merges."""
    folder = data / "tokenizers/qwen2.5"
    core = tokenizers.Tokenizer(
        models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = [config["added_tokens_decoder"][key] for key in sorted(config["added_tokens_decoder"])]
    core.add_tokens([AddedToken(**one) for one in added])
    return core


@pytest.fixture
def export(library, tiny, tmp_path):
    """Opens a tiny model with a tokenizer's tables, whatever its own vocabulary."""
    from dataclasses import replace

    from edgetok.formats.layout import TensorFormat
    from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact

    def write(core):
        size = max(core.get_vocab().values()) + 1
        known = Tokenizer(core, {}, size, "tokenizer.json")
        spec = replace(tiny("llama", 16).spec, vocab_size=size)
        artefact = tmp_path / f"artefact-{size}"
        formats = uniform_formats(spec, TensorFormat(4, 32))
        write_artefact(artefact, spec, random_tensors(spec), formats)
        tables = tokenizer_tables(core, known)
        return write_export(artefact, tmp_path / "out", extra={Section.TOKENIZER: tables}), known

    return write


def random_texts(count):
    """Texts of a few scripts each, with marks of any class in any order."""
    rng = np.random.default_rng(12)
    ranges = list(SCRIPTS.values())
    marks = [code for first, last in ranges for code in range(first, last)]
    marks = [code for code in marks if unicodedata.combining(chr(code))]
    for i in range(count):
        text = ""
        for _ in range(int(rng.integers(1, 5))):
            first, last = ranges[int(rng.integers(len(ranges)))]
            for code in rng.integers(first, last, int(rng.integers(1, 9))).tolist():
                text += chr(code)
                for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.4 else 0):
                    text += chr(marks[int(rng.integers(len(marks)))])
            text += " " * int(rng.integers(2))
        yield unicodedata.normalize("NFD", text) if i % 4 == 0 else text


def test_qwen(qwen, export, library):
    out, known = export(qwen)
    with library.open(out, 1) as model:
        check_texts(model, known)
        texts = list(random_texts(6000))
        assert sum(qwen.normalizer.normalize_str(text) != text for text in texts) > 3500
        for text in texts:
            assert model.encode(text) == known.encode(text), text
        for code in range(0x30000):  # each character behind a letter and before a mark
            if code % 256 == 0:
                text = "".join(
                    f"a{chr(c)}\u0301 " for c in range(code, code + 256) if not 0xD800 <= c < 0xE000
                )
                assert model.encode(text) == known.encode(text), hex(code)
        for text in (
            "한국어",
            unicodedata.normalize("NFD", "한국어 각 갂 힣"),
            "\u1100\u1161\u11a8\u11a8 \u1100\u0301\u1161 \uac00\u11a7 \uac01\u11a8",
            "\u0301\u0323abc",
            "a\u0301\u0323\u0345\u031b" * 50,
            "a" + "\u0301\u0323" * 3000,
            "<|im_start|>e\u0301<|im_end|>\u0301e",
            "\u212b \u2126 \u0958 \u0340 \u2adc \U0001d15e \ufb1d",
        ):
            assert model.encode(text) == known.encode(text), text
        for broken in (b"a\xff", b"e\xcc", b"\xed\xa0\x80", b"\xcc\x81\xcc"):
            with pytest.raises(EdgetokError, match="not valid UTF-8"):
                model.encode(broken)


def test_tables():
    """By Python's own Unicode, which is newer: what is in the tables is the same there."""
    made = normal_tables()
    for code, *parts in made.decompositions:
        expected = unicodedata.normalize("NFD", chr(code))
        assert "".join(chr(part) for part in parts if part) == expected
    for first, second, both in made.compositions:
        assert unicodedata.normalize("NFC", chr(first) + chr(second)) == chr(both)
    for first, last, own in made.classes:
        assert {unicodedata.combining(chr(code)) for code in range(first, last + 1)} == {own}
    assert made.compositions == sorted(made.compositions)
    assert made.unstable[0][0] == 0x300  # texts below are not looked at


def test_damaged_tables_do_not_crash(qwen, export, library):
    """Tables that are wrong but in range give other tokens; those out of range are refused."""
    small = tokenizers.Tokenizer.from_str(qwen.to_str())
    state = json.loads(small.to_str())
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    state["model"]["vocab"] = {c: i for i, c in enumerate(sorted(letters))}
    state["model"]["merges"], state["added_tokens"] = [], []
    out, _ = export(tokenizers.Tokenizer.from_str(json.dumps(state)))
    content = (out / PLAN_FILE).read_bytes()
    begin, size = sections(content)[Section.TOKENIZER]
    numbers = dict(
        zip(NUMBERS, struct.unpack_from(f"<{len(NUMBERS)}q", content, begin), strict=True)
    )
    tables = 4 * sum(
        n * numbers[name]
        for n, name in ((2, "unstable"), (5, "decompositions"), (3, "classes"), (3, "compositions"))
    )
    pieces = numbers["tokens"] + len(letters)
    end = begin + size - pieces
    rng = np.random.default_rng(3)
    texts = list(random_texts(20))
    refused = 0
    for _ in range(200):
        wrong = bytearray(content)
        for place in (end - 4 - 4 * rng.integers(0, tables // 4, 300)).tolist():
            value = int(rng.choice([0, 0x10FFFF, 0x301, 0xAC00, 255, 65]))
            struct.pack_into("<i", wrong, place, value)
        if rng.random() < 0.3:
            struct.pack_into("<i", wrong, end - 4, int(rng.choice([-1, 0x110001, 2**31 - 1])))
        (out / PLAN_FILE).write_bytes(wrong)
        try:
            model = library.open(out, 1)
        except EdgetokError:
            refused += 1
            continue
        with model:
            for text in texts:
                model.encode(text)
    assert refused > 20


def test_added_tokens_in_normal_text_are_refused(qwen):
    state = json.loads(qwen.to_str())
    state["added_tokens"][0]["normalized"] = True
    core = tokenizers.Tokenizer.from_str(json.dumps(state))
    with pytest.raises(UnsupportedError, match="matches normalised text"):
        tokenizer_tables(core, Tokenizer(core, {}, 151700, "tokenizer.json"))


def test_texts_that_grow(export, library_files, library):
    """Normal form C makes twelve bytes of four, here a token each: more than wrappers expect."""
    pytest.importorskip("cffi", reason="needs cffi")
    core = tokenizers.Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    out, known = export(core)
    text = "\U0001d160" * 100
    wanted = known.encode(text)
    assert len(wanted) == 1200
    with library.open(out, 1) as model:
        assert model.encode(text) == wanted
    (out / "include").mkdir()
    (out / "include/edgetok.h").write_text(HEADER.read_text())
    spec = importlib.util.spec_from_file_location("wrapper", WRAPPER)
    wrapper = importlib.util.module_from_spec(spec)
    sys.modules["wrapper"] = wrapper  # typing asks for it
    spec.loader.exec_module(wrapper)
    with wrapper.Model(out, library=library_files[1]) as model:
        assert model.encode(text) == wanted
        for half in (model.encode, lambda text: model.chat().say(text)):
            with pytest.raises(wrapper.EdgetokError, match="holds U\\+D800, half a character"):
                half("a\ud800")
