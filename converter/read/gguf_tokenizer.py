"""Convert a GGUF file's tokenizer to `tokenizer.json` and `tokenizer_config.json`.

    gpt2    byte-level BPE: tokens and merges are copied; `tokenizer.ggml.pre` names the way in
            which text is split into words, and an unknown name is refused
    llama   sentencepiece BPE: each split of a token into two others is a merge, ranked by the
            token's score
    gemma4  the same with merges of its own

The file does not record whether a special token absorbs the spaces beside it, nor normalisation
other than Qwen's NFC, so these are lost.

Source: ggml, docs/gguf.md, "Tokenizer"; llama.cpp, `src/llama-vocab.cpp`; the file format of
https://github.com/huggingface/tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgetok.converter.read.gguf_config import token_ids
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.gguf import GgufFile
from edgetok.models.config.reader import shown

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
# Marks, such as accents of their own, belong to words.
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+{_CONTRACTION}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*{_CONTRACTION}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NUMBERS_APART, _CHINESE = r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_GPT2 = _BYTES | {"use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _cut(*patterns: str) -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, _BYTES | {"use_regex": False}]}


_NUMBERS = {"type": "Sequence", "pretokenizers": [_DIGITS, _GPT2]}
# By tokenizer.ggml.pre: how words are cut; llama3's also take whole words that are tokens.
_CUTS: Mapping[str, dict[str, Any]] = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "smollm": _NUMBERS,
    "refact": _NUMBERS,
    "starcoder": _NUMBERS,
    "codeshell": _NUMBERS,
    "dbrx": _cut(_LLAMA3),
    "smaug-bpe": _cut(_LLAMA3),
    "llama3": _cut(_LLAMA3),
    "llama-v3": _cut(_LLAMA3),
    "llama-bpe": _cut(_LLAMA3),
    "lfm2": _cut(_LLAMA3),
    "chatglm-bpe": _cut(_LLAMA3),
    "glm4": _cut(_LLAMA3),
    "hunyuan-dense": _cut(_NUMBERS_APART, _CHINESE, _DEEPSEEK3),
    "gpt-4o": _cut(_O200K),
    "qwen35": _cut(_QWEN35),
    "qwen2": _cut(_QWEN2),
    "deepseek-r1-qwen": _cut(_QWEN2),
}
_WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "lfm2"})
_NFC = frozenset({"qwen2", "deepseek-r1-qwen", "qwen35"})
_SPACE = "▁"
_MAX_PIECE_CHARS = 1024  # Gemma's longest has 31, and sentencepiece makes none beyond 16 by itself
_MAX_CUTS = 1 << 28


def tokenizer_files(file: GgufFile, vocab_size: int) -> dict[str, Any]:
    """Contents of tokenizer.json and tokenizer_config.json by name; none without a tokenizer.

    Raises:
        CheckpointError: fields are missing or do not fit each other.
        UnsupportedError: a kind of tokenizer, or of cutting words, that is not known here.
    """
    fields = _Fields(file)
    model = fields.text("model")
    if model in (None, "none", "no_vocab"):
        return {}
    tokens = fields.strings("tokens")
    if len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{fields.where}tokens holds a token twice")
    if len(tokens) > vocab_size:
        raise CheckpointError(
            f"{fields.where}tokens has {len(tokens):,} tokens, but the model knows {vocab_size:,}"
        )
    types = _types(fields, file, tokens, vocab_size)
    vocab = {t: i for i, t in enumerate(tokens) if types[i] != _UNUSED}
    if model == "gpt2":
        content, add_bos = _byte_level(fields, vocab)
    elif model in ("llama", "gemma4"):
        merges = (
            _merges(fields, vocab) if model == "gemma4" else _by_score(fields, tokens, types, vocab)
        )
        content, add_bos = _sentencepiece(fields, tokens, types, vocab, merges)
    else:
        raise UnsupportedError(
            f"{fields.where}model is {shown(model)}, expected gpt2, llama or gemma4; "
            "convert the original checkpoint"
        )
    special = {key: fields.token(f"{key}_token_id", tokens) for key in _SPECIAL}
    content["added_tokens"] = [
        {
            "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": types[i] != _USER_DEFINED,
        }
        for i, token in enumerate(tokens)
        if types[i] in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    before = special["bos"] if fields.flag("add_bos_token", add_bos) else None
    after = special["eos"] if fields.flag("add_eos_token", False) else None
    content["post_processor"] = _around(before, after, vocab)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"{_SPECIAL[key]}_token": token for key, token in special.items() if token is not None},
    }
    template = file.fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return {"tokenizer.json": content, "tokenizer_config.json": settings}


def _types(fields: _Fields, file: GgufFile, tokens: list[str], vocab_size: int) -> list[float]:
    """Each token's type; where the file has none, or calls an end of answers normal, by what it is.

    A special token that counts as normal text is cut into letters.
    """
    found = list(fields.numbers("token_type", len(tokens), default=_NORMAL))
    if fields.get("token_type") is None:
        for i, token in enumerate(tokens):
            if fields.text("model") == "llama" and _BYTE_TOKEN.fullmatch(token):
                found[i] = _BYTE
        unknown = fields.token("unknown_token_id", tokens)
        if unknown is not None:
            found[fields.get("unknown_token_id")] = _UNKNOWN
    ids = token_ids(file, vocab_size)
    pad = fields.token("padding_token_id", tokens)
    ends = [ids.get("bos_token_id"), *ids.get("eos_token_id", ())]
    for token in [*ends, None if pad is None else fields.get("padding_token_id")]:
        if token is not None and token < len(tokens) and found[token] == _NORMAL:
            found[token] = _CONTROL
    return found


_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


class _Fields:
    """Typed access to `tokenizer.ggml.*`."""

    def __init__(self, file: GgufFile) -> None:
        self._fields = file.fields
        self.where = f"{file.path.name}: tokenizer.ggml."

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.where}{key} is {shown(value)}, expected {expected}")

    def get(self, key: str) -> Any:
        return self._fields.get("tokenizer.ggml." + key)

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is not None and type(value) is not bool:
            raise self._wrong(key, value, "true or false")
        return default if value is None else value

    def strings(self, key: str) -> list[str]:
        value = self.get(key)
        if not isinstance(value, list) or not value:
            raise self._wrong(key, value, "a list of strings")
        return value

    def numbers(self, key: str, count: int, default: float | None = None) -> Sequence[float]:
        value = self.get(key)
        if value is None and default is not None:
            return [default] * count
        if not isinstance(value, np.ndarray) or len(value) != count:
            raise self._wrong(key, value, f"{count} numbers")
        if not np.isfinite(value).all():
            raise self._wrong(key, value, "finite numbers")
        result: list[float] = value.tolist()
        return result

    def token(self, key: str, tokens: list[str]) -> str | None:
        value = self.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < len(tokens):
            raise self._wrong(key, value, f"a token id below {len(tokens)}")
        return tokens[value]


def _byte_level(fields: _Fields, vocab: dict[str, int]) -> tuple[dict[str, Any], bool]:
    """tokenizer.json of byte-level BPE, and whether the first token stands before a text."""
    pre = fields.text("pre") or "default"
    if pre not in _CUTS:
        raise UnsupportedError(
            f"{fields.where}pre is {shown(pre)}, expected one of {', '.join(_CUTS)}; edgetok "
            "does not know how it splits words; convert the original checkpoint"
        )
    content = _tokenizer(vocab, _merges(fields, vocab))
    content["model"]["ignore_merges"] = pre in _WHOLE_WORDS
    content |= {
        "normalizer": {"type": "NFC"} if pre in _NFC else None,
        "pre_tokenizer": _CUTS[pre],
        "decoder": _GPT2,
    }
    return content, pre in _WHOLE_WORDS


def _merges(fields: _Fields, vocab: dict[str, int]) -> list[list[str]]:
    """Return the file's merges."""
    merges = []
    for merge in fields.strings("merges"):
        left, space, right = merge.partition(" ")
        if not (space and left in vocab and right in vocab and left + right in vocab):
            raise CheckpointError(f"{fields.where}merges: {merge!r:.80} does not join two tokens")
        merges.append([left, right])
    return merges


def _by_score(
    fields: _Fields, tokens: list[str], types: Sequence[float], vocab: dict[str, int]
) -> list[list[str]]:
    """Return the merges of sentencepiece's BPE, which a file has scores in the place of."""
    scores = fields.numbers("scores", len(tokens))
    joined = {token: i for token, i in vocab.items() if types[i] == _NORMAL}
    ranked = []
    longest = max(joined, key=len, default="")
    if len(longest) > _MAX_PIECE_CHARS or sum(len(t) ** 2 for t in joined) > _MAX_CUTS:
        raise CheckpointError(
            f"{fields.where}tokens: {longest!r:.40} has {len(longest):,} characters, expected at "
            f"most {_MAX_PIECE_CHARS}, and few as long"
        )
    for token, i in joined.items():
        for at in range(1, len(token)):
            left, right = joined.get(token[:at]), joined.get(token[at:])
            if left is not None and right is not None:
                ranked.append((-scores[i], left, right))
    ranked.sort()
    return [[tokens[left], tokens[right]] for _, left, right in ranked]


def _sentencepiece(
    fields: _Fields,
    tokens: list[str],
    types: Sequence[float],
    vocab: dict[str, int],
    merges: list[list[str]],
) -> tuple[dict[str, Any], bool]:
    """Return tokenizer.json of sentencepiece's BPE."""
    unknown = fields.get("unknown_token_id")
    content = _tokenizer(vocab, merges)
    content["model"] |= {
        "unk_token": fields.token("unknown_token_id", tokens) if unknown is not None else None,
        "fuse_unk": True,
        "byte_fallback": _BYTE in types,
    }
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    undo = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders = [undo, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizers = [replace]
    if fields.flag("add_space_prefix", True):
        normalizers.insert(0, {"type": "Prepend", "prepend": _SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    content |= {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }
    return content, True


def _tokenizer(vocab: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": vocab, "merges": merges,
    }  # fmt: skip
    return {"version": "1.0", "truncation": None, "padding": None, "model": model}


def _around(before: str | None, after: str | None, vocab: dict[str, int]) -> dict[str, Any] | None:
    """Return the post-processor that puts tokens before and after a text."""
    if before is None and after is None:
        return None

    def pieces(which: str, type_id: int) -> list[dict[str, Any]]:
        text: dict[str, Any] = {"Sequence": {"id": which, "type_id": type_id}}
        ends = [t and {"SpecialToken": {"id": t, "type_id": type_id}} for t in (before, after)]
        return [piece for piece in (ends[0], text, ends[1]) if piece]

    return {
        "type": "TemplateProcessing",
        "single": pieces("A", 0),
        "pair": pieces("A", 0) + pieces("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocab[token]], "tokens": [token]}
            for token in (before, after)
            if token is not None
        },
    }
