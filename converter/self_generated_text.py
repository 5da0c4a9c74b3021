"""Self-generated calibration text, which is of the kind that the model is used for.

Each next token is drawn from the model's own distribution, p = softmax(logits). The CPU backend
computes it, with weights rounded to 8 bits: the distribution is next to the original's (0.005 nats
on SmolLM2), and a token takes a quarter of the memory and of the time that it takes in float32.

Source: arXiv 2305.17888 (LLM-QAT), section 2.1, data-free distillation.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgetok.converter.calibrate.windows import Tokens
from edgetok.converter.durable import write_durably
from edgetok.converter.measure_cache import (
    compile_kernels_of,
    list_files,
    useful,
    write_neutral,
)
from edgetok.converter.options import ConvertOptions
from edgetok.converter.progress import Compiling, Progress
from edgetok.converter.quantise.tensor_by_tensor import steps_of, write_modules
from edgetok.converter.read.canonical_weights import CanonicalWeights, choose_formats
from edgetok.converter.workers import side_by_side
from edgetok.converter.write.data_file import DATA_FILE, DataFile, plan
from edgetok.converter.write.onnx_graph import build
from edgetok.errors import CheckpointError
from edgetok.formats.layout import GRAPH_FILE

if TYPE_CHECKING:
    from edgetok.runtime.cpu.backend import CpuBackend

_SEED = 12
_TOGETHER = 32  # windows: a step reads all weights, for however many
_LEAST_ROWS = 8  # of a thread with windows of its own
_DRAFT = "draft"


def write(
    weights: CanonicalWeights,
    greatest: dict[str, float],
    openings: list[list[int]],
    shape: tuple[int, int],
    folder: Path,
    progress: Progress,
    threads: int = 1,
    *,
    measures_cache: bool = False,
) -> Tokens:
    """Draw windows of text from the model; the same again for the same arguments and machine.

    Args:
        weights: the original's.
        greatest: magnitude in each matrix, see `survey`.
        openings: first tokens of the windows, used in rotation; see `openings_of`.
        shape: windows and tokens of each.
        folder: for the weights of 8 bits, which are removed again.
        progress: called for each token.
        threads: how many compute; the result does not depend on it.
        measures_cache: whether the conversion will run the model with caches of all widths. Most of
            the kernels for that are compiled now: at the end, in no estimate, they would make the
            time left too short.

    Returns:
        [windows, T] int64.

    Raises:
        CheckpointError: the model gives logits that are not numbers.
        OutputError: a write failed.
        UnsupportedError: the CPU backend does not run this model.
    """
    draft = folder / _DRAFT
    try:
        _round(weights, greatest, draft, threads)
        if measures_cache:
            compile_kernels_of(draft, progress)
        return _draw(draft, weights, openings, shape, progress, threads)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _round(
    weights: CanonicalWeights, greatest: dict[str, float], draft: Path, threads: int
) -> None:
    """Write the model rounded to 8 bits as an artefact without a tokenizer."""
    spec = weights.family.spec
    options = ConvertOptions(bits=8, method="rtn", symmetric=True)
    formats, _ = choose_formats(weights, options, greatest)
    layout = plan(spec, formats, constants=True)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    with DataFile(draft / DATA_FILE, layout) as data:
        for modules in steps_of(spec, layout).values():
            write_modules(weights, modules, formats, layout, data, threads)
    write_neutral(draft, spec, layout)
    graph = build(spec, layout, formats).SerializeToString(deterministic=True)
    write_durably(draft / GRAPH_FILE, graph)
    list_files(draft)


def _draw(
    draft: Path,
    weights: CanonicalWeights,
    openings: list[list[int]],
    shape: tuple[int, int],
    progress: Progress,
    threads: int,
) -> Tokens:
    from edgetok.runtime.cpu.backend import CpuBackend

    count, length = shape
    threads = useful(draft, threads)
    # A thread with windows of its own waits for no other: on a busy machine threads that share each
    # step's work wait most of the time.
    lanes = min(threads, max(1, count // _LEAST_ROWS))
    parts = [range(i * count // lanes, (i + 1) * count // lanes) for i in range(lanes)]
    result = np.empty(shape, np.int32)
    each, told = threads // lanes, Compiling(progress)
    backends = [
        CpuBackend(draft, threads=each, block_tokens=_TOGETHER, progress=told) for _ in parts
    ]
    progress.begin("Generating calibration text", -(-len(parts[-1]) // _TOGETHER) * (length - 1))

    def lane(backend: CpuBackend, windows: range) -> None:
        advance = progress.advance if windows == parts[-1] else None  # the longest speaks for all
        given = [openings[i % len(openings)][:length] for i in windows]
        _draw_lane(backend, given, windows, result, str(weights.checkpoint.folder), advance)

    try:
        side_by_side(lanes, [partial(lane, *both) for both in zip(backends, parts, strict=True)])
    finally:
        for backend in backends:
            backend.close()
    return result.astype(np.int64)


def _draw_lane(
    backend: CpuBackend,
    openings: list[list[int]],
    windows: range,
    result: npt.NDArray[np.int32],
    name: str,
    advance: Callable[[], None] | None,
) -> None:
    """Draw some of the windows into their rows of `result`; `name` is for errors."""
    from edgetok.runtime.backend import Part
    from edgetok.sampling.options import SamplingOptions

    length = result.shape[1]
    sampler = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0)
    chooser = backend.chooser(sampler)
    for first in range(0, len(windows), _TOGETHER):
        rows = windows[first : first + _TOGETHER]
        given = openings[first : first + _TOGETHER]
        tokens = result[rows.start : rows.stop]
        tokens[:, 0] = [opening[0] for opening in given]
        caches = [backend.new_cache(length) for _ in given]
        for at in range(1, length):
            wanted = [int(at >= len(opening)) for opening in given]
            columns = zip(caches, tokens[:, at - 1 : at], wanted, strict=True)
            logits = backend.step([Part(*column) for column in columns])
            for i, row in enumerate(rows):
                if not wanted[i]:
                    tokens[i, at] = given[i][at]
                    continue
                tokens[i, at] = chooser.choose(logits[i][0], _SEED + row, at)
                if tokens[i, at] < 0:
                    raise CheckpointError(
                        f"{name}: the model's logits are NaN or Inf; its weights are damaged, "
                        "take another copy"
                    )
            if advance is not None:
                advance()
