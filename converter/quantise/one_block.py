"""Quantising one decoder block with its inputs, and writing it.

The order is that of the block's stages: q, k and v, then o, then gate and up, then down. Each
stage's inputs are computed with the weights that were written before it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from edgetok.converter.calibrate.block import Block
from edgetok.converter.options import ConvertOptions, learns_whole
from edgetok.converter.progress import Progress
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise.awq import GroupProducts, Sample, quantise_clipped
from edgetok.converter.quantise.awq_fold import fold_block
from edgetok.converter.quantise.error import relative
from edgetok.converter.quantise.experts import Routed, output_error, round_experts, rows_of
from edgetok.converter.quantise.recipe import round_layers
from edgetok.converter.quantise.train_block import refine_block
from edgetok.converter.quantised import Quantised
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.workers import pieces_of, side_by_side
from edgetok.converter.write.data_file import DataFile, TensorFormat
from edgetok.converter.write.pack_codes import pack_quantised
from edgetok.formats.layout import Layout
from edgetok.models.layers.experts import ExpertLinear
from edgetok.models.operations import expert_counts

_ERROR_TOKENS = 512
OutputError = Callable[[str, Tensor, Tensor], float | None]
# Runs a block up to a linear layer and shows the layer's inputs [tokens, K], a batch at a time.
Observe = Callable[[str, Callable[[Tensor], None]], None]


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


def quantise_block(
    block: Block, hidden: Tensor, job: Job, progress: Progress
) -> tuple[dict[str, Any], Tensor]:
    """Quantise and write one block; afterwards it computes with the weights that were written.

    Args:
        block: materialised; its weights are replaced.
        hidden: [B, T, hidden_size] its input.
        job: the conversion.
        progress: called for each batch that the block is refined over.

    Returns:
        What the journal keeps: fields of `LayerReport`s, notes, and where codes learned the errors
        of the block's output before and after. And the quantised block's output.
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
    experts = {n.removeprefix(layer) for n in expert_counts(block.operations)}
    if experts:  # which are shown their inputs in another way
        rerun = functools.partial(_rerun, block, hidden)
        made = _quantise_stages(block, hidden, job, experts, rerun)
        output = None
    else:
        with block.paused(hidden, [stage[0] for stage in block.stages]) as paused:
            made = _quantise_stages(block, hidden, job, experts, paused.observe)
            output = paused.outputs()
    refined = None
    if wanted is not None and made.rounded:
        refined, output = _refine(block, hidden, wanted, made, job, progress), None
    written_above = {f"{name}.weight" for stage in block.stages for name in stage}
    for name in block.names:
        if name not in written_above:
            job.data.write(layer + name, block.get(name).numpy())
    kept = {"layers": made.errors, "notes": notes, "refined": refined, "few": made.few}
    return kept, block(hidden) if output is None else output


@dataclass(frozen=True, slots=True)
class _Stages:
    """The quantised matrices of a block, and their errors; see `quantise_block`."""

    errors: list[dict[str, Any]]
    rounded: dict[str, Quantised]
    few: tuple[int, ...]


def _quantise_stages(
    block: Block, hidden: Tensor, job: Job, experts: set[str], observe: Observe
) -> _Stages:
    """Quantise and write all matrices of a block, stage by stage."""
    layer = f"layers.{block.index}."
    errors = []
    rounded: dict[str, Quantised] = {}
    few: tuple[int, ...] = ()
    routed: Routed | None = None
    for stage in block.stages:
        if experts.isdisjoint(stage):
            tokens = hidden.shape[0] * hidden.shape[1]
            sample, result = _round_stage(block, tokens, stage, job, observe)
            inputs = sample.inputs()
            error: OutputError = functools.partial(_output_error, inputs, job.threads)
        else:
            routed = routed or Routed.behind(block, hidden)
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
    return _Stages(errors, rounded, few)


def _refine(
    block: Block,
    hidden: Tensor,
    wanted: Tensor,
    made: _Stages,
    job: Job,
    progress: Progress,
) -> tuple[float, float]:
    """Learn a block's codes and scales, and write them over the others; its error before, after."""
    experts = (op for op in block.operations if isinstance(op, ExpertLinear))
    refined = refine_block(
        block,
        hidden,
        wanted,
        made.rounded,
        steps=job.refined_by_block,
        advance=progress.advance,
        still={
            op.weight.rpartition(".")[2]: [rows_of(op.outputs, e) for e in made.few]
            for op in experts
        },
        threads=job.threads,
    )
    for name, result in refined.layers.items():
        module = f"layers.{block.index}.{name}"
        block.set(name + ".weight", _write_quantised(job, module, result))
    return refined.error_before, refined.error_after


def _round_stage(
    block: Block, tokens: int, stage: tuple[str, ...], job: Job, observe: Observe
) -> tuple[Sample, dict[str, Quantised]]:
    """Inputs of a stage's layers, and what those become that are to be quantised."""
    forms = _quantised_forms(block, stage, job)
    inputs = block.get(stage[0] + ".weight").shape[1]
    sample = Sample(tokens, _ERROR_TOKENS)
    if not forms:
        observe(stage[0], sample.add)
        return sample, {}
    weights = [block.get(name + ".weight") for name in forms]
    if job.options.method == "awq":
        products = {
            form.group_size: GroupProducts(inputs, form.group_size) for form in forms.values()
        }
        observe(stage[0], _all(sample, *products.values()))
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
        hessian = gptq.Hessian(inputs, job.threads)
        observe(stage[0], _all(sample, hessian))
        result = round_layers(
            weights, hessian.mean(), list(forms.values()), job.options, job.threads
        )
    return sample, dict(zip(forms, result, strict=True))


def _quantised_forms(block: Block, stage: tuple[str, ...], job: Job) -> dict[str, TensorFormat]:
    forms = {name: job.formats[f"layers.{block.index}.{name}"] for name in stage}
    return {name: form for name, form in forms.items() if form.quantised}


def _all(*observers: Observer) -> Callable[[Tensor], None]:
    def see(x: Tensor) -> None:
        for observer in observers:
            observer.add(x)

    return see


def _rerun(block: Block, hidden: Tensor, linear: str, see: Callable[[Tensor], None]) -> None:
    """An `Observe` that runs the block from its beginning."""
    block.observe(hidden, (linear,), lambda _, x: see(x))


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


def _output_error(
    inputs: Tensor, threads: int, name: str, weight: Tensor, written: Tensor
) -> float:
    """|(W' - W) x| / |W x|."""
    del name

    def piece(rows: slice) -> tuple[float, float]:
        difference = written[rows] - weight[rows]
        return _energy(inputs @ difference.T), _energy(inputs @ weight[rows].T)

    found = side_by_side(threads, [functools.partial(piece, at) for at in pieces_of(len(weight))])
    return relative(math.fsum(moved for moved, _ in found), math.fsum(norm for _, norm in found))


def _energy(values: Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))
