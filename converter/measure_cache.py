"""The cache of a model that was just written: its constants, and what few bits cost on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgetok.converter.calibrate.calibration_text import calibration_text
from edgetok.converter.calibrate.windows import Tokens, split_windows, spread, token_windows
from edgetok.converter.card.report import CacheLoss
from edgetok.converter.options import ConvertOptions
from edgetok.converter.progress import Progress
from edgetok.converter.write.data_file import DATA_FILE, DataFile, Layout
from edgetok.converter.write.tokenizer_files import TOKENIZER_FILE
from edgetok.converter.write.workspace import Workspace
from edgetok.errors import EdgetokError
from edgetok.formats.layout import constant_shapes
from edgetok.formats.manifest import write_manifest
from edgetok.models.spec import DecoderSpec

_LEARNED = 4  # windows that constants are measured on
_COMPARED_TOKENS = 256


@dataclass(frozen=True, slots=True)
class CacheMeasurement:
    """Losses by falling bits, or the reason why there are none."""

    losses: tuple[CacheLoss, ...] = ()
    reason: str | None = None


def measure_cache(
    workspace: Workspace,
    spec: DecoderSpec,
    layout: Layout,
    options: ConvertOptions,
    progress: Progress,
) -> CacheMeasurement:
    """Run the finished model to measure its cache's constants, write them, and compare caches.

    Weights and graph are complete. A model that the CPU backend cannot run gets constants that
    change nothing.

    Args:
        workspace: holds the artefact.
        spec: the decoder.
        layout: of its data file.
        options: with the text.
        progress: told of the stage.

    Raises:
        OutputError: a write failed.
    """
    with DataFile(workspace.artefact / DATA_FILE, layout) as data:
        for name, shape in constant_shapes(spec).items():
            data.write(name, np.full(shape, float(not name.endswith(".centre")), np.float32))
    if not (workspace.artefact / TOKENIZER_FILE).exists():
        return CacheMeasurement(reason="there is no tokenizer to make text of")
    from edgetok.evaluation.cache_bits import cache_costs
    from edgetok.runtime.cpu.backend import CpuBackend
    from edgetok.runtime.cpu.measure_constants import measure_constants

    progress.begin("Measuring the KV cache", 2)
    try:
        learned, held_out = _windows(workspace, spec, options)
        write_manifest(workspace.artefact, exporter="edgetok")
        backend = CpuBackend(workspace.artefact, kv_bits=32)
        try:
            constants = measure_constants(backend, [row.astype(np.int32) for row in learned])
        finally:
            backend.close()
        with DataFile(workspace.artefact / DATA_FILE, layout) as data:
            for name, values in constants.items():
                data.write(name, values)
            data.sync()
        progress.advance()
        costs = cache_costs(workspace.artefact, [row.astype(np.int32) for row in held_out])
        progress.advance()
    except EdgetokError as error:
        return CacheMeasurement(reason=str(error))
    return CacheMeasurement(
        tuple(
            CacheLoss(
                kv_bits=cost.kv_bits,
                kl=cost.kl,
                top1_agreement=cost.top1_agreement,
                tokens=cost.tokens,
            )
            for cost in costs
        )
    )


def _windows(
    workspace: Workspace, spec: DecoderSpec, options: ConvertOptions
) -> tuple[Tokens, Tokens]:
    """Windows to measure constants on, and one to compare caches on."""
    length = min(options.window_tokens, spec.context_tokens)
    every = token_windows(
        calibration_text(options), workspace.artefact, length, spec.vocab_size, spec.bos_token
    )
    learned, held_out = split_windows(every)
    learned = learned[spread(len(learned), min(_LEARNED, len(learned)))]
    return learned, held_out[len(held_out) // 2 :][:1, :_COMPARED_TOKENS]
