"""Convert text to token ids and back, by a `tokenizer.json`.

The file is validated where it is loaded: a token beyond the model's vocabulary would read past the
embedding, and an empty added token matches everywhere. Saved truncation and padding are switched
off, because they silently shorten a prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from edgetok.errors import ArtefactError, OptionError
from edgetok.formats import strict_json
from edgetok.formats.foreign import foreign
from edgetok.text import small_core
from edgetok.text.detokenizer import TextStream, token_decoder
from edgetok.text.inputs import checked_text
from edgetok.text.long_text import encoded
from edgetok.text.small_core import SmallCore
from edgetok.text.tokenizer_check import open_core

if TYPE_CHECKING:
    from edgetok.formats.artefact import Artefact

TOKENIZER_FILE = "tokenizer.json"
MAX_TOKENIZER_BYTES = 128 << 20
"""Gemma 3's 262,144 tokens take 33 MB."""


class Tokenizer:
    """The tokenizer of one model. Safe to use from many threads.

    Attributes:
        vocab_size: the model's number of logits; every id is below it.
        bos_text, eos_text: the special tokens as text, which chat templates insert; "" for none.
        bos_token, eos_token: the same as ids.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer | SmallCore,
        config: dict[str, Any],
        vocab_size: int,
        name: str,
    ) -> None:
        """Validate and wrap a loaded tokenizer.

        Args:
            core: as the `tokenizers` package reads it, or as it was kept.
            config: the content of tokenizer_config.json, {} for none.
            vocab_size: the model's number of logits.
            name: the file's name, for messages.

        Raises:
            ArtefactError: a token is beyond the vocabulary, or there is none.
        """
        self._core = core
        self._name = name
        self.vocab_size = vocab_size
        core.no_truncation()
        core.no_padding()
        self._added = core.get_added_tokens_decoder()
        self._check()
        self._special = {i: token.content for i, token in self._added.items() if token.special}
        self.bos_text = _token_text(config, "bos_token")
        self.eos_text = _token_text(config, "eos_token")
        self.bos_token = self._id_of(self.bos_text)
        self.eos_token = self._id_of(self.eos_text)
        self._decoder = token_decoder(core)
        # The unknown token stands for a character of the text, and so does the space after it.
        unknown = self._id_of(getattr(core.model, "unk_token", None) or "")
        self._starts = set(self._added) - {unknown} if self._adds_space() else set()
        self._cuts: dict[int, bool] = {}

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        vocab_size: int,
        *,
        digest: str | None = None,
        kept: Path | None = None,
    ) -> Tokenizer:
        """Load `tokenizer.json` and, where it is there, `tokenizer_config.json`.

        Args:
            folder: where they are.
            vocab_size: the model's number of logits.
            digest: sha256 that tokenizer.json was found to have.
            kept: folder in which a large tokenizer is kept in a form that is quick to load; with
                `digest` only.

        Raises:
            ArtefactError: a file is missing, too large, damaged or does not match the vocabulary.
        """
        path = folder / TOKENIZER_FILE

        def read() -> bytes:
            return strict_json.read_bytes(path, max_bytes=MAX_TOKENIZER_BYTES, error=ArtefactError)

        def read_again() -> tokenizers.Tokenizer:
            data = read()
            if hashlib.sha256(data).hexdigest() != digest:
                raise ArtefactError(f"{path}: changed since it was opened; load the model again")
            return open_core(data, str(path), ArtefactError)

        core: tokenizers.Tokenizer | SmallCore | None = None
        if digest is not None and kept is not None:
            core = small_core.load(kept, digest, read_again)
        if core is None:
            data = read()
            core = whole = open_core(data, str(path), ArtefactError)
            keep = len(data) >= small_core.MIN_TOKENIZER_BYTES and kept is not None
            if keep and kept is not None and hashlib.sha256(data).hexdigest() == digest:
                small_core.save(kept, digest, whole, data)
        return cls(core, read_config(folder), vocab_size, str(path))

    @classmethod
    def from_artefact(cls, artefact: Artefact, vocab_size: int, cache_dir: Path) -> Tokenizer:
        """Load an opened artefact's tokenizer; a large one is kept in the cache folder.

        Raises:
            ArtefactError: as for `from_folder`.
        """
        return cls.from_folder(
            artefact.folder,
            vocab_size,
            digest=artefact.digest(TOKENIZER_FILE),
            kept=cache_dir / "tokenizers",
        )

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Turn text into ids.

        Args:
            text: any text; special tokens written out in it become their ids.
            special: whether to add what the tokenizer adds around a text, such as <s>. False for
                text that a chat template made, which has written them itself.

        Raises:
            OptionError: the text is not valid Unicode, or names a token that the model has no
                embedding for.
        """
        checked_text("the text", text)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # a lone surrogate
            raise OptionError(f"the text is not valid Unicode: {error}") from error
        with foreign("the text cannot be tokenised", OptionError):
            if isinstance(self._core, SmallCore):
                ids: list[int] = self._core.encode(text, add_special_tokens=special).ids
            else:
                ids = encoded(self._core, text, add_special_tokens=special).ids
        if ids and max(ids) >= self.vocab_size:
            bad = max(ids)
            raise OptionError(
                f"the text holds {self._core.id_to_token(bad)!r}, token {bad}, but the model knows "
                f"{self.vocab_size} tokens; leave it out"
            )
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Turn ids into text.

        Args:
            ids: tokens; those beyond the vocabulary give nothing.
            special: whether special tokens are written out.
        """
        text: str = self._core.decode(list(ids), skip_special_tokens=not special)
        return text

    def stream(
        self,
        prompt: Sequence[int] = (),
        *,
        exact: bool = False,
        shown: Collection[int] = (),
    ) -> TextStream:
        """A decoder for tokens that arrive one by one after `prompt`.

        Args:
            prompt: what the text continues.
            exact: whether a space at the start always belongs to the text.
            shown: special tokens that are spelled out.
        """
        special: Mapping[int, str] = self._special
        if shown:
            special = {i: text for i, text in special.items() if i not in shown}
        return TextStream(self._decoder, special, prompt, self._starts, exact=exact)

    def token_text(self, token: int) -> str | None:
        """Return the vocabulary's spelling of a token; None for an unknown id."""
        text: str | None = self._core.id_to_token(token)
        return text

    @property
    def special_tokens(self) -> Mapping[int, str]:
        """The tokens that give no text, and how they are spelled."""
        return self._special

    def knows(self, text: str) -> bool:
        """Return whether a text is one token."""
        return self._id_of(text) is not None

    def piece(self, token: int) -> bytes:
        """Return the bytes that a token stands for; a special one is spelled out."""
        piece = self.raw_piece(token)
        return piece if isinstance(piece, bytes) else piece.encode()

    def raw_piece(self, token: int) -> bytes | str:
        """The same, as text where the token is whole characters. See `TokenDecoder.piece`."""
        if isinstance(self._decoder, tokenizers.Tokenizer):
            return (self._core.decode([token], skip_special_tokens=False) or "").encode()
        return self._decoder.piece(token)

    @property
    def strips_start(self) -> bool:
        """Return whether one space at the start of a text is left out."""
        return bool(getattr(self._decoder, "strip_start", False))

    def starts_text(self, token: int) -> bool:
        """Return whether the tokenizer puts a space of its own before the text after a token."""
        return token in self._starts

    def pieces(self) -> list[bytes] | None:
        """Return the bytes that each token stands for; None where they depend on its neighbours."""
        if isinstance(self._decoder, tokenizers.Tokenizer):
            return None
        return [self.piece(token) for token in range(self.vocab_size)]

    def vocabulary(self) -> dict[str, int]:
        """Return the number of each token, special ones included."""
        return dict(self._core.get_vocab(with_added_tokens=True))

    def plain_encoder(self) -> Callable[[str], list[int]]:
        """Return a function from text to ids in which special tokens are plain text."""
        core = tokenizers.Tokenizer.from_str(self._core.to_str())
        core.encode_special_tokens = True

        def encode(text: str) -> list[int]:
            ids: list[int] = core.encode(text, add_special_tokens=False).ids
            return [i for i in ids if i < self.vocab_size]

        return encode

    def is_cut(self, token: int) -> bool:
        """Return whether any text can be cut before a token without changing the tokens around it.

        True for special tokens that match the raw text, absorb no spaces around them and do not lie
        inside of another added token. Looked up where it is asked: Gemma 3 has 6,250 added tokens.
        """
        if token not in self._cuts:
            self._cuts[token] = self._find_cut(token)
        return self._cuts[token]

    def cuts(self, ids: Iterable[int]) -> dict[int, str]:
        """Return those of the tokens before which a text can be cut, and how each is written."""
        found = self._special.keys() & set(ids)
        return {token: self._special[token] for token in found if self.is_cut(token)}

    def _adds_space(self) -> bool:
        """Return whether a space that is not in the text precedes the text after an added token."""
        added = next(iter(self._added.values()), None)
        if added is None or not getattr(self._decoder, "strip_start", False):
            return False
        with foreign(f"{self._name}: fails on its own added token", ArtefactError):
            pieces = self._core.encode(added.content + "a", add_special_tokens=False).tokens
        return len(pieces) > 1 and pieces[1].startswith("\u2581")

    def _id_of(self, text: str) -> int | None:
        token: int | None = self._core.token_to_id(text) if text else None
        return token if token is not None and token < self.vocab_size else None

    def _find_cut(self, token: int) -> bool:
        mine = self._added.get(token)
        return (
            mine is not None
            and mine.special
            and not (mine.normalized or mine.lstrip or mine.single_word)
            and not any(mine.content in other.content[1:] for other in self._added.values())
        )

    def _check(self) -> None:
        """Refuse ids beyond the vocabulary.

        A special token beyond it is let through, because Gemma 3's text models ship one
        (`<image_soft_token>`); `encode` refuses it where a text names it.
        """
        size = self._core.get_vocab_size(with_added_tokens=False)
        if size == 0 and not self._added:
            raise ArtefactError(f"{self._name}: the vocabulary is empty")
        items = [(token.content, i) for i, token in self._added.items()]
        # Ids without gaps end at size - 1, and looking at each of 262,144 takes a quarter second. A
        # gap that this does not find is found by `encode` where a text needs the id beyond.
        if size > self.vocab_size or (size and self._core.id_to_token(size - 1) is None):
            items = list(self._core.get_vocab(with_added_tokens=True).items())
        for text, token in items:
            if token >= self.vocab_size and not (
                token in self._added and self._added[token].special
            ):
                raise ArtefactError(
                    f"{self._name}: token {text!r} has id {token}, but the model knows "
                    f"{self.vocab_size} tokens; this tokenizer belongs to another model"
                )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of `tokenizer_config.json`; {} where there is none.

    Raises:
        ArtefactError: the file is damaged.
    """
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return {}
    return strict_json.read_object(path, error=ArtefactError)


def _token_text(config: dict[str, Any], key: str) -> str:
    """Return a special token of tokenizer_config.json: a string, or an object with `content`."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
