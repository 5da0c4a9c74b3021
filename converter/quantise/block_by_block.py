"""Conversion with calibration: each block gets the outputs of the quantised ones before it.

Activations between blocks are stored beside the journal, so that an interrupted run loses one
block at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgetok.converter.calibrate.calibration_text import Texts
from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.calibrate.windows import Tokens
from edgetok.converter.durable import write_durably
from edgetok.converter.options import LEARNED_WHOLE, learns_whole
from edgetok.converter.progress import Progress
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise import tensor_by_tensor as direct
from edgetok.converter.quantise.experts import LEAST_TOKENS
from edgetok.converter.quantise.one_block import Job, quantise_block
from edgetok.converter.quantise.recipe import (
    Rounder,
    calibrates_head,
    rounder_of_ends,
    rounder_of_head,
)
from edgetok.converter.quantise.train_model import tune
from edgetok.converter.write.workspace import Workspace
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import CheckpointError


def convert_calibrated(
    job: Job, texts: Texts, workspace: Workspace, progress: Progress
) -> list[str]:
    """Quantise with GPTQ, AWQ or the recipe; a journal line for each block.

    Args:
        job: the conversion.
        texts: what to calibrate on.
        workspace: its place.
        progress: called for each block.

    Returns:
        Notes for the report.

    Raises:
        CheckpointError: activations overflow.
        OutputError: a write failed; what the journal promises is on the disk.
    """
    steps = direct.steps_of(job.weights.family.spec, job.layout)
    done = sum(workspace.done(step) for step in steps)
    unit = max(1, job.refined_by_block)  # batches, which take nearly all of a block's time
    progress.begin(f"Quantising with {job.options.method}", unit * len(steps), unit * done)
    original = Original(job.weights, short=True, threads=job.threads)
    windows = texts.calibration(job.options)
    hidden: Tensor | None = None
    notes: list[str] = []
    for step, modules in steps.items():
        if not workspace.done(step):
            if step.startswith("layers."):
                index = int(step.removeprefix("layers."))
                if hidden is None:
                    hidden = _hidden_before(original, windows, index, workspace.folder)
                with original.block(index) as block:
                    result, hidden = quantise_block(block, hidden, job, progress)
                _keep_hidden(hidden, index, workspace.folder)
                if original.calls.shares(index):
                    write_durably(
                        _shared_path(workspace.folder, index), original.calls.saved(index)
                    )
            else:
                rounder = rounder_of_ends(job.options)
                if "lm_head" in modules and calibrates_head(job.options, job.formats["lm_head"]):
                    if hidden is None:
                        last = job.weights.family.spec.num_layers
                        hidden = _hidden_before(original, windows, last, workspace.folder)
                    rounder = _rounder_of_head(original, hidden, job)
                layers = direct.write_modules(
                    job.weights,
                    modules,
                    job.formats,
                    job.layout,
                    job.data,
                    job.threads,
                    rounder,
                )
                result = {"layers": layers}
            job.data.sync()
            workspace.finish(step, result)
            if not (job.refined_by_block and step.startswith("layers.")):
                progress.advance(unit)
        notes += workspace.result(step).get("notes", [])
    notes += _few_tokens({step: workspace.result(step).get("few") for step in steps})
    refined = [workspace.result(step).get("refined") for step in steps]
    if any(refined):
        before, after = np.mean([errors for errors in refined if errors], axis=0)
        notes.append(
            f"refine: a block's output errs by {after:.2%} on held-out text, {before:.2%} before"
        )
    if "tune" in job.options.steps:
        notes += _tune(job, texts, workspace, progress, steps)
    return [
        f"{note} ({count} layers)" if count > 1 else note for note, count in Counter(notes).items()
    ]


def _rounder_of_head(original: Original, hidden: Tensor, job: Job) -> Rounder:
    """Return the quantiser of the output head for the last block's outputs [B, T, hidden_size]."""
    norm = torch.from_numpy(original.weights.tensor("final_norm.weight"))
    hessian = gptq.Hessian(hidden.shape[2], job.threads)
    for window in hidden:
        hessian.add(original.final_norm(window[None], norm)[0].detach())
    tied = original.weights.family.spec.tied
    return rounder_of_head(hessian.mean(), job.options, tied=tied)


def _few_tokens(few: Mapping[str, list[int] | None]) -> list[str]:
    """Tell which experts were not calibrated."""
    found = [f"{step}: {', '.join(map(str, experts))}" for step, experts in few.items() if experts]
    if not found:
        return []
    return [
        f"experts that fewer than {LEAST_TOKENS} tokens of the calibration text reach are rounded "
        f"to nearest: {'; '.join(found)}"
    ]


def _tune(
    job: Job, texts: Texts, workspace: Workspace, progress: Progress, steps: Iterable[str]
) -> list[str]:
    """Learn scales and norms, and write them over those in the data file; what to tell of it.

    From all of the text: more of it costs no more steps.
    They are kept beside the journal first: were they learned from what a killed run had written
    over half of the file, they would be others.
    """
    if not learns_whole(job.weights.parameters):
        return [
            f"tune: left out, it takes models of up to {LEARNED_WHOLE / 1e6:.0f} million weights"
        ]
    path = workspace.folder / "tuned.bin"
    if not workspace.done("tune"):
        spec = job.weights.family.spec
        written = WrittenWeights(workspace.artefact, spec, job.formats, job.layout)
        refine = job.options.refinement(job.weights.parameters)
        few = {step: workspace.result(step).get("few", ()) for step in steps}
        tuned = tune(
            job.weights,
            written,
            texts.tuned(),
            progress,
            few=few,
            refine=refine,
            threads=job.threads,
        )
        write_durably(path, b"".join(values.tobytes() for values in tuned.tensors.values()))
        note = (
            f"tune: KL on held-out calibration text {tuned.kl_before:.4f} -> {tuned.kl_after:.4f}"
        )
        if not tuned.tensors:
            note += ", left as it was"
        workspace.finish("tune", {"tensors": list(tuned.tensors), "note": note})
    result = workspace.result("tune")
    if not workspace.done("tuned"):
        kept, offset = path.read_bytes(), 0
        for name in result["tensors"]:
            slot = job.layout.tensors[name]
            values = np.frombuffer(kept[offset : offset + slot.nbytes], np.dtype(slot.dtype))
            job.data.write(name, values.reshape(slot.shape))
            offset += slot.nbytes
        job.data.sync()
        workspace.finish("tuned", {})
    return [result["note"]]


def _hidden_before(original: Original, windows: Tokens, index: int, folder: Path) -> Tensor:
    """Return the input of block `index`: embedded tokens, or stored outputs of the one before."""
    hidden = original.embed(windows)
    if index == 0:
        return hidden
    for earlier in range(index):
        if original.calls.shares(earlier):
            original.calls.restore(earlier, _shared_path(folder, earlier).read_bytes())
    path = _hidden_path(folder, index - 1)
    kept = np.fromfile(path, np.float32)
    if kept.size != hidden.numel():
        raise CheckpointError(
            f"{path}: {kept.size:,} activations, expected {hidden.numel():,}; remove "
            f"{path.parent} and convert again"
        )
    return torch.from_numpy(kept).reshape(hidden.shape).clone()


def _keep_hidden(hidden: Tensor, index: int, folder: Path) -> None:
    if not bool(torch.isfinite(hidden).all()):
        raise CheckpointError(
            f"layers.{index}: its output is NaN or Inf on the calibration text; the checkpoint is "
            "damaged or its activations overflow float32"
        )
    write_durably(_hidden_path(folder, index), hidden.contiguous().numpy().data)


def _hidden_path(folder: Path, index: int) -> Path:
    # Two by turns: the one before is whole until the journal names the next.
    return folder / f"hidden-{index % 2}.f32"


def _shared_path(folder: Path, index: int) -> Path:
    """Return the file of a block's keys and values that later blocks look at."""
    return folder / f"shared-{index}.pt"
