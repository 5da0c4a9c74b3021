"""Conversion without calibration: each tensor by itself, in NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.converter.progress import Progress
from edgetok.converter.quantise.error import energy, relative, squared_errors
from edgetok.converter.quantise.round_to_nearest import nearest
from edgetok.converter.quantised import Quantised
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.write.data_file import DataFile, TensorFormat
from edgetok.converter.write.pack_codes import pack_quantised
from edgetok.converter.write.workspace import Workspace
from edgetok.formats.layout import EMBEDDINGS, TABLE, Layout
from edgetok.models.spec import DecoderSpec

# Modules between a token and the first layer: they are written together.
BEFORE_LAYERS = (*EMBEDDINGS, "per_layer_proj", "per_layer_norm", "altup_proj")

Parts = dict[str, npt.NDArray[np.generic]]
Rounder = Callable[..., Quantised]


def steps_of(spec: DecoderSpec, layout: Layout) -> dict[str, list[str]]:
    """Tensors' modules by the step that writes them: the embedding, each layer, the head."""
    steps: dict[str, list[str]] = {}
    for tensor in layout.tensors:
        module = tensor.rpartition(".")[0]
        if module.startswith("layers."):
            step = ".".join(module.split(".")[:2])
        else:
            step = "embed_tokens" if module in BEFORE_LAYERS else "head"
        modules = steps.setdefault(step, [])
        if module not in modules:
            modules.append(module)
    return steps


def convert_directly(
    weights: CanonicalWeights,
    formats: Mapping[str, TensorFormat],
    layout: Layout,
    workspace: Workspace,
    data: DataFile,
    progress: Progress,
    threads: int,
) -> None:
    """Round every tensor to nearest, or store it as it is; a journal line for each layer.

    Raises:
        OutputError: a write failed; what the journal promises is on the disk.
    """
    steps = steps_of(weights.family.spec, layout)
    progress.begin("Quantising", len(steps), sum(workspace.done(step) for step in steps))
    for step, modules in steps.items():
        if workspace.done(step):
            continue
        errors = write_modules(weights, modules, formats, layout, data, threads)
        data.sync()
        workspace.finish(step, {"layers": errors})
        progress.advance()


def write_modules(
    weights: CanonicalWeights,
    modules: Iterable[str],
    formats: Mapping[str, TensorFormat],
    layout: Layout,
    data: DataFile,
    threads: int,
    rounder: Rounder = nearest,
) -> list[dict[str, Any]]:
    """Write modules from the checkpoint; fields of a `LayerReport` for each matrix."""
    errors = []
    for module in modules:
        if module in formats:
            form = formats[module]
            error = _write_matrix(weights, module, form, data, threads, rounder)
            errors.append({"name": module, "bits": form.bits, "weight_error": error})
            if module + ".bias" in layout.tensors:
                data.write(module + ".bias", weights.tensor(module + ".bias"))
        else:
            data.write(module + ".weight", weights.tensor(module + ".weight"))
    return errors


def _write_matrix(
    weights: CanonicalWeights,
    module: str,
    form: TensorFormat,
    data: DataFile,
    threads: int,
    rounder: Rounder,
) -> float:
    """Write one matrix a few rows at a time; its relative error."""
    kept = weights.codes(module + ".weight")
    if kept is not None:
        for suffix, values in pack_quantised(kept).items():
            data.write(module + suffix, values)
        return 0.0
    pieces: list[Parts] = []
    error = norm = 0.0
    for piece in weights.pieces(module + ".weight"):
        if form.quantised:
            quantised = rounder(piece, form, threads=threads)
            pieces.append(pack_quantised(quantised))
            more_error, more_norm = squared_errors(piece, quantised, threads)
        else:
            stored = piece.astype(np.float16 if form.bits == 16 else np.float32)
            pieces.append({".weight": stored})
            more_error, more_norm = energy(stored.astype(np.float32) - piece), energy(piece)
        error, norm = error + more_error, norm + more_norm
    for suffix in list(pieces[0]):
        parts = [piece.pop(suffix) for piece in pieces]
        # All rows of a matrix share the table.
        data.write(module + suffix, parts[0] if suffix == TABLE else np.concatenate(parts))
    return relative(error, norm)
