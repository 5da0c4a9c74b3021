"""Convert tokens to text as they arrive; a character that spans tokens is emitted whole.

A token is bytes, not characters: an emoji is four bytes and often as many tokens. Each token is
turned into its bytes (byte-level vocabularies) or into a piece of text or a byte (sentencepiece
with byte fallback), and bytes are collected until they make a character. For the rare other
decoders a window of tokens is decoded again and the new part of its text emitted.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTEXT_TOKENS = 16


class TokenDecoder(Protocol):
    """The bytes of one vocabulary's tokens."""

    def piece(self, token: int) -> bytes | str:
        """Return a token as bytes that may be part of a character, or as whole characters.

        Whole characters end a character that bytes before them left incomplete.
        """

    @property
    def strip_start(self) -> bool:
        """Return whether one space at the start of a text is left out."""


class TextStream:
    """Text from tokens that arrive one by one; for one generation, not to be shared.

    Attributes:
        hidden: how the last token is spelled, if it is a special one, which gives no text.
    """

    def __init__(
        self,
        decoder: TokenDecoder | tokenizers.Tokenizer,
        special: Mapping[int, str],
        prompt: Sequence[int] = (),
        starts: Collection[int] = (),
        *,
        exact: bool = False,
    ) -> None:
        """Start after a prompt.

        Args:
            decoder: for one vocabulary, from `token_decoder`.
            special: ids that give no text, and how they are spelled.
            prompt: what the text continues: with visible text before it, a space at the start of
                the answer is the answer's own.
            starts: tokens after which the tokenizer puts a space of its own before a text.
            exact: whether every space belongs to the text.
        """
        self._special = special
        self.hidden = ""
        visible = [t for t in prompt[-_CONTEXT_TOKENS:] if t not in special]
        if prompt and prompt[-1] in starts:
            visible = []
        self._text: _Pieces | _Window
        if isinstance(decoder, tokenizers.Tokenizer):
            self._text = _Window(decoder, visible)
        else:
            self._text = _Pieces(decoder, started=exact or bool(visible))

    def push(self, token: int, *, hide: bool = False) -> str:
        """Add a token; return the characters that are now complete.

        Args:
            token: an id.
            hide: whether it gives no text, as an end of the answer does.
        """
        self.hidden = self._special.get(token, "")
        return "" if hide or token in self._special else self._text.push(token)

    def finish(self) -> str:
        """Return the rest at the end: U+FFFD for an incomplete character."""
        return self._text.finish()


class _Pieces:
    """Joins bytes and characters."""

    def __init__(self, decoder: TokenDecoder, started: bool) -> None:
        self._decoder = decoder
        self._strip = decoder.strip_start and not started
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        piece = self._decoder.piece(token)
        if isinstance(piece, bytes):
            text = self._utf8.decode(piece)
        else:
            text = self._utf8.decode(b"", final=True) + piece
            self._utf8.reset()
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        return text

    def finish(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class _Window:
    """A stream that decodes the last few tokens again and emits the new text.

    A character has at most four bytes and a token at least one, so that a text which still ends in
    U+FFFD after four tokens stays invalid.
    """

    def __init__(self, core: tokenizers.Tokenizer, prompt: list[int]) -> None:
        self._core = core
        self._tokens = list(prompt)
        self._done = len(self._decode(self._tokens))
        self._held = 0

    def push(self, token: int) -> str:
        self._tokens.append(token)
        self._held += 1
        text = self._decode(self._tokens)
        if text.endswith("\ufffd") and self._held < 4:
            return ""
        return self._give(text)

    def finish(self) -> str:
        return self._give(self._decode(self._tokens))

    def _give(self, text: str) -> str:
        new = text[self._done :]
        self._tokens = self._tokens[-max(self._held, _CONTEXT_TOKENS // 2) :]
        self._done = len(self._decode(self._tokens))
        self._held = 0
        return new

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._core.decode(tokens, skip_special_tokens=True)
        return text


class _ByteLevel:
    """GPT-2's alphabet: every byte is a printable character; tokens outside it are plain text."""

    strip_start = False

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        self._core = core

    def piece(self, token: int) -> bytes | str:
        text: str | None = self._core.id_to_token(token)
        if text is None:
            return b""
        try:
            return bytes(_BYTES_OF[c] for c in text)
        except KeyError:
            return text.encode()


class _Sentencepiece:
    """Pieces with U+2581 for a space, and <0x..> for a byte that has no piece."""

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        byte_fallback: bool,
        strip_start: bool,
    ) -> None:
        self._core = core
        self._byte_fallback = byte_fallback
        self.strip_start = strip_start

    def piece(self, token: int) -> bytes | str:
        text: str | None = self._core.id_to_token(token)
        if text is None:
            return ""
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        return text.replace("\u2581", " ")


def token_decoder(core: tokenizers.Tokenizer) -> TokenDecoder | tokenizers.Tokenizer:
    """Choose how a vocabulary's tokens become text.

    Returns:
        A decoder of single tokens, or the tokenizer itself where its decoder is of another kind.
    """
    if core.decoder is None:
        return core
    state: dict[str, Any] = json.loads(core.decoder.__getstate__())
    steps: list[dict[str, Any]] = state.get("decoders", [state])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _ByteLevel(core)
    strip = False
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}:
                pass
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                strip = start == 1
            case _:
                return core
    if kinds[:1] != ["Replace"]:
        return core
    return _Sentencepiece(core, byte_fallback="ByteFallback" in kinds, strip_start=strip)


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte, inverted.

    Source: the byte-level BPE of GPT-2: printable Latin-1 bytes stand for themselves, the rest are
    moved, in order, to U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(moved)})
    return alphabet


_BYTES_OF = byte_alphabet()
