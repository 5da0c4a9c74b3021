"""The converter: make an artefact of a checkpoint."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from edgetok.converter import self_generated_text
from edgetok.converter.allocate.target import Target
from edgetok.converter.calibrate.calibration_text import Texts, texts_of
from edgetok.converter.calibrate.windows import Tokens, spread
from edgetok.converter.card.report import Agreement, LayerReport, Report
from edgetok.converter.durable import write_durably
from edgetok.converter.expected_time import expected_seconds
from edgetok.converter.identity import require_torch, shown, title_of
from edgetok.converter.measure_cache import measure_cache
from edgetok.converter.options import ConvertOptions
from edgetok.converter.originals import (
    NOT_CALIBRATED,
    reference_tokens,
    require_original,
)
from edgetok.converter.progress import Progress, Silent
from edgetok.converter.quantise import tensor_by_tensor as direct
from edgetok.converter.read.canonical_weights import CanonicalWeights, choose_formats, survey
from edgetok.converter.read.gguf_checkpoint import GgufCheckpoint
from edgetok.converter.read.quantised_checkpoint import CodedCheckpoint
from edgetok.converter.read.sentence_modules import read_described
from edgetok.converter.read.source import open_source, resolve_source
from edgetok.converter.source_options import options_for_checkpoint, options_for_vectors
from edgetok.converter.workers import arrange_memory, torch_in_one_thread
from edgetok.converter.write.assets import copy_assets
from edgetok.converter.write.data_file import DATA_FILE, DataFile, Layout, TensorFormat, plan
from edgetok.converter.write.finish import finish_artefact
from edgetok.converter.write.genai_config import GENAI_FILE, genai_config
from edgetok.converter.write.onnx_graph import build
from edgetok.converter.write.workspace import (
    Workspace,
    check_output,
    open_workspace,
    require_space,
)
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import UnknownFamilyError, UnsupportedError
from edgetok.formats.checkpoint import Checkpoint
from edgetok.formats.layout import GRAPH_FILE, linear_shapes
from edgetok.machine import cores, peak_memory_mb
from edgetok.models.spec import DecoderSpec

__all__ = ["ConvertOptions", "Progress", "Report", "Target", "convert", "is_quantised"]

_SPARE_BYTES = 64 << 20  # tokenizer, graph, report
_SECOND_HAND = "the original here is quantised itself: what that lost is not in these figures"


def convert(
    source: str,
    out: str | Path,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
    target: Target | None = None,
    *,
    threads: int | None = None,
) -> Report:
    """Convert a checkpoint into an artefact folder.

    Everything is made beside `out` and takes its place at the very end. A conversion that was
    interrupted, by whatever, goes on when it is called again with the same source and options, and
    gives the same bytes.

    Without a target, `options` whose bits are spread (`ConvertOptions.spreads`) have one: the bytes
    that the same bits in all layers take.

    Args:
        source: a Hugging Face model folder, a GGUF file, or a hub id `owner/name`.
        out: the artefact's folder; an artefact that is there already is replaced.
        options: see `ConvertOptions`.
        progress: receives the stages.
        target: a size or a loss, for which bits and group sizes are chosen tensor by tensor; those
            of `options` then count for nothing.
        threads: how many compute; None takes one for each core. No result depends on it.

    Returns:
        The quality card, which is also `report.json`.

    Raises:
        OptionError: no choice of bits meets the target.
        CheckpointError: the source is missing something, damaged or hostile.
        UnsupportedError: the model computes something that edgetok does not know.
        MissingExtraError: an optional dependency is needed and not installed.
        OutputError: the disk is full, the folder is locked or holds something else.
    """
    started = time.monotonic()
    options = options or ConvertOptions()
    progress = progress or Silent()
    threads = threads or cores()
    arrange_memory()
    out = Path(out).expanduser().resolve()
    check_output(out, None)
    folder = resolve_source(source, options.revision, progress).resolve()
    check_output(out, folder)
    checkpoint = open_source(folder)
    options = options_for_checkpoint(checkpoint, options, target is not None)
    try:
        family = read_described(checkpoint)
    except UnknownFamilyError as error:
        if target is not None:
            raise UnsupportedError(f"--fit and --max-kl need a known family: {error}") from error
        from edgetok.converter.foreign.optimum_export import convert_unknown_family

        return convert_unknown_family(checkpoint, out, options, progress, source, str(error))
    weights = CanonicalWeights(checkpoint, family)
    if family.spec.both_sides:
        options = options_for_vectors(options, target is not None)
    if options.calibrates:
        require_torch(f"--method {options.method}")
    title = title_of(checkpoint, options)
    spreads = target is None and options.spreads
    if target is not None:
        require_torch("--fit or --max-kl")
        from edgetok.converter.allocate.search import check_room

        check_room(family.spec, target, symmetric=options.symmetric)
        options = target.options(options)
        title = {**title_of(checkpoint, options, measured=True), "target": target.to_json()}
    elif spreads:
        title["target"] = "spread"
    tokens, reason = reference_tokens(weights, options)
    calibrates = options.calibrates or target is not None
    with (
        open_workspace(out, title, source=folder) as workspace,
        torch_in_one_thread(calibrates or tokens > 0),
    ):
        assets, notes = folder, [*checkpoint.notes]
        if isinstance(checkpoint, GgufCheckpoint):
            assets = checkpoint.write_assets(workspace.folder / "source")
        if isinstance(checkpoint, CodedCheckpoint) and (checkpoint.coded or notes):
            notes = [*notes, _SECOND_HAND]
        notes = notes + copy_assets(
            assets, workspace.artefact, family.spec.vocab_size, checkpoint.config
        )
        formats, reasons = _formats(weights, options, workspace, progress, threads)
        if target is None:  # before minutes of work; a search decides the size later
            needed = plan(family.spec, formats, constants=True).file_bytes + _SPARE_BYTES
            require_space(workspace.folder, needed, workspace.folder)
        if spreads:
            target = Target.spreading(family.spec, formats, options.bits)
        if calibrates:
            require_original(weights)
        texts, generated = None, False

        def plan_stages(generated: int) -> None:
            if target is None or target.nbytes:  # rounds cannot be foreseen
                progress.plan(
                    expected_seconds(
                        family.spec,
                        weights.parameters,
                        options,
                        generated=generated,
                        compared=tokens,
                        measured=target is not None,
                    )
                )

        if calibrates or tokens:

            def write(openings: list[list[int]], shape: tuple[int, int]) -> Tokens:
                nonlocal generated
                generated = True
                plan_stages(shape[0] * shape[1])
                return self_generated_text.write(
                    weights,
                    workspace.result("survey"),
                    openings,
                    shape,
                    workspace.folder,
                    progress,
                    threads,
                    measures_cache=options.measure_cache,
                )

            texts = texts_of(
                weights,
                options,
                workspace,
                progress,
                calibrates=calibrates,
                compared=tokens,
                write=write,
            )
            notes += texts.notes
        if not generated:
            plan_stages(0)
        fitting = None
        if target is not None and texts is not None:
            from edgetok.converter.allocate.search import Fitting

            fitting = Fitting(
                weights,
                target,
                options,
                texts,
                workspace,
                progress,
                threads,
                formats,
                compared=tokens > 0,
            )
            reasons = {name: why for name, why in reasons.items() if name in fitting.kept}
        while True:
            if fitting is not None:
                formats = fitting.allocation.formats
            layout = plan(family.spec, formats, constants=True)
            require_space(workspace.folder, layout.file_bytes + _SPARE_BYTES, workspace.folder)
            more_notes = _write_weights(
                weights, formats, layout, options, texts, workspace, progress, threads
            )
            agreement = None
            if texts is not None and tokens:
                written = WrittenWeights(workspace.artefact, family.spec, formats, layout)
                agreement = _compare(weights, written, texts.held_out, tokens, progress, threads)
            if fitting is None or fitting.accepts(agreement):
                break
        notes += more_notes
        graph = build(family.spec, layout, formats).SerializeToString(deterministic=True)
        write_durably(workspace.artefact / GRAPH_FILE, graph)
        if family.spec.both_sides:
            notes.append(f"{GENAI_FILE} left out: the model writes no text")
            if options.quantises and not isinstance(checkpoint, CodedCheckpoint):
                notes.append(f"rounded to nearest, the same bits in all layers: {NOT_CALIBRATED}")
        elif family.spec.keeps_states or not family.spec.uniform:
            notes.append(
                f"{GENAI_FILE} left out: it names caches of attention layers alone, of one size"
            )
        else:
            settings = json.dumps(genai_config(family.spec), indent=1) + "\n"
            write_durably(workspace.artefact / GENAI_FILE, settings.encode())
        cache = measure_cache(workspace, family.spec, layout, options, progress, threads)
        report = Report(
            source=shown(source),
            family=family.spec.family,
            method=_method(checkpoint, options),
            bits=_usual_bits(formats),
            options=options.to_json(),
            layers=_layers(workspace, layout, formats, family.spec),
            not_quantised=reasons,
            notes=tuple(notes),
            parameters=weights.parameters,
            weight_bytes=layout.weight_bytes,
            original_bytes=checkpoint.nbytes,
            bits_per_weight=8 * layout.weight_bytes / weights.parameters,
            agreement=agreement,
            agreement_reason=reason,
            time_s=time.monotonic() - started,
            peak_memory_mb=peak_memory_mb(),
            resumed=workspace.resumed,
            fit=None if fitting is None else fitting.report(agreement),
            cache=cache.losses,
            cache_reason=cache.reason,
            heads=cache.heads,
            vectors=family.spec.both_sides,
        )
        finish_artefact(workspace, report, exporter="edgetok")
    return report


def is_quantised(source: Path) -> bool:
    """Return whether a folder or GGUF file holds integers, which a conversion keeps.

    Raises:
        CheckpointError: it is damaged or hostile.
        UnsupportedError: it is quantised in a way that edgetok does not know.
    """
    checkpoint = open_source(resolve_source(str(source)))
    return isinstance(checkpoint, CodedCheckpoint) and bool(checkpoint.coded)


def _formats(
    weights: CanonicalWeights,
    options: ConvertOptions,
    workspace: Workspace,
    progress: Progress,
    threads: int,
) -> tuple[dict[str, TensorFormat], dict[str, str]]:
    if not workspace.done("survey"):
        workspace.finish("survey", survey(weights, progress, threads))
    return choose_formats(weights, options, workspace.result("survey"))


def _write_weights(
    weights: CanonicalWeights,
    formats: Mapping[str, TensorFormat],
    layout: Layout,
    options: ConvertOptions,
    texts: Texts | None,
    workspace: Workspace,
    progress: Progress,
    threads: int,
) -> list[str]:
    """Write `model.onnx.data`; notes for the report."""
    if not any(workspace.done(step) for step in direct.steps_of(weights.family.spec, layout)):
        # What another choice of formats left would show between tensors.
        (workspace.artefact / DATA_FILE).unlink(missing_ok=True)
    with DataFile(workspace.artefact / DATA_FILE, layout) as data:
        if texts is None or not options.calibrates:
            direct.convert_directly(weights, formats, layout, workspace, data, progress, threads)
            return []
        from edgetok.converter.quantise.block_by_block import convert_calibrated
        from edgetok.converter.quantise.one_block import Job

        hidden_bytes = 4 * texts.calibration(options).size * weights.family.spec.hidden_size
        require_space(workspace.folder, layout.file_bytes + 3 * hidden_bytes, workspace.folder)
        job = Job(weights, formats, layout, options, data, threads)
        return convert_calibrated(job, texts, workspace, progress)


def _compare(
    weights: CanonicalWeights,
    written: WrittenWeights,
    held_out: Tokens,
    tokens: int,
    progress: Progress,
    threads: int,
) -> Agreement:
    from edgetok.converter.calibrate.compare import compare

    held_out = held_out[:, : tokens + 1]
    count = max(1, tokens // (held_out.shape[1] - 1))
    held_out = held_out[spread(len(held_out), min(count, len(held_out)))]
    return compare(weights, written, held_out, progress, threads)


def _method(checkpoint: Checkpoint, options: ConvertOptions) -> str:
    if isinstance(checkpoint, CodedCheckpoint) and checkpoint.coded:
        return f"{checkpoint.method} as it was"
    return options.method if options.quantises else "none"


def _usual_bits(formats: Mapping[str, TensorFormat]) -> int:
    """Bits of most linear layers."""
    layers = [form.bits for name, form in formats.items() if name.startswith("layers.")]
    return Counter(layers).most_common(1)[0][0]


def _layers(
    workspace: Workspace,
    layout: Layout,
    formats: Mapping[str, TensorFormat],
    spec: DecoderSpec,
) -> tuple[LayerReport, ...]:
    nbytes: dict[str, int] = {}
    for slot in layout.tensors.values():
        name = slot.name.rpartition(".")[0]
        nbytes[name] = nbytes.get(name, 0) + slot.nbytes
    result = {
        fields["name"]: fields
        for step in direct.steps_of(spec, layout)
        for fields in workspace.result(step)["layers"]
    }
    return tuple(
        LayerReport(
            **result[name],
            group_size=formats[name].group_size if formats[name].quantised else None,
            nbytes=nbytes[name],
        )
        for name in linear_shapes(spec)
    )
