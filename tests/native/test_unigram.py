"""SentencePiece Unigram in C as in the `tokenizers` package."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from edgetok.errors import EdgetokError, UnsupportedError
from edgetok.formats.layout import TensorFormat
from edgetok.kernels_cpu.text.launch import NUMBERS
from edgetok.native.check import check_texts
from edgetok.native.plan import PLAN_FILE, Section
from edgetok.native.tokenizer import tokenizer_tables
from edgetok.text.tokenizer import Tokenizer
from tests.native.conftest import write_export
from tests.native.test_normalizer import random_texts
from tests.native.test_plan import sections
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>"]
PREPEND = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]


def trained(corpus, *, fallback, scheme=None, split=False):
    """A small Unigram tokenizer; without a scheme, spaces are the normalizer's."""
    core = tokenizers.Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    core.train_from_iterator(
        corpus,
        trainers.UnigramTrainer(
            vocab_size=3000, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        ),
    )
    state = json.loads(core.to_str())
    pieces = state["model"]["vocab"]
    known = {text for text, _ in pieces}
    more = {"\u2581\u2581": -9.5, "\u2581of\u2581the": -8.25, "ab": -9.0, "abc": -11.0}
    pieces += [[text, score] for text, score in more.items() if text not in known]
    pieces += [[f"<0x{byte:02X}>", 0.0] for byte in range(256) if fallback]
    state["model"]["byte_fallback"] = fallback
    core = tokenizers.Tokenizer.from_str(json.dumps(state))
    core.pre_tokenizer = None
    if scheme is None:
        core.normalizer = normalizers.Sequence(PREPEND)
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return core


@pytest.fixture(scope="module")
def corpus(data) -> list[str]:
    names = ("tinystories.txt", "calibration.multilingual.txt")
    return [
        line for name in names for line in (data / "text" / name).read_text()[:60_000].splitlines()
    ]


@pytest.fixture
def export(tiny, tmp_path):
    def write(core):
        size = max(core.get_vocab().values()) + 1
        known = Tokenizer(core, {}, size, "tokenizer.json")
        spec = replace(tiny("llama", 16).spec, vocab_size=size)
        artefact = tmp_path / "artefact"
        formats = uniform_formats(spec, TensorFormat(16, 32))
        write_artefact(artefact, spec, random_tensors(spec), formats)
        tables = tokenizer_tables(core, known)
        return write_export(artefact, tmp_path / "out", extra={Section.TOKENIZER: tables}), known

    return write


@pytest.mark.parametrize(
    "options",
    [
        {"fallback": True},
        {"fallback": False},
        {"fallback": True, "scheme": "first"},
        {"fallback": False, "scheme": "always", "split": True},
        {"fallback": True, "scheme": "never", "split": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_unigram(corpus, export, library, options):
    out, known = export(trained(corpus, **options))
    with library.open(out, 1) as model:
        check_texts(model, known)
        for text in (
            *corpus,
            "\n".join(corpus[:300]),
            *random_texts(1500),
            "ab abc abcab abcabc ababab",
            "\u2581a \u2581\u2581 b",
            "<0x41><0x0A> <unk>\u2603<unk>\u2603\u2603 <s",
            "\u2603\u2604 \u2603",
            "<s>one</s> two<|im_start|> three <|im_start|><s>",
            "the " * 400,
        ):
            assert model.encode(text) == known.encode(text), text
        for token in range(known.vocab_size):
            piece = known.piece(token)
            assert model.piece(token) == (piece if isinstance(piece, bytes) else piece.encode())


def test_damaged_tables_do_not_crash(corpus, export, library):
    """Scores and spellings that are wrong but in range give other tokens."""
    out, _ = export(trained(corpus[:200], fallback=True))
    content = (out / PLAN_FILE).read_bytes()
    begin, size = sections(content)[Section.TOKENIZER]
    numbers = dict(
        zip(NUMBERS, struct.unpack_from(f"<{len(NUMBERS)}q", content, begin), strict=True)
    )
    count, tables = numbers["pieces"], 4 * (4 * numbers["pieces"] + 3)
    widths = {"merges": 4, "added": 4, "before": 1, "after": 1, "by_text": 1}
    widths |= dict.fromkeys(("letters", "numbers", "spaces", "digit_ranges"), 2)
    words = numbers["tokens"] + 1 + 256 + sum(n * numbers[name] for name, n in widths.items())
    end = begin + 8 * len(NUMBERS) + 4 * words + tables
    text_bytes = begin + size - end - numbers["tokens"]
    assert struct.unpack_from("<i", content, end - 8 * (count + 1) - 4) == (text_bytes,)
    spans = (
        (end - 8 * (count + 1), end),  # scores
        (begin + size - text_bytes, begin + size),  # spellings, and what tokens give
        (end - tables, end - tables + 4 * count),  # ids
        (end - tables + 4 * count, end - 8 * (count + 1)),  # where spellings begin
    )
    rng, opened = np.random.default_rng(4), 0
    for i in range(200):
        wrong = bytearray(content)
        first, last = spans[i % 4]
        for place in rng.integers(first, last, 1 if i % 4 > 1 else 300).tolist():
            wrong[place] = int(rng.integers(256))
        (out / PLAN_FILE).write_bytes(wrong)
        try:
            model = library.open(out, 1)
        except EdgetokError:
            continue
        opened += 1
        with model:
            for text in corpus[:40]:
                model.encode(text)
    assert 100 < opened < 200


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"normalizer": {"type": "NFKC"}}, "its normalizer has .*NFKC"),
        ({"normalizer": None}, "does not replace spaces"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre-tokenizer has .*Whitespace"),
    ],
)
def test_others_are_refused(corpus, change, why):
    state = json.loads(trained(corpus[:200], fallback=False).to_str()) | change
    core = tokenizers.Tokenizer.from_str(json.dumps(state))
    size = max(core.get_vocab().values()) + 1
    with pytest.raises(UnsupportedError, match=why):
        tokenizer_tables(core, Tokenizer(core, {}, size, "tokenizer.json"))
