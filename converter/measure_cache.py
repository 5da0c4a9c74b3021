"""The cache of a model that was just written: its constants, its heads, and what few bits cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.converter.calibrate.calibration_text import text_windows
from edgetok.converter.calibrate.windows import Tokens, spread
from edgetok.converter.options import ConvertOptions
from edgetok.converter.progress import Compiling, Progress
from edgetok.converter.write.data_file import DATA_FILE, DataFile, Layout
from edgetok.converter.write.tokenizer_files import TOKENIZER_FILE
from edgetok.converter.write.workspace import Workspace
from edgetok.errors import EdgetokError, OutputError
from edgetok.formats.cache_losses import CacheLoss
from edgetok.formats.layout import constant_shapes
from edgetok.formats.manifest import write_manifest
from edgetok.models.spec import DecoderSpec
from edgetok.models.tensors import tensor_shapes

_STEP = "cache"
_LEARNED = 4  # windows that constants are measured on
_WINDOW_TOKENS = 512  # of each, whatever weights are calibrated on
_COMPARED_TOKENS = 256

Constants = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class CacheMeasurement:
    """Losses by falling bits and scores of the heads, or the reason why there are none.

    Attributes:
        losses: what caches of few bits cost.
        reason: why nothing was measured.
        heads: as `formats/head_scores.py` reads them; None if no head looks for anything.
    """

    losses: tuple[CacheLoss, ...] = ()
    reason: str | None = None
    heads: dict[str, Any] | None = None


def measure_cache(
    workspace: Workspace,
    spec: DecoderSpec,
    layout: Layout,
    options: ConvertOptions,
    progress: Progress,
    threads: int,
) -> CacheMeasurement:
    """Run the finished model to measure its cache's constants and heads, and compare caches.

    Weights and graph are complete. A model that the CPU backend cannot run gets constants that
    change nothing. What was measured is journalled: a resumed conversion does not measure again.

    Args:
        workspace: holds the artefact.
        spec: the decoder.
        layout: layout of its data file.
        options: with the text.
        progress: told of the stage.
        threads: how many compute; the result does not depend on it.

    Raises:
        OutputError: a write failed.
    """
    if not workspace.done(_STEP):
        done = _measure(workspace, spec, layout, options, progress, threads)
        losses = [asdict(loss) for loss in done.losses]
        workspace.finish(_STEP, {"losses": losses, "reason": done.reason, "heads": done.heads})
    result = workspace.result(_STEP)
    return CacheMeasurement(
        tuple(CacheLoss(**fields) for fields in result["losses"]),
        result["reason"],
        result.get("heads"),  # not in a journal of an earlier version
    )


def _measure(
    workspace: Workspace,
    spec: DecoderSpec,
    layout: Layout,
    options: ConvertOptions,
    progress: Progress,
    threads: int,
) -> CacheMeasurement:
    folder = workspace.artefact
    write_neutral(folder, spec, layout)
    if spec.both_sides:
        return CacheMeasurement(reason="the model computes vectors of texts, and keeps no cache")
    if not options.measure_cache:
        return CacheMeasurement(reason="not asked for")
    if not (folder / TOKENIZER_FILE).exists():
        return CacheMeasurement(reason="there is no tokenizer to make text of")
    from edgetok.evaluation.cache_bits import cache_costs
    from edgetok.runtime.cpu.measure_constants import constants_of
    from edgetok.runtime.cpu.measure_heads import recall_scores

    try:
        list_files(folder)
        threads = useful(folder, threads)
        compile_kernels_of(folder, progress)
        progress.begin("Measuring the KV cache", 3)
        parameters = sum(math.prod(shape) for shape in tensor_shapes(spec).values())
        divisor = options.cache_divisor(parameters)
        learned, held_out = _windows(folder, spec, options, divisor)
        constants = constants_of(folder, [row.astype(np.int32) for row in learned], threads=threads)
    except OutputError:
        raise
    except EdgetokError as error:
        return CacheMeasurement(reason=str(error))
    _write(folder, layout, constants)
    progress.advance()
    heads = None
    try:
        if len(learned) > 1:
            scores = recall_scores(
                folder, [row.astype(np.int32) for row in learned], threads=threads
            )
            if any(map(any, scores)):
                heads = {"tokens": int(learned.size), "recall": scores}
        progress.advance()
        costs = cache_costs(folder, [row.astype(np.int32) for row in held_out], threads=threads)
    except OutputError:
        raise
    except EdgetokError as error:
        return CacheMeasurement(reason=str(error))
    progress.advance()
    return CacheMeasurement(tuple(costs), heads=heads)


def compile_kernels_of(folder: Path, progress: Progress) -> None:
    """Compile the kernels of every backend that measures an artefact, as a stage of its own.

    It takes minutes where nothing ran before, in which "Measuring" would seem to hang.
    """
    from edgetok.evaluation.cache_bits import WIDTHS
    from edgetok.formats.artefact import open_artefact
    from edgetok.runtime.cpu.kernel_set import compile_kernels
    from edgetok.runtime.cpu.plan import Compute

    kinds: list[tuple[int, Compute]] = [(bits, "float32") for bits in (32, *WIDTHS)]
    with open_artefact(folder) as artefact:
        compile_kernels(artefact, [(32, "int8"), *kinds], 8, Compiling(progress))  # 8: a chat's


def _write(folder: Path, layout: Layout, constants: Constants) -> None:
    with DataFile(folder / DATA_FILE, layout) as data:
        for name, values in constants.items():
            data.write(name, values)
        data.sync()


def write_neutral(folder: Path, spec: DecoderSpec, layout: Layout) -> None:
    """Write constants that change nothing into the data file of an artefact."""
    neutral = {
        name: np.full(shape, float(not name.endswith(".centre")), np.float32)
        for name, shape in constant_shapes(spec).items()
    }
    _write(folder, layout, neutral)


def useful(folder: Path, threads: int) -> int:
    """Return how many of the threads an artefact is run with: of a small one, a single one."""
    from edgetok.formats.artefact import open_artefact
    from edgetok.runtime.cpu.requirements import useful_threads

    with open_artefact(folder) as artefact:
        return min(threads, useful_threads(artefact))


def list_files(folder: Path) -> None:
    """Write a manifest, without which no artefact is opened; `finish_artefact` replaces it."""
    try:
        write_manifest(folder, exporter="edgetok")
    except OSError as error:
        raise OutputError(f"{folder}: not written: {error.strerror}") from error


def _windows(
    folder: Path, spec: DecoderSpec, options: ConvertOptions, divisor: int
) -> tuple[Tokens, Tokens]:
    """Windows to measure constants on, and one to compare caches on; a part of the usual."""
    length = min(_WINDOW_TOKENS, spec.context_tokens)
    learned, held_out = text_windows(options, folder, length, spec.vocab_size, spec.bos_token)
    learned = learned[spread(len(learned), min(_LEARNED // divisor, len(learned)))]
    return learned, held_out[len(held_out) // 2 :][:1, : _COMPARED_TOKENS // divisor]
