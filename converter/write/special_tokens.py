"""Names, flags and ids of special tokens in the files of a checkpoint's tokenizer.

Source: transformers 4.57, `tokenization_utils_base.py` and `tokenization_utils_fast.py`.
"""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import AddedToken

from edgetok.errors import CheckpointError
from edgetok.text.tokenizer_check import check_length

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"
)  # fmt: skip
MORE = "additional_special_tokens"


def declared_tokens(decoder: Any) -> dict[int, AddedToken]:
    """Return the tokens of an `added_tokens_decoder` by id.

    Raises:
        CheckpointError: it is not an object of ids and tokens with flags.
    """
    where = f"{TOKENIZER_CONFIG_FILE}: added_tokens_decoder"
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{where} is a {type(decoder).__name__}, expected an object")
    found = {}
    for number, token in decoder.items():
        if not (number.isascii() and number.isdigit() and isinstance(token, dict)):
            raise CheckpointError(f"{where} holds {number!r:.20}, expected an id and a token")
        text = token.get("content")
        flags = {key: value for key, value in token.items() if key not in ("content", "__type")}
        known = {"single_word", "lstrip", "rstrip", "normalized", "special"}
        if not isinstance(text, str) or not text or not set(flags) <= known:
            raise CheckpointError(f"{where}: {number} is {token!r:.80}, expected content and flags")
        if not all(type(value) is bool for value in flags.values()):
            raise CheckpointError(f"{where}: {number} has flags that are neither true nor false")
        check_length(text, where, CheckpointError)
        found[int(number)] = AddedToken(text, **flags)
    return found


def named_tokens(
    given: dict[str, Any], defaults: dict[str, str], core: tokenizers.Tokenizer
) -> dict[str, Any]:
    """Text of each special token, as the files or the class's defaults name it."""
    found: dict[str, Any] = {}
    for name in NAMES:
        if name in given:
            found[name] = text_of(given[name], name)
        elif name in defaults and core.token_to_id(defaults[name]) is not None:
            # transformers would add a default that the vocabulary does not have, without embedding.
            found[name] = defaults[name]
    return found


def special_tokens(
    given: dict[str, Any], names: dict[str, Any], replaced: dict[str, AddedToken]
) -> dict[str, AddedToken | None]:
    """Each special token's text, and the token with its flags where more than a text is known.

    As in transformers (`PreTrainedTokenizerFast`), the first of several names of one text counts,
    and a declared token goes before the flags that a name gives.

    Args:
        given: values of the files by name: texts, or objects with content and flags.
        names: text of each named token, defaults of the class included.
        replaced: declared tokens by text; they stand for named tokens, not for additional ones.

    Raises:
        CheckpointError: a value of `given` is neither.
    """
    found: dict[str, AddedToken | None] = {}
    for name, text in names.items():
        if text:
            found.setdefault(text, replaced.get(text) or _with_flags(given.get(name)))
    extra = given.get("extra_special_tokens")
    more = (
        list(extra.values()) if isinstance(extra, dict) else items_of(extra, "extra_special_tokens")
    )
    for value in (*items_of(given.get(MORE), MORE), *more):
        if text := text_of(value, MORE):
            found.setdefault(text, _with_flags(value))
    return found


def _with_flags(value: Any) -> AddedToken | None:
    if not isinstance(value, dict):
        return None
    kinds = ("single_word", "lstrip", "rstrip", "normalized")
    flags = {key: value[key] for key in kinds if type(value.get(key)) is bool}
    return AddedToken(value["content"], **flags)


def items_of(value: Any, name: str) -> list[Any]:
    """Return the items of a list of the files, none for null.

    Raises:
        CheckpointError: `value` is something else; `name` says where it stands.
    """
    if value is not None and not isinstance(value, list):
        raise CheckpointError(f"{TOKENIZER_CONFIG_FILE}: {name} is {value!r:.60}, expected a list")
    return value or []


def text_of(value: Any, name: str) -> str | None:
    """Return the text of a token that is a text, or an object with content, or null.

    Raises:
        CheckpointError: `value` is something else, or too long; `name` says where it stands.
    """
    if isinstance(value, dict):
        value = value.get("content", value)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{TOKENIZER_CONFIG_FILE}: {name} is {value!r:.60}, expected a text")
    check_length(value or "", f"{TOKENIZER_CONFIG_FILE}: {name}", CheckpointError)
    return value
