"""A checkpoint's tokenizer in one file, as transformers puts it together from several.

    tokenizer.json            tokens, steps, what stands around a text
    tokenizer_config.json     class, names of special tokens, added_tokens_decoder, add_bos_token
    special_tokens_map.json   names, where tokenizer_config.json has no added_tokens_decoder
    added_tokens.json         tokens that older releases kept apart
    the class                 default names, and whether <s> stands before a text

An artefact's tokenizer.json holds all of it, and its tokenizer_config.json names every special
token. Classes that are not known here are left to transformers.

Source: transformers 4.57, `tokenization_utils_base.py` and `tokenization_utils_fast.py`.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, pre_tokenizers, processors

from edgetok.converter.write.special_tokens import (
    MORE,
    NAMES,
    TOKENIZER_CONFIG_FILE,
    declared_tokens,
    items_of,
    named_tokens,
    special_tokens,
    text_of,
)
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats import strict_json
from edgetok.formats.foreign import foreign, silent_stderr
from edgetok.text.tokenizer_check import check_length, open_core

TOKENIZER_FILE = "tokenizer.json"

_SPARE_IDS = 1 << 16  # how far special tokens may lie beyond the vocabulary
_MAX_TOKENIZER_BYTES = 128 << 20  # Gemma 3's 262,144 tokens take 33 MB
_MAX_TEXT_BYTES = 4 << 20
_SLOW_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

_END = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class _Class:
    """The additions of a tokenizer class: default names, and whether its flags set bos and eos."""

    names: dict[str, str] = field(default_factory=dict)
    bos: bool | None = None


CLASSES = {
    "PreTrainedTokenizer": _Class(),
    "LlamaTokenizer": _Class(
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, bos=True
    ),
    "GemmaTokenizer": _Class(
        {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        bos=True,
    ),
    "GPT2Tokenizer": _Class({"unk_token": _END, "bos_token": _END, "eos_token": _END}),
    "GPTNeoXTokenizer": _Class(
        {"unk_token": _END, "bos_token": _END, "eos_token": _END}, bos=False
    ),
    "Qwen2Tokenizer": _Class({"unk_token": _END, "eos_token": _END, "pad_token": _END}),
}
# Where neither tokenizer_config.json nor config.json names a class.
CLASS_OF = {
    "llama": "LlamaTokenizer",
    "ministral": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "phi3": "LlamaTokenizer",
    "exaone4": "GPT2Tokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "granite": "GPT2Tokenizer",
    "olmo2": "GPTNeoXTokenizer",
    "olmo3": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "smollm3": "PreTrainedTokenizer",
}


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer for an artefact.

    Attributes:
        data: data of tokenizer.json.
        settings: settings of tokenizer_config.json.
        core: as the `tokenizers` package reads it.
        notes: for the report.
    """

    data: bytes
    settings: dict[str, Any]
    core: tokenizers.Tokenizer
    notes: tuple[str, ...] = ()


def read_tokenizer(source: Path, vocab_size: int) -> TokenizerFiles:
    """A checkpoint's tokenizer, put together and checked.

    Args:
        source: the checkpoint's folder.
        vocab_size: the model's number of logits.

    Raises:
        CheckpointError: there is none, or it is damaged, or belongs to another model.
        UnsupportedError: it asks for something that an artefact's tokenizer does not do.
    """
    settings = _read(source, TOKENIZER_CONFIG_FILE)
    path = source / TOKENIZER_FILE
    named = _class_name(source, settings)
    notes: tuple[str, ...] = ()
    if settings.get("clean_up_tokenization_spaces") is True:
        notes = (
            f"{TOKENIZER_CONFIG_FILE}: clean_up_tokenization_spaces is not followed: it would take "
            'spaces that the model writes out of its answers, as in "x ." for "x."',
        )
    if settings.get("split_special_tokens") is True:
        raise UnsupportedError(
            f"{TOKENIZER_CONFIG_FILE}: split_special_tokens is true: special tokens of a chat "
            "template would be cut into letters; remove it"
        )
    if path.exists():
        data = strict_json.read_bytes(path, max_bytes=_MAX_TOKENIZER_BYTES)
        _require_ids(
            strict_json.loads_object(
                data, TOKENIZER_FILE, max_bytes=_MAX_TOKENIZER_BYTES, max_keys=1 << 23
            ),
            vocab_size,
        )
    if path.exists() and named in CLASSES:
        core = open_core(data, TOKENIZER_FILE, CheckpointError)
        before = core.to_str()
        names = _put_together(core, source, settings, CLASSES[named])
        after = core.to_str()
        data = data if after == before else after.encode()
    elif path.exists() or any((source / name).exists() for name in _SLOW_TOKENIZERS):
        data, names = _by_transformers(source, named)
    else:
        raise CheckpointError(
            f"{source}: has no {TOKENIZER_FILE}, so texts cannot be tokenised; put the tokenizer's "
            "files into the folder"
        )
    core = open_core(data, TOKENIZER_FILE, CheckpointError)
    _require_vocabulary(core, names, vocab_size)
    return TokenizerFiles(data, {**settings, **names}, core, notes)


def _read(source: Path, name: str) -> dict[str, Any]:
    path = source / name
    return strict_json.read_object(path, max_bytes=_MAX_TEXT_BYTES) if path.exists() else {}


def _class_name(source: Path, settings: dict[str, Any]) -> str:
    """The class without "Fast"."""
    config = _read(source, "config.json")
    for where, values in ((TOKENIZER_CONFIG_FILE, settings), ("config.json", config)):
        name = values.get("tokenizer_class")
        if name is not None and not isinstance(name, str):
            raise CheckpointError(f"{where}: tokenizer_class is {name!r:.60}, expected a name")
        if name:
            return name.replace("PreTrainedTokenizerFast", "PreTrainedTokenizer").removesuffix(
                "Fast"
            )
    kind = config.get("model_type")
    return CLASS_OF.get(kind, "") if isinstance(kind, str) else "PreTrainedTokenizer"


def _put_together(
    core: tokenizers.Tokenizer, source: Path, settings: dict[str, Any], kind: _Class
) -> dict[str, Any]:
    """Add what the other files have to `core`; every special token's text by name."""
    given: dict[str, Any] = dict(settings)
    declared: dict[int, AddedToken] = {}
    decoder = settings.get("added_tokens_decoder")
    if decoder is not None:
        declared = declared_tokens(decoder)
    else:
        for name, value in _read(source, "special_tokens_map.json").items():
            if name == MORE:
                more = items_of(given.get(MORE), MORE)
                have = {text_of(token, MORE) for token in more}
                value = [*more, *(t for t in items_of(value, name) if text_of(t, name) not in have)]
            given[name] = value
    names = named_tokens(given, kind.names, core)
    special = set(special_tokens(given, names, {}))
    if decoder is None:
        for text, number in _read(source, "added_tokens.json").items():
            if type(number) is not int or not text:
                raise CheckpointError(f"added_tokens.json: {text!r:.60} is {number!r:.20}")
            check_length(text, "added_tokens.json", CheckpointError)
            declared[number] = AddedToken(
                text, normalized=text not in special, special=text in special
            )
    known = {repr(token) for token in core.get_added_tokens_decoder().values()}
    wanted = [(i, token) for i, token in sorted(declared.items()) if repr(token) not in known]
    with silent_stderr(), foreign(f"{TOKENIZER_CONFIG_FILE}: added tokens", CheckpointError):
        for number, token in wanted:
            token.special = token.special or token.content in special
            core.add_tokens([token])
            found = core.token_to_id(token.content)
            if found != number:
                raise CheckpointError(
                    f"{TOKENIZER_CONFIG_FILE}: token {token.content!r:.60} has id {number}, but "
                    f"would get {found} after those of {TOKENIZER_FILE}; save the tokenizer anew"
                )
        held = {token.content: token for token in core.get_added_tokens_decoder().values()}
        replaced = {token.content: token for token in declared.values()}
        if decoder is None:
            replaced |= held
        for text, own in special_tokens(given, names, replaced).items():
            if own is None and text in held:
                continue  # a name alone leaves the token as it is
            token = own or AddedToken(text)
            token.special = True
            core.add_tokens([token])
        if kind.bos is not None:
            _stand_around(core, names, given, kind.bos)
        _prefix_space(core, given)
    return names


def _stand_around(
    core: tokenizers.Tokenizer, names: dict[str, Any], given: dict[str, Any], default: bool
) -> None:
    """Return the tokens that Llama's classes put around a text, whatever tokenizer.json says."""
    ends = []
    for which, standard in (("bos", default), ("eos", False)):
        flag = given.get(f"add_{which}_token", standard)
        if flag is not None and type(flag) is not bool:
            raise CheckpointError(
                f"{TOKENIZER_CONFIG_FILE}: add_{which}_token is {flag!r:.20}, expected true or "
                "false"
            )
        text = names.get(f"{which}_token")
        if flag and not text:
            raise CheckpointError(
                f"{TOKENIZER_CONFIG_FILE}: add_{which}_token is true, but there is no "
                f"{which}_token; name it or set add_{which}_token to false"
            )
        ends.append(text if flag else None)
    before, after = ends
    pieces = [[f"{t}:{i}" if t else "" for t in (before, after)] for i in (0, 1)]
    first, second = (
        " ".join(p for p in (pair[0], part, pair[1]) if p)
        for pair, part in zip(pieces, ("$A:0", "$B:1"), strict=True)
    )
    core.post_processor = processors.TemplateProcessing(
        single=first,
        pair=f"{first} {second}",
        special_tokens=[(text, core.token_to_id(text)) for text in dict.fromkeys(ends) if text],
    )


def _prefix_space(core: tokenizers.Tokenizer, given: dict[str, Any]) -> None:
    """`add_prefix_space` of the settings goes before that of a byte-level tokenizer.json."""
    wanted = given.get("add_prefix_space")
    if wanted is not None and type(wanted) is not bool:
        raise CheckpointError(
            f"{TOKENIZER_CONFIG_FILE}: add_prefix_space is {wanted!r:.20}, expected true or false"
        )
    if core.pre_tokenizer is not None:
        state = json.loads(core.pre_tokenizer.__getstate__())
        if state.get("type") == "ByteLevel" and state["add_prefix_space"] != bool(wanted):
            core.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=bool(wanted), use_regex=state["use_regex"]
            )
    if wanted is not None and core.normalizer is not None:
        state = json.loads(core.normalizer.__getstate__())
        steps = state.get("normalizers", [state])
        adds = any(step.get("type") == "Prepend" for step in steps)
        if adds != wanted and any(step.get("type") == "Replace" for step in steps):
            raise UnsupportedError(
                f"{TOKENIZER_CONFIG_FILE}: add_prefix_space is {str(wanted).lower()}, but "
                f"{TOKENIZER_FILE} says otherwise; save the tokenizer anew with transformers"
            )


def _require_ids(parsed: dict[str, Any], vocab_size: int) -> None:
    """Refuse ids far beyond the vocabulary, for each of which `tokenizers` would take memory."""
    model, added = parsed.get("model"), parsed.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    if isinstance(added, list):
        ids += [(t.get("content"), t.get("id")) for t in added if isinstance(t, dict)]
    for text, number in ids:
        if isinstance(number, int) and number > vocab_size + _SPARE_IDS:
            raise CheckpointError(
                f"{TOKENIZER_FILE}: token {text!r:.80} has id {number}, but the model knows "
                f"{vocab_size} tokens; this tokenizer belongs to another model"
            )


def _require_vocabulary(core: tokenizers.Tokenizer, names: dict[str, Any], vocab_size: int) -> None:
    special = {token.content for token in core.get_added_tokens_decoder().values() if token.special}
    for text, token in core.get_vocab(with_added_tokens=True).items():
        # Gemma 3's text models ship a special token of the multimodal ones beyond the vocabulary.
        if token >= vocab_size and text not in special:
            raise CheckpointError(
                f"{TOKENIZER_FILE}: token {text!r:.80} has id {token}, but the model knows "
                f"{vocab_size} tokens; this tokenizer belongs to another model"
            )
    with silent_stderr(), foreign(f"{TOKENIZER_FILE}: fails on an empty text", CheckpointError):
        around = core.encode("").ids
    if max(around, default=0) >= vocab_size:
        raise CheckpointError(
            f"{TOKENIZER_FILE}: token {max(around)} stands around every text, but the model knows "
            f"{vocab_size} tokens; this tokenizer belongs to another model"
        )


def _by_transformers(source: Path, named: str) -> tuple[bytes, dict[str, Any]]:
    """tokenizer.json of an older tokenizer, or of a class that only transformers knows."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise CheckpointError(
            f"{source}: only transformers can read this tokenizer ({named or 'an older one'}); "
            "pip install 'edgetok[convert]'"
        ) from error
    what = f"{source}: transformers cannot read the tokenizer ({named or 'no class named'})"
    with warnings.catch_warnings(), silent_stderr(), foreign(what, CheckpointError):
        warnings.simplefilter("ignore")
        made: Any = AutoTokenizer.from_pretrained(
            source, use_fast=True, local_files_only=True, trust_remote_code=False
        )
        text: str = made.backend_tokenizer.to_str()
        names = {name: str(made.special_tokens_map[name]) for name in NAMES
                 if name in made.special_tokens_map}  # fmt: skip
    return text.encode(), names
