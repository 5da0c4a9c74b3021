"""Sensitivity of each tensor: the expected KL of every way to store it, measured.

A small change dW of a layer with inputs x moves the model's next-token distribution by

    KL ~ 1/2 E[(g . dW x)^2],  g = gradient of log p(token) with respect to the layer's outputs,

the token being drawn from the model's own distribution (the Fisher information). Errors of two rows
are independent, so this is the sum over rows of g_i^2 (dW_i x)^2, and a sample of the rows is
enough. The rows are rounded as the conversion will round them, with a Hessian from other tokens
than those that measure their error. One forward and one backward pass, with one block in memory at
a time, measure all tensors; the losses of the output head and the embedding are measured directly.

A sum over tensors is inaccurate where errors are large. It is therefore calibrated against whole
models rounded to nearest at several widths.

Source: Fisher information as the curvature of KL: arXiv 1412.1193, section 6; as a measure for
mixed widths: arXiv 2306.07629, section 4.1 (diagonal, per weight; here per output and token).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetok.converter.allocate.scope import MEASURED_TOKENS, WIDE, Scope
from edgetok.converter.allocate.sensitivity_of_ends import Ends, halves
from edgetok.converter.allocate.sensitivity_of_experts import measure_experts
from edgetok.converter.allocate.sensitivity_of_inputs import measure_inputs
from edgetok.converter.allocate.trial import Trial
from edgetok.converter.allocate.whole_model_probe import PROBE_BITS, PROBE_HEAD, probe
from edgetok.converter.calibrate.block import ROUTER, Block
from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.calibrate.windows import Tokens, spread
from edgetok.converter.durable import write_durably
from edgetok.converter.options import ConvertOptions, learns_whole
from edgetok.converter.progress import Progress
from edgetok.converter.quantise import gptq
from edgetok.converter.read.canonical_weights import CanonicalWeights, without_table
from edgetok.formats.layout import TensorFormat, linear_shapes
from edgetok.models.spec import DecoderSpec

# `tune` repairs more of the loss of an embedding or a head than of the loss of layers. At 2.386 MB
# the default model had a KL of 0.0280 without this (a head of 8 bits), and 0.0197 with it (of 4).
_TUNED_END = 0.5
# Of the progress, in the time that a block takes forward: a block back, and a head that is as large
# as a block. SmolLM2-135M.
_BACK_UNITS = 4
_HEAD_UNITS = 4


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The measured losses of every tensor.

    Attributes:
        kl: expected KL in nats by tensor and format, each tensor by itself.
        probes: (sum of such figures, KL measured) of the whole model rounded to nearest.
    """

    kl: Mapping[str, Mapping[TensorFormat, float]]
    probes: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        kl = {
            name: [[dataclasses.asdict(form), value] for form, value in costs.items()]
            for name, costs in self.kl.items()
        }
        return {"kl": kl, "probes": [list(probe) for probe in self.probes]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sensitivity:
        """Read what `to_json` gave."""
        kl = {
            name: {TensorFormat(**form): value for form, value in costs}
            for name, costs in values["kl"].items()
        }
        return cls(kl, tuple((predicted, result) for predicted, result in values["probes"]))


def measure(
    weights: CanonicalWeights,
    options: ConvertOptions,
    greatest: Mapping[str, float],
    windows: Tokens,
    scratch: Path,
    progress: Progress,
    threads: int,
    scope: Scope = WIDE,
    *,
    probes: bool = True,
) -> Sensitivity:
    """Run the original forward and back over some tokens and try every way to store each tensor.

    Args:
        weights: weights of the checkpoint.
        options: method, symmetry and damping are taken from them.
        greatest: magnitude in each matrix, see `survey`.
        windows: [B, T] token ids.
        scratch: a folder for activations, [B, T, hidden_size] float32 a layer.
        progress: called for each block.
        threads: how many formats are tried at once.
        scope: which formats.
        probes: whether sums of losses are compared with whole models.

    Returns:
        Costs; a tensor whose scales do not fit float16 at some width has none for it, and one that
        is never quantised, such as a router, is not there.
    """
    spec = weights.family.spec
    count = max(2, MEASURED_TOKENS // windows.shape[1])
    windows = windows[spread(len(windows), min(count, len(windows)))]
    head_units = _head_units(spec)
    progress.begin("Measuring sensitivity", (1 + _BACK_UNITS) * spec.num_layers + head_units + 1)
    trial = Trial(options, greatest, threads, without_table(spec), scope, probes=probes)
    original = Original(weights, threads=threads)
    embedded = original.embed(windows)
    states = _States(scratch, embedded)
    for index in range(spec.num_layers):
        with original.block(index) as block:
            states.push(block(states.last))
        progress.advance()
    ends = Ends(original, options, greatest, threads, scope)
    trial.kl["lm_head"], gradient = ends.head(states.last)
    progress.advance(head_units)
    for index in reversed(range(spec.num_layers)):
        with original.block(index) as block:
            gradient = _block(weights, block, states.pop(), gradient, trial)
        progress.advance(_BACK_UNITS)
    if spec.per_layer_size:
        own = [original.calls.input_gradients[i] for i in range(spec.num_layers)]
        gradient = gradient + measure_inputs(weights, windows, embedded, torch.cat(own, 2), trial)
    name = "lm_head" if spec.tied else "embed_tokens"
    for form, cost in ends.embedding(windows, gradient).items():
        # A tied matrix loses in both places.
        costs = trial.kl.setdefault(name, {})
        costs[form] = costs.get(form, 0.0) + cost
    for end in {name, "lm_head"}:
        known = trial.kl[end].get(TensorFormat(*PROBE_HEAD), 0.0)
        trial.probes[end] = dict.fromkeys(PROBE_BITS, known)
    if "tune" in options.steps and learns_whole(weights.parameters):
        for end in filter(is_end, trial.kl):
            trial.kl[end] = {way: _TUNED_END * cost for way, cost in trial.kl[end].items()}
    states.close()
    progress.advance()
    if not probes:
        return Sensitivity(trial.kl, ())
    result = probe(weights, windows, options, progress, threads)
    sums = [math.fsum(costs[bits] for costs in trial.probes.values()) for bits in PROBE_BITS]
    return Sensitivity(trial.kl, tuple(zip(sums, result, strict=True)))


class _States:
    """The stream between blocks, on the disk but for its last."""

    def __init__(self, folder: Path, first: Tensor) -> None:
        self._folder = folder
        self._shape = first.shape
        self._count = 0
        self.last = first

    def push(self, hidden: Tensor) -> None:
        write_durably(self._path(self._count), self.last.contiguous().numpy().data)
        self._count += 1
        self.last = hidden

    def pop(self) -> Tensor:
        """Return the outputs of the previous block, and remove their file."""
        self._count -= 1
        path = self._path(self._count)
        kept = torch.from_numpy(np.fromfile(path, np.float32)).reshape(self._shape).clone()
        path.unlink()
        return kept

    def close(self) -> None:
        self.last = torch.empty(0)

    def _path(self, index: int) -> Path:
        return self._folder / f"sensitivity-{index}.f32"


def _block(
    weights: CanonicalWeights, block: Block, hidden: Tensor, gradient: Tensor, trial: Trial
) -> Tensor:
    """Costs of a block's layers; the gradient before it."""
    inputs: dict[str, list[Tensor]] = {}
    gradients: dict[str, list[Tensor]] = {}
    measured = [name for name in block.measured if name != ROUTER]
    stages = [[name for name in stage if name in measured] for stage in block.stages]
    firsts = {stage[0] for stage in stages if stage} | {ROUTER}

    def see(name: str, x: Tensor, g: Tensor) -> None:
        if name in firsts:
            inputs.setdefault(name, []).append(x)
        gradients.setdefault(name, []).append(g.clone())

    before = block.backward(hidden, gradient, see)
    tokens = hidden.shape[1]
    for stage in filter(None, stages):
        x = torch.cat(inputs.pop(stage[0]))
        seen, held_out = halves(len(x), tokens)
        hessian = gptq.Hessian(x.shape[1], trial.threads)
        hessian.add(x[seen])
        mean = hessian.mean()
        for name in stage:
            weight = block.get(name + ".weight")
            g = torch.cat(gradients.pop(name))
            trial.linear(
                f"layers.{block.index}.{name}", weight, x[held_out], g[held_out], mean.clone()
            )
    if ROUTER in block.measured:
        x, g = torch.cat(inputs[ROUTER]), torch.cat(gradients[ROUTER])
        measure_experts(weights, block, x, g, tokens, trial)
    return before


def _head_units(spec: DecoderSpec) -> int:
    """Return the time that the head takes in units of a block's way forward."""
    shapes = linear_shapes(spec)
    block = sum(s.N * s.K for name, s in shapes.items() if not is_end(name)) / spec.num_layers
    return 1 + round(_HEAD_UNITS * shapes["lm_head"].N * shapes["lm_head"].K / block)


def is_end(name: str) -> bool:
    """Return whether a tensor is the head or the embedding."""
    return name in ("lm_head", "embed_tokens")
