"""Tokenise a text of any length while other threads go on."""

from __future__ import annotations

import threading
from typing import Any

import tokenizers

LONG_CHARS = 1 << 16
"""Shorter texts take less than 0.1 s, and nothing is started for them."""

_one_at_a_time = threading.Lock()  # 100 bytes a token meanwhile


def encoded(core: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool) -> Any:
    """Return a text's tokens by the package: an object with `ids` and `tokens`.

    Its `encode` keeps every other Python thread waiting, a second for a million characters: a
    server would answer nobody meanwhile. The function for batches does not, and without offsets it
    needs half the time and two thirds of the memory.
    """
    if len(text) < LONG_CHARS:
        return core.encode(text, add_special_tokens=add_special_tokens)
    with _one_at_a_time:
        (found,) = core.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return found
