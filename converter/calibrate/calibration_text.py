"""Calibration text, the text that a result is compared with the original on, and their windows.

The built-in text is the documents `text/learned/*.txt` and `text/compared/*.txt`, in order of their
names: weights are calibrated on the former and compared on the latter. Names begin with the kind of
text, so that evenly spread windows hold each kind in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from edgetok.converter.calibrate.openings import openings_of
from edgetok.converter.calibrate.windows import Tokens, split_windows, spread, token_windows
from edgetok.converter.durable import write_durably
from edgetok.converter.options import ConvertOptions, learns_whole
from edgetok.converter.progress import Progress
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.write.workspace import Workspace
from edgetok.errors import OptionError, UnsupportedError
from edgetok.formats import strict_json

_MAX_TEXT_BYTES = 64 << 20
# Of the windows that are calibrated on: a model of which its own text is but one side (the default
# model writes dialogues, and is asked for stories) lost a tenth less with half of another kind.
_OWN_SHARE = 0.5
_MOST_OWN = 1024  # windows that a model writes
# More than the built-in text has in the vocabulary of a large model. One of bytes has thrice as
# many, which a tiny model would be trained on.
_MOST_TOKENS = 1 << 16
# Beyond this, generating takes minutes.
MOST_WEIGHTS = 150_000_000
_CHARACTERS_A_TOKEN = 16  # taken of a document: more than any has at windows of 512 tokens


def calibration_text(options: ConvertOptions) -> str:
    """Return the user's text, or the built-in documents that are calibrated on.

    Raises:
        OptionError: the user's file cannot be read as UTF-8 text, or is empty.
    """
    path = options.calibration
    if path is None:
        return built_in_text("learned")
    data = strict_json.read_bytes(path, max_bytes=_MAX_TEXT_BYTES, error=OptionError)
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise OptionError(f"--calibration {path}: is not UTF-8 text: {error}") from error
    if not text.strip():
        raise OptionError(f"--calibration {path}: the file is empty")
    return text


def built_in_text(part: Literal["learned", "compared"], most_characters: int | None = None) -> str:
    """Return the documents to calibrate on, or those to compare on, with blank lines between.

    Args:
        part: which documents.
        most_characters: what is taken of each from its beginning; None: all.
    """
    folder = files("edgetok.converter.calibrate") / "text" / part
    documents = sorted(folder.iterdir(), key=lambda document: document.name)
    return "\n".join(text.read_text(encoding="utf-8")[:most_characters] for text in documents)


def text_windows(
    options: ConvertOptions,
    artefact: Path,
    window_tokens: int,
    vocab_size: int,
    bos_token: int | None,
) -> tuple[Tokens, Tokens]:
    """Return windows to calibrate on and windows to compare on; see `token_windows`.

    The built-in text is split by document, a user's text by window. For short windows, which hold a
    small part of the text, only the beginnings of documents are tokenised.

    Raises:
        CheckpointError: there is no tokenizer, or it belongs to another model.
        OptionError: the user's file cannot be read as UTF-8 text, or is empty.
    """

    def cut(text: str) -> Tokens:
        return token_windows(text, artefact, window_tokens, vocab_size, bos_token)

    if options.calibration is not None:
        return split_windows(cut(calibration_text(options)))
    most = _CHARACTERS_A_TOKEN * window_tokens
    return cut(built_in_text("learned", most)), cut(built_in_text("compared", most))


@dataclass(frozen=True, slots=True)
class Texts:
    """The token windows of a conversion.

    Attributes:
        learned: [n, T] what may be calibrated on.
        held_out: [m, T] what the result is compared with the original on.
        notes: for the report.
        more: [k, T] what only `tune` learns from.
    """

    learned: Tokens
    held_out: Tokens
    notes: tuple[str, ...] = ()
    more: Tokens | None = None

    def calibration(self, options: ConvertOptions) -> Tokens:
        """Return `calibration_windows` windows, evenly spread over those for calibration."""
        wanted = min(options.calibration_windows, len(self.learned))
        return self.learned[spread(len(self.learned), wanted)]

    def tuned(self) -> Tokens:
        """Return all windows for training."""
        return self.learned if self.more is None else np.concatenate([self.learned, self.more])


def texts_of(
    weights: CanonicalWeights,
    options: ConvertOptions,
    workspace: Workspace,
    progress: Progress,
    *,
    calibrates: bool,
    compared: int,
    write: Callable[[list[list[int]], tuple[int, int]], Tokens],
) -> Texts:
    """Return the user's text, else self-generated text, which is stored beside the journal.

    It is compared with the original on its own text alone, and calibrated on the built-in one as
    well.

    Args:
        weights: the original's.
        options: options of the conversion.
        workspace: with the tokenizer.
        progress: called while the model writes.
        calibrates: whether text is needed for more than a comparison.
        compared: tokens to compare on.
        write: draws windows from the model, by their first tokens and shape; see
            `self_generated_text.write`.

    Raises:
        CheckpointError: there is no tokenizer, or it belongs to another model.
        OptionError: the user's file cannot be read as UTF-8 text, or is empty.
        OutputError: a write failed.
    """
    spec = weights.family.spec
    length = min(options.window_tokens, spec.context_tokens)
    given, others = text_windows(
        options, workspace.artefact, length, spec.vocab_size, spec.bos_token
    )
    if options.calibration is not None:
        return Texts(given, others)
    few = given[spread(len(given), min(len(given), max(1, _MOST_TOKENS // length)))]
    if "write" in options.without:
        return Texts(few, others)
    if weights.parameters > MOST_WEIGHTS:
        note = (
            "calibrated and compared on the built-in text, on different documents of it: "
            "self-generated text is for models of up "
            f"to {MOST_WEIGHTS / 1e6:.0f} million weights; --calibration takes another"
        )
        return Texts(few, others, (note,))
    held_out = max(1, -(-compared // (length - 1)))
    # Twice as many where `tune` learns from all of them, which calibrates on some.
    twice = options.method == "auto" and learns_whole(weights.parameters)
    wanted = options.calibration_windows * (2 if twice else 1)
    own = math.ceil(_OWN_SHARE * wanted) if calibrates else 0
    # A code that learns needs to be told more often than a scale.
    refine = options.refinement(weights.parameters) if calibrates else 0
    more = max(0, min(refine, _MOST_OWN) - own) if learns_whole(weights.parameters) else 0
    path = workspace.folder / "written.i32"
    if not workspace.done("write"):
        shape = (held_out + own + more, length)
        openings = openings_of(spec, workspace.artefact, given)
        try:
            result = write(openings, shape)
        except UnsupportedError as error:
            note = f"calibrated and compared on the built-in text, on different documents: {error}"
            return Texts(few, others, (note,))
        write_durably(path, result.astype(np.int32).tobytes())
        workspace.finish("write", {})
    tokens = np.fromfile(path, np.int32).reshape(-1, length).astype(np.int64)
    learned = tokens[held_out : held_out + own] if calibrates else tokens
    further = tokens[held_out + own :]
    chosen = spread(len(given), min(wanted - own, len(given)))
    if given.shape[1] == length:
        learned = np.concatenate([learned, given[chosen]])
        rest = np.delete(given, chosen, axis=0)
        further = np.concatenate([further, rest[spread(len(rest), min(more, len(rest)))]])
    return Texts(learned, tokens[:held_out], more=further if more else None)
