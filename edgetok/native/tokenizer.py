"""A tokenizer as tables for kernels (`kernels_cpu/text`), or why it is none of those kinds.

Taken: byte-level BPE with the patterns of GPT-2, Llama 3 and Qwen 2, digits apart or not, with
Unicode's normal form C (`normalizer.py`) or without a normalizer; and sentencepiece BPE and
Unigram, as Llama 2, Phi-3 and Gemma store it: spaces replaced, nothing else normalised. Whatever is
not named here is refused: a tokenizer that is almost right is wrong. What characters are letters,
numbers and spaces is asked of the `tokenizers` package, so that tables follow its version of
Unicode.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, pre_tokenizers

from edgetok.errors import UnsupportedError
from edgetok.kernels_cpu.text.launch import (
    ADDED_LSTRIP,
    ADDED_RSTRIP,
    KIND_BYTES,
    KIND_SENTENCEPIECE,
    KIND_UNIGRAM,
    NUMBERS,
    PATTERN_GPT2,
    PATTERN_LLAMA3,
    TABLES,
    TOKEN_SPECIAL,
    TOKEN_STARTS,
    TOKEN_TEXT,
)
from edgetok.native.normalizer import NormalTables, normal_tables
from edgetok.text.detokenizer import byte_alphabet, token_decoder
from edgetok.text.tokenizer import Tokenizer

_SPACE = "\u2581"
_UNKNOWN_PENALTY = 10.0  # of sentencepiece
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A pattern, and how many digits a number has.
_PATTERNS = {
    _GPT2: (PATTERN_GPT2, 1),
    _LLAMA3 % "{1,3}": (PATTERN_LLAMA3, 3),
    _LLAMA3 % "": (PATTERN_LLAMA3, 1),
}
_PROBED = 0x40000  # no letter, number or space has a higher number
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def tokenizer_tables(core: tokenizers.Tokenizer, known: Tokenizer) -> bytes:
    """The section TOKENIZER.

    Args:
        core: as the `tokenizers` package reads the file.
        known: the same, as edgetok uses it.

    Raises:
        UnsupportedError: it is of another kind; says what is in the way.
    """
    state = json.loads(core.to_str())
    model = state["model"]
    if model.get("type", "BPE") not in ("BPE", "Unigram"):
        raise _refused(f"its model is {model['type']}")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise _refused(f"{field} is {model[field]!r}")
    if isinstance(token_decoder(core), tokenizers.Tokenizer):
        raise _refused("its decoder is of another kind")
    numbers = dict.fromkeys(NUMBERS, 0) | {"unknown": -1, "space": -1}
    steps = _steps(state["pre_tokenizer"], "pretokenizers")
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    if model.get("type") == "Unigram":
        numbers |= _unigram(state, steps)
    elif byte_level:
        numbers |= _byte_level(state, steps)
    else:
        numbers |= _sentencepiece(state, steps)
    before, after = _around(core)
    numbers["ignore_merges"] = int(bool(model.get("ignore_merges")))
    normal = numbers["kind"] == KIND_BYTES and bool(_steps(state["normalizer"], "normalizers"))
    return _packed(model, known, numbers, before, after, state["added_tokens"], normal=normal)


def _byte_level(state: Mapping[str, Any], steps: list[dict[str, Any]]) -> dict[str, int]:
    if any(step != {"type": "NFC"} for step in _steps(state["normalizer"], "normalizers")):
        raise _refused(f"its normalizer is {json.dumps(state['normalizer'])[:80]}")
    made = {"kind": KIND_BYTES}
    pattern = None
    for step in steps:
        match step:
            case {"type": "Digits", "individual_digits": True} if step is steps[0]:
                made["split_digits"] = 1
            case {"type": "Split", "behavior": "Isolated", "invert": False} if pattern is None:
                pattern = step["pattern"].get("Regex", "")
            case {"type": "ByteLevel", "add_prefix_space": False} if step is steps[-1]:
                if step["use_regex"] and pattern is None:
                    pattern = _GPT2
                elif step["use_regex"]:
                    raise _refused("it splits words twice")
            case _:
                raise _refused(f"its pre-tokenizer has {json.dumps(step)[:80]}")
    if pattern not in _PATTERNS:
        raise _refused(f"its pattern is {pattern!r:.80}")
    made["pattern"], made["digits"] = _PATTERNS[pattern]
    return made


def _sentencepiece(state: Mapping[str, Any], steps: list[dict[str, Any]]) -> dict[str, int]:
    made = {"kind": KIND_SENTENCEPIECE}
    replaces = _replaces(state, made)
    # Gemma splits at spaces, of which its normalizer has left none.
    gemma = [{"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}]
    left = [{k: v for k, v in step.items() if k != "invert"} for step in steps]
    if not replaces or left not in ([], gemma):
        raise _refused("it is neither byte-level nor sentencepiece BPE")
    model = state["model"]
    space = model["vocab"].get(_SPACE)
    if space is None:
        raise _refused("it has no token for a space")
    unknown = model["vocab"].get(model.get("unk_token") or "", -1)
    return made | {
        "space": space,
        "unknown": unknown,
        "fuse": int(bool(model.get("fuse_unk"))),
        "fallback": int(bool(model.get("byte_fallback"))),
    }


def _replaces(state: Mapping[str, Any], made: dict[str, int]) -> bool:
    """Return whether the normalizer replaces spaces; a space that it prepends goes into `made`."""
    replaces = False
    for step in _steps(state["normalizer"], "normalizers"):
        match step:
            case {"type": "Prepend", "prepend": "\u2581"} if not replaces:
                made["prepend"] = 1
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                replaces = True
            case _:
                raise _refused(f"its normalizer has {json.dumps(step)[:80]}")
    return replaces


def _unigram(state: Mapping[str, Any], steps: list[dict[str, Any]]) -> dict[str, int]:
    model, made = state["model"], {"kind": KIND_UNIGRAM}
    replaces = _replaces(state, made)
    match steps:
        case [{"type": "Metaspace", "replacement": "\u2581"} as step]:
            schemes = ("never", "first", "always")
            made["metaspace"] = schemes.index(step.get("prepend_scheme", "always"))
            made["split_words"] = int(step.get("split", True))
            replaces = True
        case []:
            pass
        case _:
            raise _refused(f"its pre-tokenizer has {json.dumps(steps[0])[:80]}")
    if not replaces:
        raise _refused("it does not replace spaces")
    if model["unk_id"] is None:
        raise _refused("it has no unknown token")
    fallback = int(bool(model.get("byte_fallback")))
    return made | {"unknown": model["unk_id"], "fallback": fallback}


def _around(core: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that are added before and after a text."""
    found = set()
    for text in ("a", "1 b"):
        plain = core.encode(text, add_special_tokens=False).ids
        full = core.encode(text, add_special_tokens=True).ids
        at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), None)
        if at is None:
            raise _refused("it changes a text's own tokens where it adds others")
        found.add((tuple(full[:at]), tuple(full[at + len(plain) :])))
    if len(found) != 1:
        raise _refused("what it adds around a text depends on the text")
    before, after = found.pop()
    return list(before), list(after)


def _packed(
    model: Mapping[str, Any],
    known: Tokenizer,
    numbers: dict[str, int],
    before: list[int],
    after: list[int],
    added: list[dict[str, Any]],
    *,
    normal: bool,
) -> bytes:
    size = known.vocab_size
    scores: list[float] = []
    if numbers["kind"] == KIND_UNIGRAM:
        scores = [score for _, score in model["vocab"]]
        vocab = {text: i for i, (text, _) in enumerate(model["vocab"])}
        if len(scores) > size:
            raise _refused(f"it has {len(scores)} pieces, the model {size} tokens")
    else:
        vocab = {text: i for text, i in model["vocab"].items() if i < size}
    pieces, flags = _pieces(known, size)
    alphabet = byte_alphabet()
    if numbers["kind"] == KIND_BYTES:
        in_vocab = {code: vocab[char] for char, code in alphabet.items() if char in vocab}
        spelled = {i: _bytes_of(text, alphabet) for text, i in vocab.items()}
    else:
        in_vocab = {
            int(match[1], 16): i for text, i in vocab.items() if (match := _BYTE.fullmatch(text))
        }
        spelled = {i: text.replace(_SPACE, " ").encode() for text, i in vocab.items()}
    merges = []
    for rank, merge in enumerate(model.get("merges", ())):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if {left, right, left + right} <= vocab.keys():
            merges.append((vocab[left], vocab[right], rank, vocab[left + right]))
    merges.sort()
    wanted = [i for i, text in spelled.items() if text is not None and text == pieces[i]]
    if numbers["kind"] == KIND_SENTENCEPIECE:  # characters alone; a space is never looked up
        wanted = [i for i in wanted if len(pieces[i].decode(errors="replace")) == 1]
        wanted = [i for i in wanted if pieces[i] != b" "]
    elif numbers["kind"] == KIND_UNIGRAM or not numbers["ignore_merges"]:
        wanted = []
    tokens = []
    for token in added:
        if token["single_word"]:
            raise _refused(f"the added token {token['content']!r:.40} matches whole words alone")
        if token["normalized"] and (normal or numbers["kind"] != KIND_BYTES):
            raise _refused(f"the added token {token['content']!r:.40} matches normalised text")
        if token["id"] >= size:
            continue
        strips = ADDED_LSTRIP * token["lstrip"] | ADDED_RSTRIP * token["rstrip"]
        tokens.append((token["content"].encode(), token["id"], strips))
    tokens.sort(key=lambda token: -len(token[0]))
    ends = np.cumsum([sum(map(len, pieces)), *(len(content) for content, _, _ in tokens)])
    # What an added token matches is not always what it gives.
    matched = [
        (token, strips, begin, end)
        for (_, token, strips), begin, end in zip(tokens, ends[:-1], ends[1:], strict=True)
    ]
    text = b"".join([*pieces, *(content for content, _, _ in tokens)])
    spellings = sorted((text.encode(), i) for text, i in vocab.items() if scores and text)
    begins = np.cumsum([len(text), *(len(spelling) for spelling, _ in spellings)])
    text += b"".join(spelling for spelling, _ in spellings)
    # The last one is of a character without a piece.
    ordered = [*(scores[i] for _, i in spellings), min(scores, default=0.0) - _UNKNOWN_PENALTY]
    letters, digits, spaces, single = _classes()
    lists: dict[str, Any] = {
        "offsets": np.cumsum([0, *map(len, pieces)]),
        "bytes": [in_vocab.get(byte, -1) for byte in range(256)],
        "merges": merges,
        "added": matched,
        "before": before,
        "after": after,
        "by_text": sorted(wanted, key=lambda i: pieces[i]),
        "letters": letters,
        "numbers": digits,
        "spaces": spaces,
        "digit_ranges": single,
        "unstable": [],
        "decompositions": [],
        "classes": [],
        "compositions": [],
        "pieces": [i for _, i in spellings],
        "begins": begins,
        "scores": np.array(ordered, "<f8").view("<i4"),
    }
    if normal:
        lists |= {name: getattr(normal_tables(), name) for name in NormalTables.__slots__}
    numbers |= {name: len(lists[name]) for name in lists if name in NUMBERS}
    numbers |= {
        "tokens": size,
        "strip": int(known.strips_start),
        "longest": max(map(len, pieces), default=0),
    }
    head = np.array([numbers[name] for name in NUMBERS], "<i8").tobytes()
    arrays = b"".join(np.array(lists[table.name], "<i4").tobytes() for table in TABLES)
    return head + arrays + bytes(flags) + text


def _pieces(known: Tokenizer, size: int) -> tuple[list[bytes], bytearray]:
    """The bytes that each token gives, and its flags."""
    pieces, flags = [], bytearray(size)
    for token in range(size):
        piece = known.raw_piece(token)
        pieces.append(piece if isinstance(piece, bytes) else piece.encode())
        if not isinstance(piece, bytes):
            flags[token] |= TOKEN_TEXT
        if token in known.special_tokens:
            flags[token] |= TOKEN_SPECIAL
        if known.starts_text(token):
            flags[token] |= TOKEN_STARTS
    return pieces, flags


def _bytes_of(text: str, alphabet: Mapping[str, int]) -> bytes | None:
    try:
        return bytes(alphabet[char] for char in text)
    except KeyError:
        return None


def _steps(state: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or the one."""
    if state is None:
        return []
    steps: list[dict[str, Any]] = state.get(name, [state])
    return steps


@functools.cache
def _classes() -> tuple[list[tuple[int, int]], ...]:
    """Ranges of letters, numbers and spaces of patterns, and of what `Digits` takes for one."""
    every = "".join(chr(c) for c in range(_PROBED) if not 0xD800 <= c < 0xE000)

    def ranges(step: Any) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for text, (begin, end) in step.pre_tokenize_str(every):
            if len(text):
                first, last = ord(every[begin]), ord(every[end - 1])
                found += (
                    [(first, 0xD7FF), (0xE000, last)] if first < 0xD800 <= last else [(first, last)]
                )
        return found

    made = [
        ranges(pre_tokenizers.Split(Regex(pattern), "removed", invert=True))
        for pattern in (r"\p{L}+", r"\p{N}+", r"\s+")
    ]
    digits = pre_tokenizers.Digits(individual_digits=True)
    return (*made, _numeric(every, digits))


def _numeric(every: str, digits: Any) -> list[tuple[int, int]]:
    """Each character between two letters: a digit is a piece of its own."""
    parts = digits.pre_tokenize_str("".join(f"a{c}" for c in every))
    found: list[tuple[int, int]] = []
    for text, _ in parts:
        if len(text) == 1 and text != "a":
            code = ord(text)
            if found and found[-1][1] == code - 1:
                found[-1] = found[-1][0], code
            else:
                found.append((code, code))
    return found


def _refused(why: str) -> UnsupportedError:
    return UnsupportedError(f"the tokenizer cannot be exported: {why}")
