"""Windows of tokens from a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.converter.write.tokenizer_files import TOKENIZER_FILE
from edgetok.errors import CheckpointError

Tokens = npt.NDArray[np.int64]


def token_windows(
    text: str, artefact: Path, window_tokens: int, vocab_size: int, bos_token: int | None
) -> Tokens:
    """Cut a text into windows of equal length, each beginning as a text begins.

    Args:
        text: any.
        artefact: the folder with `tokenizer.json`.
        window_tokens: length of a window.
        vocab_size: the model's number of logits.
        bos_token: stands before each window where the tokenizer puts it before a text.

    Returns:
        [windows, window_tokens] int64. A text shorter than a window gives one shorter window.

    Raises:
        CheckpointError: there is no tokenizer, or the text gives fewer than two tokens.
    """
    import tokenizers

    path = artefact / TOKENIZER_FILE
    if not path.exists():
        raise CheckpointError(
            f"calibration needs a {TOKENIZER_FILE} in the checkpoint; add it or use --method rtn"
        )
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with_bos = bos_token is not None and tokenizer.encode("a").ids[:1] == [bos_token]
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
    ids = ids[ids < vocab_size]
    if len(ids) < 2:
        raise CheckpointError(
            f"{TOKENIZER_FILE}: the calibration text gives {len(ids)} tokens; this tokenizer "
            "belongs to another model"
        )
    body = min(window_tokens - with_bos, len(ids))
    count = len(ids) // body
    windows = ids[: count * body].reshape(count, body)
    if with_bos:
        windows = np.concatenate([np.full((count, 1), bos_token), windows], axis=1)
    return windows


def split_windows(windows: Tokens) -> tuple[Tokens, Tokens]:
    """Windows to calibrate on, and others to compare on: one in eight, but at least one.

    Where there is only one window in all, it serves for both.

    Args:
        windows: [windows, T].
    """
    if len(windows) == 1:
        return windows, windows
    held_out = spread(len(windows), max(1, len(windows) // 8))
    return np.delete(windows, held_out, axis=0), windows[held_out]


def spread(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """`wanted` of `count` indices, evenly spread."""
    return ((2 * np.arange(wanted) + 1) * count // (2 * wanted)).astype(np.int64)
