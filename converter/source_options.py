"""A conversion's options where the source decides: integers that are kept, models of vectors."""

from __future__ import annotations

import dataclasses

from edgetok.converter.options import ConvertOptions
from edgetok.converter.originals import NOT_CALIBRATED
from edgetok.converter.read.gguf_checkpoint import GgufCheckpoint
from edgetok.converter.read.mxfp4_checkpoint import Mxfp4Checkpoint
from edgetok.converter.read.quantised_checkpoint import CodedCheckpoint
from edgetok.errors import UnsupportedError
from edgetok.formats.checkpoint import Checkpoint


def options_for_checkpoint(
    checkpoint: Checkpoint, options: ConvertOptions, fits: bool
) -> ConvertOptions:
    """Return the options for a checkpoint: integers are kept, what lies beside them is rounded.

    A GGUF file's integers are forgotten first where they are not to be kept.

    Args:
        checkpoint: the source.
        options: as they were given.
        fits: whether bits are chosen tensor by tensor, by --fit or --max-kl.

    Raises:
        UnsupportedError: the source is quantised, and bits are to be chosen.
    """
    if isinstance(checkpoint, GgufCheckpoint) and (fits or not options.keep_codes):
        checkpoint.forget_codes()
    if not (isinstance(checkpoint, CodedCheckpoint) and checkpoint.coded):
        return options
    if fits:
        raise UnsupportedError("--fit and --max-kl need a checkpoint that is not quantised yet")
    options = dataclasses.replace(options, method="rtn", without=(), refine=None)
    if isinstance(checkpoint, GgufCheckpoint):
        # Rounding what is quantised already to a few other bits would lose more than it saves.
        return dataclasses.replace(options, bits=8, head_bits=None)
    if isinstance(checkpoint, Mxfp4Checkpoint):
        # What is not packed, attention and the head, is sensitive and not calibrated.
        return dataclasses.replace(options, bits=max(options.bits, 8), head_bits=None)
    return options


def options_for_vectors(options: ConvertOptions, fits: bool) -> ConvertOptions:
    """Return the options for a model whose tokens see both sides: `auto` rounds to nearest.

    Args:
        options: as they were given.
        fits: whether bits are chosen tensor by tensor, by --fit or --max-kl.

    Raises:
        UnsupportedError: calibration was asked for.
    """
    if fits or options.refine or options.method not in ("auto", "rtn"):
        asked = "--refine" if options.refine else f"--method {options.method}"
        raise UnsupportedError(
            f"{'--fit and --max-kl' if fits else asked}: {NOT_CALIBRATED}, and this model's see "
            "both sides; give --bits and --method rtn"
        )
    return dataclasses.replace(options, method="rtn", without=())
