"""libedgetok from Python, without edgetok: needs cffi and an exported folder, and no compiler.

    with Model("app") as model, model.chat() as chat:
        for piece in chat.say("Hello"):
            print(piece.text, end="", flush=True)

Close what you open, with `with` or `close()`; closing a model closes its chats. Calls of several
threads on one chat wait for each other; `cancel` and `close` end what another thread computes.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import warnings
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cffi

# The folder of lib/ for this system and processor, and the library in it.
_LIBRARIES = {
    ("Linux", "x86_64"): "x86_64-linux/libedgetok.so",
    ("Linux", "aarch64"): "aarch64-linux/libedgetok.so",
    ("Darwin", "arm64"): "arm64-macos/libedgetok.dylib",
    ("Windows", "AMD64"): "x86_64-windows/edgetok.dll",
}
_FINISH = ("going", "stop", "length", "context", "cancelled")
_Self = TypeVar("_Self", bound="_Owned")


class EdgetokError(Exception):
    """Something failed; says what the library said."""


class Info(NamedTuple):
    """A model's description: `edgetok_info` of edgetok.h."""

    vocab_size: int
    context_tokens: int
    layers: int
    kv_bits: int
    block_tokens: int
    weight_bytes: int
    buffer_bytes: int
    threads: int
    tokenizes: bool
    chats: bool
    isa: str
    family: str
    weights_sha256: str


class Stats(NamedTuple):
    """Counts and times of a chat: `edgetok_stats_t` of edgetok.h."""

    tokens: int
    position: int
    slots: int
    cache_bytes: int
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    prefill_s: float
    decode_s: float


class Piece(NamedTuple):
    """A token of an answer.

    Attributes:
        token: its id.
        text: the text that it completes; may be empty.
        finish: "going", or why it is the last: "stop", "length", "context" or "cancelled".
    """

    token: int
    text: str
    finish: str


class _Owned:
    """A handle of the library, freed by `close`."""

    def __init__(self, ffi: Any, lib: Any, handle: Any) -> None:
        self._ffi, self._lib, self._handle = ffi, lib, handle
        self._use = threading.Lock()  # one call at a time
        self._life = threading.Lock()  # what `cancel` and freeing take

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            warnings.warn(f"{type(self).__name__} was not closed", ResourceWarning, stacklevel=2)

    def close(self) -> None:
        """Free the handle; closing again does nothing."""
        raise NotImplementedError

    def _call(self, name: str, *arguments: Any, fails: bool = True) -> Any:
        """Call a function with the handle; the caller holds `_use`."""
        if self._handle is None:
            raise EdgetokError(f"the {type(self).__name__.lower()} is closed")
        error = self._ffi.new("char[]", 256)
        ends = (error,) if fails else ()
        result = getattr(self._lib, name)(self._handle, *arguments, *ends)
        pointer = isinstance(result, self._ffi.CData)
        if fails and (result == self._ffi.NULL if pointer else result < 0):
            raise EdgetokError(_text(self._ffi, error) or f"{name} failed")
        return result


class Model(_Owned):
    """An exported folder, opened."""

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int = 0,
        verify: bool = False,
        library: str | Path | None = None,
    ) -> None:
        """Open a folder.

        Args:
            folder: what `edgetok export --format native` wrote.
            threads: how many compute; 0 for one a performance core, or one for a small model.
            verify: whether to compare the weights with their sha256, which reads all of them.
            library: the shared library; None for that of `folder` for this machine.

        Raises:
            EdgetokError: the folder, or a library for this machine, is missing or damaged.
        """
        ffi, folder = cffi.FFI(), Path(folder)
        here = (platform.system(), platform.machine())
        if library is None and here not in _LIBRARIES:
            raise EdgetokError(f"no library for {' '.join(here)}; give library=")
        path = Path(library) if library is not None else folder / "lib" / _LIBRARIES[here]
        try:
            header = (folder / "include/edgetok.h").read_text(encoding="utf-8")
            ffi.cdef(re.sub(r"(?ms)^#ifdef __cplusplus.*?^#endif|^#.*?$", "", header))
            lib = ffi.dlopen(str(path.resolve()))
        except OSError as problem:
            raise EdgetokError(f"{folder}: cannot be loaded: {problem}") from None
        error = ffi.new("char[]", 256)
        handle = lib.edgetok_open(os.fsencode(folder), threads, int(verify), error)
        if handle == ffi.NULL:
            raise EdgetokError(_text(ffi, error))
        super().__init__(ffi, lib, handle)
        self._chats: set[Chat] = set()

    def close(self) -> None:
        """Close the model's chats, then the model."""
        with self._use:
            for chat in list(self._chats):
                chat.close()
            if self._handle is not None:
                self._lib.edgetok_close(self._handle)
            self._handle = None

    @property
    def info(self) -> Info:
        """Sizes, the instruction set in use, the family."""
        with self._use:
            found = self._ffi.new("edgetok_info *")
            self._call("edgetok_describe", found, fails=False)
            values = {name: getattr(found, name) for name in Info._fields}
            for name in ("isa", "family", "weights_sha256"):
                values[name] = _text(self._ffi, values[name])
            return Info(**{**values, **{k: bool(values[k]) for k in ("tokenizes", "chats")}})

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return a text's tokens; `special` adds what belongs around one, such as <s>."""
        with self._use:
            data = _utf8(text)
            room = 2 * len(data) + 16
            while True:
                ids = self._ffi.new("int32_t[]", room)
                count = self._call("edgetok_encode", data, len(data), int(special), ids, room)
                if count <= room:
                    return list(ids[0:count])
                room = count  # few texts have so many tokens

    def piece(self, token: int) -> bytes | None:
        """Return the bytes that a token stands for; None for no such token."""
        with self._use:
            size = self._ffi.new("size_t *")
            at = self._call("edgetok_piece", token, size, fails=False)
            return None if at == self._ffi.NULL else bytes(self._ffi.buffer(at, size[0]))

    def chat(
        self, context_tokens: int = 0, *, budget_bytes: int = 0, policy: str | None = None
    ) -> Chat:
        """Start a conversation: with a context, or with what its cache may take.

        `policy` says what is evicted when it is full, by default "recall"; "none" evicts nothing.
        """
        with self._use:
            name = self._ffi.NULL if policy is None else self._ffi.new("char[]", _plain(policy))
            options = self._ffi.new("edgetok_cache *", (context_tokens, budget_bytes, name))
            made = Chat(self, self._call("edgetok_chat_new", options))
            self._chats.add(made)
            return made


class Chat(_Owned):
    """A conversation with a cache of its own; `Model.chat` makes one."""

    def __init__(self, model: Model, handle: Any) -> None:
        super().__init__(model._ffi, model._lib, handle)
        self._model, self._vocab_size = model, 0

    def close(self) -> None:
        """Free the conversation, once what another thread computes is cancelled."""
        self.cancel()
        with self._use, self._life:
            if self._handle is not None:
                self._lib.edgetok_chat_free(self._handle)
            self._handle = None
            self._model._chats.discard(self)

    def cancel(self) -> None:
        """End a prefill or an answer that another thread computes."""
        with self._life:
            if self._handle is not None:
                self._lib.edgetok_cancel(self._handle)

    def sample(self, *, stop: Sequence[str] = (), **options: float) -> None:
        """Set how the next answers are sampled; by default the most likely token is taken.

        Args:
            stop: texts before which an answer ends.
            options: temperature, top_p, min_p, top_k, seed, max_tokens, repetition_penalty,
                presence_penalty, frequency_penalty.
        """
        with self._use:
            texts = [self._ffi.new("char[]", _plain(text)) for text in stop]
            given = self._ffi.new("edgetok_sampling *", options)
            given.stop = kept = self._ffi.new("char *[]", texts)
            given.stops = len(kept)
            self._call("edgetok_sample", given)

    def say(self, text: str, system: str | None = None) -> Iterator[Piece]:
        """Say something by the chat template; returns the answer. `system`: of the first turn."""
        with self._use:
            told = self._ffi.NULL if system is None else _plain(system)
            self._call("edgetok_say", told, _plain(text))
        return self._answer()

    def prefill(self, ids: Sequence[int]) -> Iterator[Piece]:
        """Make `ids` the chat's tokens, keeping what the cache holds; returns the answer."""
        with self._use:
            self._call("edgetok_prefill", self._ffi.new("int32_t[]", list(ids)), len(ids))
        return self._answer()

    def next(self) -> Piece | None:
        """Return the next token of the answer; None when it is over."""
        with self._use:
            found = self._ffi.new("edgetok_output *")
            if self._call("edgetok_next", found) == 0:
                return None
            text = bytes(self._ffi.buffer(found.text, found.bytes)).decode()
            return Piece(found.token, text, _FINISH[found.finish])

    def truncate(self, tokens: int) -> int:
        """Go back to the first tokens, or fewer if some were evicted; returns how many."""
        with self._use:
            return int(self._call("edgetok_truncate", tokens))

    def tokens(self) -> list[int]:
        """Return the ids of the chat's tokens, evicted ones included."""
        with self._use:
            count = self._call("edgetok_tokens", self._ffi.NULL, 0, fails=False)
            ids = self._ffi.new("int32_t[]", count)
            self._call("edgetok_tokens", ids, count, fails=False)
            return list(ids[0:count])

    def logits(self) -> array[float] | None:
        """Return [vocab_size] float32 of the last token computed; None before the first."""
        size = self._vocab_size = self._vocab_size or self._model.info.vocab_size
        with self._use:
            at = self._call("edgetok_logits", fails=False)
            return None if at == self._ffi.NULL else array("f", self._ffi.buffer(at, 4 * size)[:])

    @property
    def stats(self) -> Stats:
        """Tokens, bytes and seconds."""
        with self._use:
            found = self._ffi.new("edgetok_stats_t *")
            self._call("edgetok_stats", found, fails=False)
            return Stats(*(getattr(found, name) for name in Stats._fields))

    def save(self) -> bytes:
        """Return the cache, for `restore` or for edgetok in Python; keep `tokens()` with it."""
        return self._saved("edgetok_save")

    def restore(self, block: bytes, ids: Sequence[int]) -> None:
        """Take over a cache that was computed from `ids`."""
        with self._use:
            given = self._ffi.new("int32_t[]", list(ids))
            data = self._ffi.from_buffer(block)
            self._call("edgetok_restore", data, len(block), given, len(ids))

    def session(self) -> bytes:
        """Return the content of a session file, which `edgetok chat --session` opens."""
        return self._saved("edgetok_session_save")

    def load_session(self, file: bytes) -> None:
        """Go on with the conversation of a session file, which Python may have written."""
        with self._use:
            self._call("edgetok_session_load", self._ffi.from_buffer(file), len(file))

    def _saved(self, call: str) -> bytes:
        with self._use:
            made = bytearray(self._call(call, self._ffi.NULL, 0))
            self._call(call, self._ffi.from_buffer(made), len(made))
            return bytes(made)

    def _answer(self) -> Iterator[Piece]:
        while (piece := self.next()) is not None:
            yield piece


def _plain(text: str) -> bytes:
    if "\0" in text:
        raise EdgetokError("a text holds a NUL character; remove it")
    return _utf8(text)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as problem:
        found = f"U+{ord(text[problem.start]):04X}"
        raise EdgetokError(f"a text holds {found}, half a character; remove it") from None


def _text(ffi: Any, at: Any) -> str:
    return str(ffi.string(at).decode("utf-8", "replace"))
