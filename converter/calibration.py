"""Calibration text and its token windows."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.converter.assets import TOKENIZER_FILE
from edgetok.converter.options import ConvertOptions
from edgetok.errors import CheckpointError, OptionError
from edgetok.models.spec import DecoderSpec

Tokens = npt.NDArray[np.int64]

_MAX_TEXT_BYTES = 64 << 20


def calibration_text(options: ConvertOptions) -> str:
    """The user's text, or the one that ships with edgetok.

    Raises:
        OptionError: the user's file cannot be read as UTF-8 text, or is empty.
    """
    path = options.calibration
    if path is None:
        return (files("edgetok.converter") / "calibration.txt").read_text(encoding="utf-8")
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise OptionError(f"--calibration {path}: more than {_MAX_TEXT_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"--calibration {path}: no UTF-8 text: {error}") from error
    except OSError as error:
        raise OptionError(f"--calibration {path}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise OptionError(f"--calibration {path}: is empty")
    return text


def windows_of(spec: DecoderSpec, options: ConvertOptions, artefact: Path) -> Tokens:
    """[windows, T] token ids of the whole calibration text; see `token_windows`."""
    return token_windows(
        calibration_text(options),
        artefact,
        min(options.window_tokens, spec.context_tokens),
        spec.vocab_size,
        spec.bos_token,
    )


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


def split_windows(windows: Tokens, calibration_windows: int) -> tuple[Tokens, Tokens]:
    """Windows to calibrate on, and others to compare on, both spread over the whole text.

    One window in eight, but at least one, is held out for the comparison. Where there is only one
    window in all, it serves for both.

    Args:
        windows: [windows, T].
        calibration_windows: how many are wanted at most.
    """
    if len(windows) == 1:
        return windows, windows
    held_out = spread(len(windows), max(1, len(windows) // 8))
    rest = np.delete(windows, held_out, axis=0)
    return rest[spread(len(rest), min(calibration_windows, len(rest)))], windows[held_out]


def spread(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """`wanted` of `count` indices, evenly spread."""
    return ((2 * np.arange(wanted) + 1) * count // (2 * wanted)).astype(np.int64)
