"""Conversion with calibration: each block gets the outputs of the quantised ones before it.

Within a block the order is q, k and v, then o, then gate and up, then down. Activations between
blocks are stored beside the journal, so that an interrupted run loses one block at most.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from edgetok.converter.calibrate.block import Block
from edgetok.converter.calibrate.calibration_text import Texts
from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.calibrate.windows import Tokens
from edgetok.converter.durable import write_durably
from edgetok.converter.options import LEARNED_WHOLE, ConvertOptions, learns_whole
from edgetok.converter.progress import Progress
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise import tensor_by_tensor as direct
from edgetok.converter.quantise.awq import GroupProducts, Sample, quantise_clipped
from edgetok.converter.quantise.awq_fold import fold_block
from edgetok.converter.quantise.error import relative
from edgetok.converter.quantise.experts import (
    LEAST_TOKENS,
    Routed,
    output_error,
    round_experts,
)
from edgetok.converter.quantise.recipe import (
    Rounder,
    calibrates_head,
    round_layers,
    rounder_of_ends,
    rounder_of_head,
)
from edgetok.converter.quantise.train_block import refine_block
from edgetok.converter.quantise.train_model import tune
from edgetok.converter.quantised import Quantised
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.write.data_file import DataFile, TensorFormat
from edgetok.converter.write.pack_codes import pack_quantised
from edgetok.converter.write.workspace import Workspace
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import CheckpointError
from edgetok.formats.layout import Layout
from edgetok.models.operations import expert_counts

_ERROR_TOKENS = 512
OutputError = Callable[[str, Tensor, Tensor], float | None]


@dataclass(frozen=True, slots=True)
class Job:
    """The state that all steps of a calibrated conversion share.

    Attributes:
        weights: weights of the checkpoint.
        formats: formats of each matrix.
        layout: layout of the data file.
        options: options of the conversion.
        data: the data file.
        threads: number of threads.
    """

    weights: CanonicalWeights
    formats: Mapping[str, TensorFormat]
    layout: Layout
    options: ConvertOptions
    data: DataFile
    threads: int

    @property
    def refined_by_block(self) -> int:
        """Return the number of batches to train each block's codes on; 0 to train as a whole."""
        parameters = self.weights.parameters
        return 0 if learns_whole(parameters) else self.options.refinement(parameters)


class Observer(Protocol):
    """Gathers a statistic of a layer's inputs."""

    def add(self, x: Tensor) -> None:
        """Add inputs [tokens, K]."""


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
    original = Original(job.weights, short=True)
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
                    result = quantise_block(block, hidden, job, progress)
                    hidden = block(hidden)
                _keep_hidden(hidden, index, workspace.folder)
                if original.calls.shares(index):
                    write_durably(
                        _shared_path(workspace.folder, index), original.calls.saved(index)
                    )
            else:
                rounder = rounder_of_ends(job.options)
                if "lm_head" in modules and calibrates_head(job.options):
                    if hidden is None:
                        last = job.weights.family.spec.num_layers
                        hidden = _hidden_before(original, windows, last, workspace.folder)
                    rounder = _rounder_of_head(original, hidden, job.options)
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
        notes += _tune(job, texts, workspace, progress)
    return [
        f"{note} ({count} layers)" if count > 1 else note for note, count in Counter(notes).items()
    ]


def _rounder_of_head(original: Original, hidden: Tensor, options: ConvertOptions) -> Rounder:
    """Return the quantiser of the output head for the last block's outputs [B, T, hidden_size]."""
    norm = torch.from_numpy(original.weights.tensor("final_norm.weight"))
    hessian = gptq.Hessian(hidden.shape[2])
    for window in hidden:
        hessian.add(original.final_norm(window[None], norm)[0].detach())
    tied = original.weights.family.spec.tied
    return rounder_of_head(hessian.mean(), options, tied=tied)


def _few_tokens(few: Mapping[str, list[int] | None]) -> list[str]:
    """Tell which experts were not calibrated."""
    found = [f"{step}: {', '.join(map(str, experts))}" for step, experts in few.items() if experts]
    if not found:
        return []
    return [
        f"experts that fewer than {LEAST_TOKENS} tokens of the calibration text reach are rounded "
        f"to nearest: {'; '.join(found)}"
    ]


def _tune(job: Job, texts: Texts, workspace: Workspace, progress: Progress) -> list[str]:
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
        tuned = tune(job.weights, written, texts.tuned(), progress, refine=refine)
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


def quantise_block(block: Block, hidden: Tensor, job: Job, progress: Progress) -> dict[str, Any]:
    """Quantise and write one block; afterwards it computes with the weights that were written.

    Args:
        block: materialised; its weights are replaced.
        hidden: [B, T, hidden_size] its input.
        job: the conversion.
        progress: called for each batch that the block is refined over.

    Returns:
        What the journal keeps: fields of `LayerReport`s, notes, and where codes learned the errors
        of the block's output before and after.
    """
    layer = f"layers.{block.index}."
    notes = []
    wanted = block(hidden) if job.refined_by_block else None
    if "fold" in job.options.steps:
        notes = fold_block(
            block,
            hidden,
            job.formats,
            job.threads,
            options=job.options if job.options.method == "auto" else None,
        )
    errors = []
    rounded: dict[str, Quantised] = {}
    few: tuple[int, ...] = ()
    routed: Routed | None = None
    experts = {n.removeprefix(layer) for n in expert_counts(block.operations)}
    for stage in block.stages:
        if experts.isdisjoint(stage):
            sample, result = _round_stage(block, hidden, stage, job)
            inputs = sample.inputs()
            error: OutputError = functools.partial(_output_error, inputs)
        else:
            routed = routed or Routed(block, hidden)
            made = round_experts(
                block, routed, _quantised_forms(block, stage, job), job.options, job.threads
            )
            result, few = made.layers, made.few
            error = functools.partial(output_error, routed)
        for name in stage:
            form = job.formats[layer + name]
            weight = block.get(name + ".weight")
            if name in result:
                written = _write_quantised(job, layer + name, result[name])
            else:
                written = _write_plain(job, layer + name, weight, form)
            errors.append(
                {
                    "name": layer + name,
                    "bits": form.bits,
                    "weight_error": relative(_energy(written - weight), _energy(weight)),
                    "output_error": error(name, weight, written),
                }
            )
            block.set(name + ".weight", written)
        rounded |= result
    refined = None
    if wanted is not None and rounded:
        refined = _refine(block, hidden, wanted, rounded, job, progress)
    written_above = {f"{name}.weight" for stage in block.stages for name in stage}
    for name in block.names:
        if name not in written_above:
            job.data.write(layer + name, block.get(name).numpy())
    return {"layers": errors, "notes": notes, "refined": refined, "few": few}


def _refine(
    block: Block,
    hidden: Tensor,
    wanted: Tensor,
    rounded: Mapping[str, Quantised],
    job: Job,
    progress: Progress,
) -> tuple[float, float]:
    """Learn a block's codes and scales, and write them over the others; its error before, after."""
    refined = refine_block(
        block, hidden, wanted, rounded, steps=job.refined_by_block, advance=progress.advance
    )
    for name, result in refined.layers.items():
        module = f"layers.{block.index}.{name}"
        block.set(name + ".weight", _write_quantised(job, module, result))
    return refined.error_before, refined.error_after


def _round_stage(
    block: Block, hidden: Tensor, stage: tuple[str, ...], job: Job
) -> tuple[Sample, dict[str, Quantised]]:
    """Inputs of a stage's layers, and what those become that are to be quantised."""
    forms = _quantised_forms(block, stage, job)
    inputs = block.get(stage[0] + ".weight").shape[1]
    sample = Sample(hidden.shape[0] * hidden.shape[1], _ERROR_TOKENS)
    if not forms:
        _observe(block, hidden, stage[0], sample)
        return sample, {}
    weights = [block.get(name + ".weight") for name in forms]
    if job.options.method == "awq":
        products = {
            form.group_size: GroupProducts(inputs, form.group_size) for form in forms.values()
        }
        _observe(block, hidden, stage[0], sample, *products.values())
        result = [
            quantise_clipped(
                weight,
                products[form.group_size].total(),
                form.bits,
                form.group_size,
                symmetric=not form.zeros,
                threads=job.threads,
            )
            for weight, form in zip(weights, forms.values(), strict=True)
        ]
    else:
        hessian = gptq.Hessian(inputs)
        _observe(block, hidden, stage[0], sample, hessian)
        result = round_layers(
            weights, hessian.mean(), list(forms.values()), job.options, job.threads
        )
    return sample, dict(zip(forms, result, strict=True))


def _quantised_forms(block: Block, stage: tuple[str, ...], job: Job) -> dict[str, TensorFormat]:
    forms = {name: job.formats[f"layers.{block.index}.{name}"] for name in stage}
    return {name: form for name, form in forms.items() if form.quantised}


def _observe(block: Block, hidden: Tensor, linear: str, *observers: Observer) -> None:
    def see(_: str, x: Tensor) -> None:
        for observer in observers:
            observer.add(x)

    block.observe(hidden, (linear,), see)


def _write_quantised(job: Job, name: str, result: Quantised) -> Tensor:
    """Write codes, scales and zero points; the weights that they stand for."""
    for suffix, values in pack_quantised(result).items():
        job.data.write(name + suffix, values)
    return torch.from_numpy(result.dequantise())


def _write_plain(job: Job, name: str, weight: Tensor, form: TensorFormat) -> Tensor:
    """Write a matrix that is not quantised; the weights as stored."""
    stored = weight.numpy().astype(np.float16 if form.bits == 16 else np.float32)
    job.data.write(name + ".weight", stored)
    return torch.from_numpy(stored.astype(np.float32))


def _output_error(inputs: Tensor, name: str, weight: Tensor, written: Tensor) -> float:
    """|(W' - W) x| / |W x|."""
    del name
    difference = written - weight
    return relative(_energy(inputs @ difference.T), _energy(inputs @ weight.T))


def _energy(values: Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))


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
