"""Checks that the original can be run here, to calibrate on it and to compare with it."""

from __future__ import annotations

from pathlib import Path

from edgetok.converter.identity import has_torch
from edgetok.converter.options import REFERENCE_TOKENS, ConvertOptions
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.read.sentence_modules import read_described
from edgetok.converter.read.source import open_source, resolve_source
from edgetok.errors import UnknownFamilyError, UnsupportedError
from edgetok.models.operations import expert_counts, operations
from edgetok.models.spec import DecoderSpec

NOT_CALIBRATED = "layers are calibrated with tokens that see what is before them"
_QUICK_TO_COMPARE = 100_000_000  # weights; beyond, comparing takes longer than rounding


def why_not_calibrated(source: Path) -> str | None:
    """Return why the installed `transformers` cannot calibrate a checkpoint, if so.

    Raises:
        CheckpointError: it is damaged or hostile.
        UnsupportedError: it is quantised in a way that edgetok does not know.
    """
    checkpoint = open_source(resolve_source(str(source)))
    try:
        family = read_described(checkpoint)
    except UnknownFamilyError:
        return None  # optimum's exporter says what it needs
    if family.spec.both_sides:
        return NOT_CALIBRATED
    from edgetok.converter.calibrate.transformers_model import why_not_run

    return why_not_run(CanonicalWeights(checkpoint, family))


def require_original(weights: CanonicalWeights) -> None:
    """Refuse to calibrate a checkpoint that the installed `transformers` cannot run.

    Raises:
        UnsupportedError: it has other names for the weights, so that some would have no values.
    """
    if not has_torch():
        return
    from edgetok.converter.calibrate.transformers_model import why_not_run

    reason = why_not_run(weights)
    if reason is not None:
        raise UnsupportedError(
            f"{weights.checkpoint.folder}: {reason}; use --method rtn, or another release"
        )


def reference_tokens(weights: CanonicalWeights, options: ConvertOptions) -> tuple[int, str | None]:
    """Return the number of tokens to compare with the original, and the reason if it is 0."""
    if weights.family.spec.both_sides:
        return 0, "the model computes vectors of texts, and no logits to compare"
    if options.reference_tokens == 0:
        return 0, "not asked for"
    if not has_torch():
        return 0, "needs torch and transformers: pip install 'edgetok[convert]'"
    if _differs_by_release(weights.family.spec) and not options.calibrates:
        from edgetok.converter.calibrate.transformers_model import why_not_run

        reason = why_not_run(weights)
        if reason is not None:
            return 0, reason
    if options.reference_tokens:
        return options.reference_tokens, None
    tokens = default_reference_tokens(weights.parameters, options)
    if not tokens:
        return 0, "takes longer than rounding a model of this size; `edgetok eval` does it"
    return tokens, None


def default_reference_tokens(parameters: int, options: ConvertOptions) -> int:
    """`REFERENCE_TOKENS`; of a large model half, or 0 where rounding is quicker than comparing."""
    if parameters <= _QUICK_TO_COMPARE:
        return REFERENCE_TOKENS
    return REFERENCE_TOKENS // 2 if options.calibrates else 0


def of_other_layers(spec: DecoderSpec) -> bool:
    """Return whether layers get more than the stream: others' keys, or an input of their own."""
    shares = any(layer.attention and layer.attention.shares >= 0 for layer in spec.layers)
    return shares or spec.per_layer_size > 0


def _differs_by_release(spec: DecoderSpec) -> bool:
    """Return whether some releases of `transformers` lack the decoder or rename its parts."""
    return bool(expert_counts(operations(spec))) or of_other_layers(spec)
