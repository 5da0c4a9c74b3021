"""Convert families that edgetok does not describe: optimum exports them, products are quantised.

The graph is the exporter's, so only onnxruntime runs it, and the whole model is in memory while it
is exported. Weights are rounded to nearest, because there are no blocks to calibrate in order.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgetok.converter.calibrate.calibration_text import text_windows
from edgetok.converter.calibrate.windows import spread
from edgetok.converter.card.report import Agreement, Report
from edgetok.converter.durable import write_durably
from edgetok.converter.foreign.quantise_graph import quantise_graph
from edgetok.converter.identity import shown, title_of
from edgetok.converter.options import ConvertOptions
from edgetok.converter.progress import Progress
from edgetok.converter.write.assets import copy_assets
from edgetok.converter.write.finish import finish_artefact
from edgetok.converter.write.workspace import open_workspace, require_space
from edgetok.errors import CheckpointError, MissingExtraError, OutputError, UnsupportedError
from edgetok.formats.checkpoint import Checkpoint
from edgetok.formats.foreign import foreign
from edgetok.formats.layout import DATA_FILE, GRAPH_FILE
from edgetok.machine import peak_memory_mb

_TASK = "text-generation-with-past"
_REFERENCE_TOKENS = 512


def convert_unknown_family(
    checkpoint: Checkpoint,
    out: Path,
    options: ConvertOptions,
    progress: Progress,
    source: str,
    why: str,
) -> Report:
    """Convert through optimum's ONNX exporter.

    Args:
        checkpoint: opened.
        out: the artefact's folder, resolved.
        options: options of the conversion; 3 bits have no operator in onnxruntime.
        progress: called for each step.
        source: as the user gave it.
        why: what `read_family` said.

    Raises:
        MissingExtraError: optimum's exporter is not installed, or not for this transformers.
        UnsupportedError: optimum cannot export it either, or 3 bits were asked for.
        OutputError: see `convert`.
    """
    started = time.monotonic()
    model_type = str(checkpoint.config.get("model_type"))
    if 3 in (options.bits, options.effective_head_bits):
        raise UnsupportedError(
            f"{why}. optimum can export it, but onnxruntime has no operator for 3 bits; "
            "use --bits 2, 4 or 8"
        )
    progress.say(
        f"{model_type} is not a family that edgetok describes: optimum exports it, and it runs in "
        "onnxruntime, slower than edgetok's own kernels"
    )
    _require_exporter(why)
    vocab_size = checkpoint.config.get("vocab_size")
    if type(vocab_size) is not int or vocab_size < 1:
        raise CheckpointError(f"config.json: vocab_size is {vocab_size!r}, expected a number")
    title = title_of(checkpoint, options) | {"exporter": "optimum"}
    with open_workspace(out, title, source=checkpoint.folder) as workspace:
        require_space(workspace.folder, 3 * checkpoint.nbytes, workspace.folder)
        progress.begin("Exporting with optimum", 3)
        notes = copy_assets(checkpoint.folder, workspace.artefact, vocab_size, checkpoint.config)
        plain = {key: v for key, v in checkpoint.config.items() if key != "auto_map"}
        write_durably(workspace.artefact / "config.json", json.dumps(plain, indent=1).encode())
        clean = _clean_copy(checkpoint, workspace.artefact, workspace.folder / "source")
        model = _export(clean, workspace.folder / "export", why)
        progress.advance()
        layers, kept, parameters, weight_bytes = quantise_graph(model, options, vocab_size)
        _save(model, workspace.artefact)
        progress.advance()
        agreement: Agreement | None = None
        reason: str | None = "not asked for"
        if options.reference_tokens != 0:
            agreement, reason = _compare(clean, workspace.artefact, options, vocab_size), None
        progress.advance()
        notes.append(f"{model_type} was exported by optimum and runs in onnxruntime only")
        if options.calibrates:
            notes.append(
                f"{options.method} needs a known family: weights are rounded to nearest, the same "
                "bits in all layers"
            )
        report = Report(
            source=shown(source),
            family=model_type,
            method="optimum",
            bits=options.bits,
            options=options.to_json(),
            layers=layers,
            not_quantised=kept,
            notes=tuple(notes),
            parameters=parameters,
            weight_bytes=weight_bytes,
            original_bytes=checkpoint.nbytes,
            bits_per_weight=8 * weight_bytes / parameters,
            agreement=agreement,
            agreement_reason=reason,
            time_s=time.monotonic() - started,
            peak_memory_mb=peak_memory_mb(),
        )
        finish_artefact(workspace, report, exporter="optimum")
    return report


def _require_exporter(why: str) -> None:
    try:
        with _quiet():
            import optimum.exporters.onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"{why}. To export it with optimum instead: pip install 'edgetok[optimum]'"
        ) from error
    try:
        with _quiet():
            from optimum.exporters.onnx import main_export  # noqa: F401
    except (ImportError, RuntimeError) as error:  # optimum imports its parts when they are used
        raise MissingExtraError(
            f"{why}. optimum's exporter does not run with the installed transformers "
            f"({str(error).partition(' (')[0]}); in an environment of its own: "
            "pip install 'edgetok[optimum]' 'transformers<5'"
        ) from error


def _clean_copy(checkpoint: Checkpoint, artefact: Path, folder: Path) -> Path:
    """A folder with nothing but checked config and safetensors, for libraries that take a folder.

    What is not there cannot be run: neither code that `auto_map` names nor a pickle.
    """
    folder.mkdir(exist_ok=True)
    shards = {info.path for info in checkpoint.infos.values()}
    index = checkpoint.folder / "model.safetensors.index.json"
    if index.exists():
        shards.add(index)
    links = {path.name: path.resolve() for path in shards}
    for name in ("config.json", "generation_config.json"):
        if (artefact / name).exists():
            links[name] = artefact / name
    try:
        for name, target in links.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(target)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder


def _export(source: Path, folder: Path, why: str) -> onnx.ModelProto:
    from optimum.exporters.onnx import main_export

    try:
        with _quiet():
            main_export(
                str(source),
                output=str(folder),
                task=_TASK,
                device="cpu",
                dtype="fp32",
                trust_remote_code=False,
                local_files_only=True,
                do_validation=False,
            )
            return onnx.load(folder / GRAPH_FILE)
    except Exception as error:  # torch, transformers and optimum raise whatever they like
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UnsupportedError(f"{why}; optimum cannot export it either: {reason}") from error


def _save(model: onnx.ModelProto, artefact: Path) -> None:
    data = artefact / DATA_FILE
    try:
        data.unlink(missing_ok=True)  # onnx would append to it
        onnx.save_model(
            model,
            artefact / GRAPH_FILE,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=DATA_FILE,
            size_threshold=1024,
        )
    except OSError as error:
        raise OutputError(f"{artefact}: cannot be written: {error.strerror}") from error


def _compare(source: Path, artefact: Path, options: ConvertOptions, vocab_size: int) -> Agreement:
    """Run the original in transformers and the artefact in onnxruntime on held-out windows."""
    import onnxruntime
    import torch
    from transformers import AutoModelForCausalLM

    with _quiet():
        original = AutoModelForCausalLM.from_pretrained(
            str(source), dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            local_files_only=True,
        ).eval()  # fmt: skip
    context = getattr(original.config, "max_position_embeddings", options.window_tokens)
    wanted = options.reference_tokens or _REFERENCE_TOKENS
    length = min(options.window_tokens, context, wanted + 1)
    _, windows = text_windows(options, artefact, length, vocab_size, None)
    most = max(1, wanted // (windows.shape[1] - 1))
    windows = windows[spread(len(windows), min(most, len(windows)))]
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(artefact / GRAPH_FILE), session_options)
    totals = np.zeros(4)
    for window in windows:
        with torch.no_grad():
            theirs = original(torch.from_numpy(window[None])).logits[0, :-1].numpy()
        with foreign(f"{GRAPH_FILE}: onnxruntime", UnsupportedError):
            ours = session.run(["logits"], _first_inputs(session, window))[0][0, :-1]
        totals += _sums(theirs.astype(np.float64), ours.astype(np.float64), window[1:])
    count = len(windows) * (windows.shape[1] - 1)
    kl, their_loss, our_loss, same = (float(total) / count for total in totals)
    return Agreement(
        tokens=count,
        kl=max(0.0, kl),
        perplexity=float(np.exp(our_loss)),
        reference_perplexity=float(np.exp(their_loss)),
        top1_agreement=same,
    )


def _first_inputs(session: Any, window: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Inputs for a whole window at once, with an empty cache."""
    feed: dict[str, Any] = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            feed[value.name] = window[None]
        elif value.name == "attention_mask":
            feed[value.name] = np.ones((1, len(window)), np.int64)
        elif value.name == "position_ids":
            feed[value.name] = np.arange(len(window))[None]
        else:
            shape = [size if isinstance(size, int) else 1 for size in value.shape]
            symbolic = [i for i, size in enumerate(value.shape) if not isinstance(size, int)]
            shape[symbolic[-1]] = 0
            feed[value.name] = np.zeros(shape, np.float32)
    return feed


def _sums(
    theirs: npt.NDArray[np.float64],
    ours: npt.NDArray[np.float64],
    targets: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Sums over tokens of KL, both losses, and agreement on the most likely token."""
    logs = []
    for logits in (theirs, ours):
        shifted = logits - logits.max(1, keepdims=True)
        logs.append(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
    at = np.arange(len(targets)), targets
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum()
    same = (theirs.argmax(1) == ours.argmax(1)).sum()
    return np.array([kl, -logs[0][at].sum(), -logs[1][at].sum(), same])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of tracing, which the user cannot fix."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
