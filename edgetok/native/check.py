"""Compare an exported folder with Python: tokens of prompts, tokens of texts."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgetok.cache.limits import CacheLimits
from edgetok.errors import EdgetokError
from edgetok.formats.artefact import Artefact
from edgetok.native.binding import Library, NativeModel
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.select import LEAST_EVICTING_TOKENS
from edgetok.text.tokenizer import Tokenizer

_PROMPTS, _PROMPT_TOKENS, _ANSWER_TOKENS = 4, 48, 24
_CONTEXT_TOKENS = 128
_TEXTS = 4000


def check(
    artefact: Artefact,
    folder: Path,
    library: Path,
    cache_dir: Path,
    kv_bits: int,
    *,
    tokenizes: bool,
) -> dict[str, int]:
    """Run both on this machine.

    Args:
        artefact: the exported artefact.
        folder: the export.
        library: the shared library for this machine.
        cache_dir: where compiled kernels are kept.
        kv_bits: bits of the caches.
        tokenizes: whether the export has a tokenizer.

    Returns:
        How many prompts, and texts, were compared.

    Raises:
        EdgetokError: they differ.
    """
    with Library(library).open(folder, threads=1) as model:
        isa = model.info.isa.decode()
        backend = CpuBackend(
            artefact.folder, threads=1, isa=isa, kv_bits=kv_bits, cache_dir=cache_dir
        )
        try:
            _check_prompts(model, backend)
        finally:
            backend.close()
        if not tokenizes:
            return {"prompts": _PROMPTS}
        tokenizer = Tokenizer.from_folder(artefact.folder, model.info.vocab_size)
        check_texts(model, tokenizer)
        return {"prompts": _PROMPTS, "texts": _TEXTS}


def _check_prompts(model: NativeModel, backend: CpuBackend) -> None:
    """Greedy answers in the cache of a chat; the last prompt is longer than what it holds."""
    rng = np.random.default_rng(0)
    context = min(backend.context_tokens, _CONTEXT_TOKENS)
    evicts = context >= LEAST_EVICTING_TOKENS
    for i in range(_PROMPTS):
        size = 1 + i * _PROMPT_TOKENS
        if not evicts:
            size = min(size, max(1, context - _ANSWER_TOKENS))
        prompt = rng.integers(0, backend.vocab_size, size).astype(np.int32)
        with model.chat(context) as chat:
            chat.sample(max_tokens=_ANSWER_TOKENS)
            chat.prefill(prompt.tolist())
            found = [token for token, _, _ in chat.outputs()]
        cache = backend.new_cache(context)
        if evicts:
            cache = backend.new_bounded_cache(context, CacheLimits())
        logits, expected = backend.forward(cache, prompt), []
        for _ in found:
            expected.append(int(np.argmax(logits)))
            if len(expected) < len(found):
                logits = backend.forward(cache, np.array(expected[-1:], np.int32))
        if found != expected:
            raise EdgetokError(
                f"the exported library writes {found[:8]} after a prompt where Python writes "
                f"{expected[:8]}; please report this model"
            )


def check_texts(model: NativeModel, tokenizer: Tokenizer, count: int = _TEXTS) -> None:
    """Compare the tokens of texts of all kinds.

    Raises:
        EdgetokError: a text's tokens differ.
    """
    special = [text for text in tokenizer.special_tokens.values() if text][:8]
    for i, text in enumerate(texts(count, special)):
        both = i % 2 == 0
        found, expected = model.encode(text, special=both), tokenizer.encode(text, special=both)
        if found != expected:
            raise EdgetokError(
                f"the exported tokenizer differs on {text!r:.80}: {found[:12]} where "
                f"`tokenizers` gives {expected[:12]}; please report this model"
            )


_LATIN = "The quick brown fox jumps over it's they'LL don't I'd WE'RE na\u00efve Stra\u00dfe"
_CODE = "def return 3.14 2026 x=1; {a:[b]} http://x.y/z?q=1 C++ -> <|x|> </s> ... --- '' $%&"
_SCRIPTS = "日本語 中文字符 한국어 Ελλάδα Привет مرحبا שלום हिन्दी ไทย 👍🏽 🇩🇪 ﬁ Ⅷ ½ ²"
_MARKS = (  # letters and marks that normal forms put together, in any order
    *range(0x300, 0x370), *range(0x591, 0x5C8), *range(0x64B, 0x660), *range(0x930, 0x958),
    *range(0xDCA, 0xDE0), *range(0x1100, 0x1200), *range(0x1E00, 0x2000), *range(0x3041, 0x30A0),
    *range(0xAC00, 0xAC40), *range(0xF900, 0xFA00), *range(0xFB1D, 0xFB4F),
    *range(0x1D15E, 0x1D165),
)  # fmt: skip
_ODD = ("e\u0301", "👨\u200d👩\u200d👧", "\u0661\u0662", "\u2003", "\u00a0", "\u200b", "\ufeff")
_WORDS = (*_LATIN.split(), *_CODE.split(), *_SCRIPTS.split(), *_ODD)
_WORDS += ("\u017f", "'\u017f", "\u2581", "\x00", "\x7f", "''")
_GAPS = ("", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u3000", "'", "-", ".")


def texts(count: int, special: list[str], seed: int = 0) -> Iterator[str]:
    """Texts to compare tokenizers on: words, code, digits, spaces, scripts, special tokens."""
    rng = random.Random(seed)
    yield from ("", " ", "a", "\n", "'", "0" * 9, "a" * 300, " " * 40, *special)
    plain = string.printable
    for i in range(count - 8 - len(special)):
        size = rng.choice((1, 2, 4, 9, 30))
        if i % 8 == 0:
            yield "".join(rng.choice(plain) for _ in range(3 * size))
        elif i % 8 == 1:  # of the planes that have characters, without surrogates
            codes = (
                rng.choice((rng.randrange(0x3000), rng.randrange(0x20000))) for _ in range(size)
            )
            yield "".join(chr(c) if not 0xD800 <= c < 0xE000 else "?" for c in codes)
        elif i % 8 == 3:
            plain_or_mark = (rng.choice((rng.choice("aeiouAs q"), "\u0301")) for _ in range(size))
            yield "".join(c + chr(rng.choice(_MARKS)) for c in plain_or_mark)
        else:
            parts = [rng.choice(_WORDS) + rng.choice(_GAPS) for _ in range(size)]
            if special and i % 8 == 2:
                parts.insert(rng.randrange(len(parts) + 1), rng.choice(special))
            yield "".join(parts)
