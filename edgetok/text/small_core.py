"""A BPE tokenizer whose tokens and merges are sorted arrays: quick to load, and small.

The `tokenizers` package needs 0.6 s and 290 MB to read Gemma 3's 262,144 tokens and 513,511 merges,
nearly all of it for hash maps; the arrays take 13 MB. Everything but the merges is still its work:
a *skeleton*, the same tokenizer with a vocabulary of single characters and without merges, finds
added tokens, normalises, splits and adds what goes around a text. What it gives are the symbols
that BPE begins with, and the word that each belongs to. The merges are applied here, by rank and
then from left to right.

The arrays are kept in a file under the hash of tokenizer.json. They are built only for tokenizers
that are fully understood, and only if both give the same tokens for texts that are tried. Long
texts, and questions about the whole vocabulary, go to the package, which is then loaded.

Source: Sennrich et al., arXiv 1508.07909; symbols of unknown characters as in `tokenizers` 0.22.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from edgetok.errors import OutputError, SessionError
from edgetok.formats.container import read_container, write_container
from edgetok.private_folder import private_folder
from edgetok.text.detokenizer import byte_alphabet, token_decoder
from edgetok.text.long_text import encoded

MIN_TOKENIZER_BYTES = 4 << 20
"""Smaller files are read in 0.2 s or less."""

# Python merges a character in 10 us, the package in 0.1 us: from here on it is worth its 0.6 s.
LONG_CHARS = 4096
ALL_CHARS = 16384

_VERSION = 1  # raise it where the arrays or the checks of `tokenizer_check` change
_MOST_FILES = 8
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PROBES = (
    "Hello wörld's 42 \t\r\n  é 你好, こんにちは! <x> 😀\U000f0000 aaaaaaaa\u0300 Zürich  2026",
    "  def f(x):\n\treturn [x**2 for x in range(10_000)] # naïve café — “quotes”\n\n\n",
    "",
)

Ints = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of a text."""

    ids: list[int]
    core: SmallCore

    @property
    def tokens(self) -> list[str | None]:
        """The same as the vocabulary spells them."""
        return [self.core.id_to_token(token) for token in self.ids]


class SmallCore:
    """The part of `tokenizers.Tokenizer` that edgetok uses. Safe to use from many threads.

    Attributes:
        model: of the skeleton; its settings are those of the whole.
        decoder: tokens to text.
    """

    def __init__(
        self,
        header: dict[str, Any],
        parts: Sequence[npt.NDArray[np.uint8]],
        read_whole: Callable[[], tokenizers.Tokenizer],
    ) -> None:
        """Wrap arrays.

        Args:
            header: "skeleton", a tokenizer.json; "model_tokens", tokens without added ones;
                "whole_words" whether a word that is a token is not merged; "added_only" ids that
                only added tokens have.
            parts: bytes of ends int32 [V + 1], texts, order int32 [V], pairs int64 [M], ranks
                int32 [M] and merged int32 [M], as `tables` makes them.
            read_whole: loads the tokenizer.
        """
        ends, self._texts, order, pairs, ranks, merged = parts
        self._ends, self._order = _ints(ends, np.int32), _ints(order, np.int32)
        self._pairs = _ints(pairs, np.int64)
        self._ranks, self._merged = _ints(ranks, np.int32), _ints(merged, np.int32)
        self._skeleton = tokenizers.Tokenizer.from_str(header["skeleton"])
        self._model_tokens = int(header["model_tokens"])
        self._whole_words = bool(header["whole_words"])
        self._added_only = frozenset(header["added_only"])
        self.model, self.decoder = self._skeleton.model, self._skeleton.decoder
        self._special = {
            token.content for token in self.get_added_tokens_decoder().values() if token.special
        }
        self._read_whole = read_whole
        self._whole: tokenizers.Tokenizer | None = None
        self._lock = threading.Lock()
        self._chars = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """Return an object with `ids` and `tokens`."""
        self._chars += len(text)
        if self._whole or len(text) > LONG_CHARS or self._chars > ALL_CHARS:
            return encoded(self.whole, text, add_special_tokens=add_special_tokens)
        first = self._skeleton.encode(text, add_special_tokens=add_special_tokens)
        ids: list[int] = []
        for word, symbols in itertools.groupby(
            zip(first.word_ids, first.ids, strict=True), lambda symbol: symbol[0]
        ):
            run = [token for _, token in symbols]
            ids += run if word is None else self._word(run)
        return Encoded(ids, self)

    def id_to_token(self, token: int) -> str | None:
        """Return how a token is spelled; None for an unknown id."""
        if not 0 <= token < len(self._ends) - 1:
            return None
        raw = self._texts[self._ends[token] : self._ends[token + 1]].tobytes()
        return raw.decode() or None

    def token_to_id(self, text: str) -> int | None:
        """Return the id of a token; None if there is none."""
        wanted, low, high = text.encode("utf-8", "surrogatepass"), 0, len(self._order)
        while low < high:
            middle = (low + high) // 2
            token = int(self._order[middle])
            raw = self._texts[self._ends[token] : self._ends[token + 1]].tobytes()
            if raw == wanted:
                return token
            low, high = (middle + 1, high) if raw < wanted else (low, middle)
        return None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of tokens; unknown ids give nothing."""
        texts = [text for text in map(self.id_to_token, ids) if text is not None]
        if skip_special_tokens:
            texts = [text for text in texts if text not in self._special]
        return str(self.decoder.decode(texts))

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """Return the added tokens by id."""
        return dict(self._skeleton.get_added_tokens_decoder())

    def get_vocab_size(self, *, with_added_tokens: bool) -> int:
        """Return the number of tokens."""
        return len(self._order) if with_added_tokens else self._model_tokens

    def get_vocab(self, *, with_added_tokens: bool) -> dict[str, int]:
        """Return the id of each token."""
        return dict(self.whole.get_vocab(with_added_tokens=with_added_tokens))

    def to_str(self) -> str:
        """Return the whole as JSON."""
        return str(self.whole.to_str())

    def no_truncation(self) -> None:
        """Do nothing: the skeleton truncates nothing."""

    def no_padding(self) -> None:
        """Do nothing: the skeleton pads nothing."""

    @property
    def whole(self) -> tokenizers.Tokenizer:
        """The package's tokenizer, loaded where it is first needed.

        Raises:
            ArtefactError: tokenizer.json changed since it was checked.
        """
        with self._lock:
            if self._whole is None:
                self._whole = self._read_whole()
            return self._whole

    def _word(self, symbols: list[int]) -> list[int]:
        if self._whole_words:
            whole = self.token_to_id("".join(self.id_to_token(s) or "" for s in symbols))
            if whole is not None and whole not in self._added_only:
                return [whole]
        return self._merge(symbols)

    def _merge(self, symbols: list[int]) -> list[int]:
        """Apply the merges of one word, lowest rank first, then the leftmost.

        A queue holds pairs that may be merged; what one of them has become since is seen when its
        turn comes. `after` and `before` link the symbols that are left; a merged one is -1.
        """
        count = len(symbols)
        if count < 2:
            return symbols
        keys = np.array(symbols[:-1], np.int64) << 32 | np.array(symbols[1:], np.int64)
        at = np.minimum(np.searchsorted(self._pairs, keys), max(len(self._pairs) - 1, 0))
        found = np.flatnonzero(self._pairs[at] == keys) if len(self._pairs) else at[:0]
        queue = [(int(self._ranks[at[i]]), int(i), int(self._merged[at[i]])) for i in found]
        heapq.heapify(queue)
        symbols, before, after = list(symbols), [*range(-1, count - 1)], [*range(1, count + 1)]
        while queue:
            _, left, new = heapq.heappop(queue)
            right = after[left]
            if symbols[left] < 0 or right == count:
                continue
            merge = self._find(symbols[left], symbols[right])
            if merge is None or merge[1] != new:
                continue
            symbols[left], symbols[right] = new, -1
            after[left] = after[right]
            if after[left] < count:
                before[after[left]] = left
            for first in (before[left], left):
                second = after[first] if first >= 0 else count
                if second < count and (merge := self._find(symbols[first], symbols[second])):
                    heapq.heappush(queue, (merge[0], first, merge[1]))
        return [symbol for symbol in symbols if symbol >= 0]

    def _find(self, left: int, right: int) -> tuple[int, int] | None:
        """Rank and result of a merge."""
        key = left << 32 | right
        at = int(self._pairs.searchsorted(key))
        if at == len(self._pairs) or self._pairs[at] != key:
            return None
        return int(self._ranks[at]), int(self._merged[at])


def tables(
    core: tokenizers.Tokenizer, data: bytes
) -> tuple[dict[str, Any], list[npt.NDArray[np.uint8]]] | None:
    """Return header and parts for `SmallCore`; None for a tokenizer of another kind.

    Args:
        core: as `open_core` gives it.
        data: its tokenizer.json.
    """
    state = json.loads(data)
    model = state["model"]
    if model.get("type") != "BPE" or isinstance(token_decoder(core), tokenizers.Tokenizer):
        return None
    if any(model.get(k) for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        return None
    vocab, every = model["vocab"], core.get_vocab(with_added_tokens=True)
    added = core.get_added_tokens_decoder()
    apart = [token.content for token in added.values() if token.content not in vocab]
    whole_words = bool(model.get("ignore_merges"))
    if (
        len(set(every.values())) != len(every)
        or "" in every
        or any(every.get(text) != token for text, token in vocab.items())
        or any(every.get(token.content) != i for i, token in added.items())
        # The skeleton would take them for characters.
        or any(len(text) == 1 or _BYTE.fullmatch(text) for text in apart)
        # A word is put together of its symbols, which unknown ones do not allow.
        or (whole_words and not (byte_alphabet().keys() <= vocab.keys() and _is_byte_level(state)))
    ):
        return None
    first = {
        text: token
        for text, token in vocab.items()
        if len(text) == 1 or _BYTE.fullmatch(text) or text == model.get("unk_token")
    }
    first |= {token.content: i for i, token in added.items()}
    bare = model | {"vocab": first, "merges": [], "ignore_merges": False}
    skeleton = state | {"model": bare, "truncation": None, "padding": None}
    header = {
        "skeleton": json.dumps(skeleton, ensure_ascii=False),
        "model_tokens": len(vocab),
        "whole_words": whole_words,
        "added_only": [every[text] for text in apart],
    }
    arrays = (*_spellings(every), *_merges(model["merges"], vocab))
    parts = [np.frombuffer(array.tobytes(), np.uint8) for array in arrays]
    small = SmallCore(header, parts, lambda: core)
    same = all(
        small.encode(text, add_special_tokens=special).ids
        == core.encode(text, add_special_tokens=special).ids
        for text in (*_PROBES, "a".join(token.content for token in [*added.values()][:32]))
        for special in (True, False)
    )
    return (header, parts) if same else None


def save(folder: Path, digest: str, core: tokenizers.Tokenizer, data: bytes) -> None:
    """Keep the arrays of a tokenizer for `load`, if it is of a kind that has them.

    Args:
        folder: where; made if it is missing. Nothing is kept where others may write.
        digest: sha256 of `data`.
        core: the tokenizer.
        data: its tokenizer.json.
    """
    made = tables(core, data)
    if made is None:
        return
    with contextlib.suppress(OSError, OutputError):  # a full disk costs the next start 0.6 s
        private_folder(folder, "tokenizers")
        write_container(_path(folder, digest), _model(digest), *made)
        kept = sorted(folder.glob("*.tokens"), key=lambda path: path.stat().st_mtime_ns)
        for path in kept[:-_MOST_FILES]:
            path.unlink()


def load(
    folder: Path, digest: str, read_whole: Callable[[], tokenizers.Tokenizer]
) -> SmallCore | None:
    """Return the tokenizer that was kept; None if it was not, or if the file is damaged.

    Args:
        folder: where `save` kept it; one that others may write is not read.
        digest: sha256 of tokenizer.json.
        read_whole: see `SmallCore`.
    """
    path = _path(folder, digest)
    if not path.exists():
        return None
    try:
        private_folder(folder, "tokenizers")
        header, parts = read_container(path, _model(digest))
    except (OutputError, SessionError):
        return None
    return SmallCore(header, parts, read_whole)


def _path(folder: Path, digest: str) -> Path:
    return folder / f"{digest[:32]}.tokens"


def _model(digest: str) -> str:
    """Return the key of a file: it is made anew for another release of either package."""
    return f"{digest} {_VERSION} {tokenizers.__version__}"


def _is_byte_level(state: dict[str, Any]) -> bool:
    step = state.get("pre_tokenizer") or {}
    return any(part.get("type") == "ByteLevel" for part in step.get("pretokenizers", [step]))


def _spellings(every: dict[str, int]) -> tuple[Ints, npt.NDArray[np.uint8], Ints]:
    """Return the end of each token's text, the texts in order of ids, and ids in order of texts."""
    raw = {token: text.encode() for text, token in every.items()}
    lengths = [len(raw.get(token, b"")) for token in range(max(raw, default=-1) + 1)]
    texts = b"".join(raw[token] for token in sorted(raw))
    order = sorted(raw, key=raw.__getitem__)
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    return ends, np.frombuffer(texts, np.uint8), np.array(order, np.int32)


def _merges(merges: list[Any], vocab: dict[str, int]) -> tuple[Ints, Ints, Ints]:
    """Pairs in order, the rank of each and what it becomes; of two equal ones the last counts."""
    halves = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    pairs = np.array([vocab[left] << 32 | vocab[right] for left, right in halves], np.int64)
    merged = np.array([vocab[left + right] for left, right in halves], np.int32)
    pairs, last = np.unique(pairs[::-1], return_index=True)
    ranks = (len(merges) - 1 - last).astype(np.int32)
    return pairs, ranks, merged[ranks]


def _ints(raw: npt.NDArray[np.uint8], kind: type[np.signedinteger[Any]]) -> Ints:
    """Return bytes as numbers, aligned: each search would copy the array else."""
    return np.require(raw.view(kind), requirements="A")
