"""The shared library from Python, by ctypes: for the export's own check and for tests."""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgetok.errors import EdgetokError

_ERROR_BYTES = 256
FINISH = ("going", "stop", "length", "context", "cancelled")


class Cache(c.Structure):
    """`edgetok_cache`."""

    _fields_ = (("context_tokens", c.c_int64), ("budget_bytes", c.c_int64), ("policy", c.c_char_p))


class Sampling(c.Structure):
    """`edgetok_sampling`."""

    _fields_ = (
        ("temperature", c.c_double),
        ("top_p", c.c_double),
        ("min_p", c.c_double),
        ("repetition_penalty", c.c_double),
        ("presence_penalty", c.c_double),
        ("frequency_penalty", c.c_double),
        ("top_k", c.c_int64),
        ("seed", c.c_uint64),
        ("max_tokens", c.c_int64),
        ("stop", c.POINTER(c.c_char_p)),
        ("stops", c.c_size_t),
    )


class Output(c.Structure):
    """`edgetok_output`."""

    _fields_ = (
        ("token", c.c_int32),
        ("finish", c.c_int),
        ("text", c.c_char_p),
        ("bytes", c.c_size_t),
    )


class Info(c.Structure):
    """`edgetok_info`."""

    _fields_ = (
        ("vocab_size", c.c_int64),
        ("context_tokens", c.c_int64),
        ("layers", c.c_int64),
        ("kv_bits", c.c_int64),
        ("block_tokens", c.c_int64),
        ("weight_bytes", c.c_int64),
        ("buffer_bytes", c.c_int64),
        ("threads", c.c_int),
        ("tokenizes", c.c_int),
        ("chats", c.c_int),
        ("isa", c.c_char_p),
        ("family", c.c_char_p),
        ("weights_sha256", c.c_char * 65),
    )


class Stats(c.Structure):
    """`edgetok_stats_t`."""

    _fields_ = (
        ("tokens", c.c_int64),
        ("position", c.c_int64),
        ("slots", c.c_int64),
        ("cache_bytes", c.c_int64),
        ("prompt_tokens", c.c_int64),
        ("cached_tokens", c.c_int64),
        ("answer_tokens", c.c_int64),
        ("prefill_s", c.c_double),
        ("decode_s", c.c_double),
    )


class Library:
    """libedgetok, loaded."""

    def __init__(self, path: Path) -> None:
        """Load the shared library."""
        lib = c.CDLL(str(path))
        lib.edgetok_open.restype = lib.edgetok_chat_new.restype = c.c_void_p
        lib.edgetok_open.argtypes = [c.c_char_p, c.c_int, c.c_int, c.c_char_p]
        lib.edgetok_chat_new.argtypes = [c.c_void_p, c.POINTER(Cache), c.c_char_p]
        lib.edgetok_close.argtypes = lib.edgetok_chat_free.argtypes = [c.c_void_p]
        lib.edgetok_cancel.argtypes = [c.c_void_p]
        lib.edgetok_describe.argtypes = [c.c_void_p, c.POINTER(Info)]
        lib.edgetok_encode.restype = c.c_int64
        lib.edgetok_encode.argtypes = [
            c.c_void_p, c.c_char_p, c.c_size_t, c.c_int, c.c_void_p, c.c_size_t, c.c_char_p,
        ]  # fmt: skip
        lib.edgetok_piece.restype = c.c_void_p
        lib.edgetok_piece.argtypes = [c.c_void_p, c.c_int32, c.POINTER(c.c_size_t)]
        lib.edgetok_sample.argtypes = [c.c_void_p, c.POINTER(Sampling), c.c_char_p]
        lib.edgetok_prefill.argtypes = [c.c_void_p, c.c_void_p, c.c_size_t, c.c_char_p]
        lib.edgetok_say.argtypes = [c.c_void_p, c.c_char_p, c.c_char_p, c.c_char_p]
        lib.edgetok_next.argtypes = [c.c_void_p, c.POINTER(Output), c.c_char_p]
        lib.edgetok_truncate.restype = c.c_int64
        lib.edgetok_truncate.argtypes = [c.c_void_p, c.c_int64, c.c_char_p]
        lib.edgetok_tokens.restype = c.c_int64
        lib.edgetok_tokens.argtypes = [c.c_void_p, c.c_void_p, c.c_size_t]
        lib.edgetok_logits.restype = c.c_void_p
        lib.edgetok_logits.argtypes = [c.c_void_p]
        lib.edgetok_stats.argtypes = [c.c_void_p, c.POINTER(Stats)]
        lib.edgetok_save.restype = c.c_int64
        lib.edgetok_save.argtypes = [c.c_void_p, c.c_void_p, c.c_size_t, c.c_char_p]
        lib.edgetok_restore.argtypes = [
            c.c_void_p, c.c_void_p, c.c_size_t, c.c_void_p, c.c_size_t, c.c_char_p,
        ]  # fmt: skip
        lib.edgetok_session_save.restype = c.c_int64
        lib.edgetok_session_save.argtypes = [c.c_void_p, c.c_void_p, c.c_size_t, c.c_char_p]
        lib.edgetok_session_load.argtypes = [c.c_void_p, c.c_void_p, c.c_size_t, c.c_char_p]
        self.calls: Any = lib

    def open(self, folder: Path, threads: int = 0, *, verify: bool = False) -> NativeModel:
        """Open an exported folder.

        Raises:
            EdgetokError: with the library's text.
        """
        return NativeModel(self.calls, folder, threads, verify)


class NativeModel:
    """`edgetok_model`; a context manager."""

    def __init__(self, calls: Any, folder: Path, threads: int, verify: bool) -> None:
        self.calls = calls
        error = c.create_string_buffer(_ERROR_BYTES)
        self.handle = calls.edgetok_open(str(folder).encode(), threads, int(verify), error)
        _check(self.handle, error)

    def __enter__(self) -> NativeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.edgetok_close(self.handle)

    @property
    def info(self) -> Info:
        """The result of `edgetok_describe`."""
        found = Info()
        self.calls.edgetok_describe(self.handle, c.byref(found))
        return found

    def encode(self, text: str | bytes, *, special: bool = True) -> list[int]:
        """Tokens of a text.

        Raises:
            EdgetokError: the library refuses the text.
        """
        data, error = text.encode() if isinstance(text, str) else text, _error()
        room = 2 * len(data) + 16
        while True:
            ids = (c.c_int32 * room)()
            count = self.calls.edgetok_encode(
                self.handle, data, len(data), int(special), ids, room, error
            )
            if count < 0:
                raise EdgetokError(error.value.decode())
            if count <= room:
                return list(ids[:count])
            room = count  # few texts have so many tokens

    def piece(self, token: int) -> bytes | None:
        """The bytes of a token."""
        size = c.c_size_t()
        at = self.calls.edgetok_piece(self.handle, token, c.byref(size))
        return c.string_at(at, size.value) if at else None

    def chat(
        self, context_tokens: int = 0, *, policy: str | None = None, budget_bytes: int = 0
    ) -> NativeChat:
        """A conversation."""
        return NativeChat(self, Cache(context_tokens, budget_bytes, policy and policy.encode()))


class NativeChat:
    """`edgetok_chat`; a context manager."""

    def __init__(self, model: NativeModel, cache: Cache) -> None:
        self.model, self.calls, error = model, model.calls, _error()
        self.handle = self.calls.edgetok_chat_new(model.handle, c.byref(cache), error)
        _check(self.handle, error)

    def __enter__(self) -> NativeChat:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.edgetok_chat_free(self.handle)

    def sample(self, *, stop: Sequence[str] = (), **options: float | int) -> None:
        """Set how the next answers are sampled; options are the fields of `Sampling`."""
        texts = (c.c_char_p * max(1, len(stop)))(*(text.encode() for text in stop))
        given = Sampling(stop=texts, stops=len(stop), **options)
        self._done(self.calls.edgetok_sample, c.byref(given))

    def prefill(self, ids: Sequence[int]) -> None:
        """Begin an answer to a prompt."""
        self._done(self.calls.edgetok_prefill, (c.c_int32 * len(ids))(*ids), len(ids))

    def say(self, text: str, system: str | None = None) -> None:
        """Begin an answer by the chat template."""
        told = None if system is None else system.encode()
        self._done(self.calls.edgetok_say, told, text.encode())

    def outputs(self) -> Iterator[tuple[int, str, str]]:
        """The answer: tokens, their text, and for the last the reason why it ended.

        Raises:
            EdgetokError: the library reports an error.
        """
        while True:
            found, error = Output(), _error()
            state = self.calls.edgetok_next(self.handle, c.byref(found), error)
            if state < 0:
                raise EdgetokError(error.value.decode())
            if state == 0:
                return
            yield found.token, c.string_at(found.text, found.bytes).decode(), FINISH[found.finish]

    def answer(self) -> tuple[list[int], str, str]:
        """All of it: tokens, text, why it ended."""
        found = list(self.outputs())
        return [t for t, _, _ in found], "".join(t for _, t, _ in found), found[-1][2]

    def truncate(self, tokens: int) -> int:
        """Go back to `tokens` tokens, or as near as the cache can; return how many are left.

        Raises:
            EdgetokError: the length is negative or beyond the tokens seen.
        """
        error = _error()
        left = int(self.calls.edgetok_truncate(self.handle, tokens, error))
        if left < 0:
            raise EdgetokError(error.value.decode())
        return left

    def tokens(self) -> list[int]:
        """Ids of the chat's tokens, evicted ones included."""
        ids = (c.c_int32 * self.calls.edgetok_tokens(self.handle, None, 0))()
        self.calls.edgetok_tokens(self.handle, ids, len(ids))
        return list(ids)

    def logits(self) -> Any:
        """Logits of the last token, float32 [vocab_size], copied."""
        at = self.calls.edgetok_logits(self.handle)
        size = self.model.info.vocab_size
        return None if not at else list((c.c_float * size).from_address(at))

    @property
    def stats(self) -> Stats:
        """The result of `edgetok_stats`."""
        found = Stats()
        self.calls.edgetok_stats(self.handle, c.byref(found))
        return found

    def save(self) -> bytes:
        """The cache as a block."""
        return self._saved(self.calls.edgetok_save)

    def restore(self, block: bytes, ids: Sequence[int]) -> None:
        """Take over a block that was computed from these tokens."""
        self._done(
            self.calls.edgetok_restore, block, len(block), (c.c_int32 * len(ids))(*ids), len(ids)
        )

    def session(self) -> bytes:
        """The content of a session file."""
        return self._saved(self.calls.edgetok_session_save)

    def load_session(self, file: bytes | int, size: int | None = None) -> None:
        """Go on from a session file: its content, or an address and bytes."""
        size = len(file) if isinstance(file, bytes) else size
        self._done(self.calls.edgetok_session_load, file, size)

    def _saved(self, call: Any) -> bytes:
        error = _error()
        size = call(self.handle, None, 0, error)
        if size < 0:
            raise EdgetokError(error.value.decode())
        made = c.create_string_buffer(size)
        call(self.handle, made, size, error)
        return made.raw

    def _done(self, call: Any, *arguments: Any) -> None:
        error = _error()
        if call(self.handle, *arguments, error) < 0:
            raise EdgetokError(error.value.decode())


def _error() -> Any:
    return c.create_string_buffer(_ERROR_BYTES)


def _check(handle: int | None, error: Any) -> None:
    if not handle:
        raise EdgetokError(error.value.decode())
